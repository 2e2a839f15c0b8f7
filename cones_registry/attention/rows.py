"""K and V of every cross-attention layer for given text, computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from cones_registry.attention.modules import CrossAttention, cross_attentions, original
from cones_registry.attention.weights import MaskedWeights, WeightTransform
from cones_registry.errors import UsageError


@dataclass(frozen=True)
class RowEdit:
    """Rows that see other weights than the base model's.

    weights: ``(name, W [out, in]) -> W' [out, in]``; return ``W`` itself to leave the layer alone.
    rows: bool [B, T], the rows that use W'; None means all. Where edits overlap the later one wins.
    """

    weights: WeightTransform
    rows: torch.Tensor | None = None


@dataclass(frozen=True)
class KVRows:
    """What is served: for each cross-attention path its K and V, each [B, T, out]."""

    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def batch(self) -> int:
        """Number of batch entries B (conditional and unconditional ones counted apart)."""
        return next(iter(self.tensors.values()))[0].shape[0]

    @property
    def byte_count(self) -> int:
        """Memory of all K and V in bytes."""
        return sum(
            part.numel() * part.element_size() for pair in self.tensors.values() for part in pair
        )


@dataclass(frozen=True)
class _FlatEdit:
    """A RowEdit whose rows are flat indices int64 [n] into B·T (None: all)."""

    weights: WeightTransform
    index: torch.Tensor | None


def text_states(
    unet: Any, embeddings: torch.Tensor, added_cond_kwargs: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """What the cross-attention layers read: embeddings after the model's own text projection.

    [B, T, D] -> [B, T, D']. U-Nets may have ``encoder_hid_proj``, PixArt ``caption_projection``.
    """
    module = original(unet)
    if hasattr(module, "process_encoder_hidden_states"):
        return module.process_encoder_hidden_states(  # type: ignore[no-any-return]
            encoder_hidden_states=embeddings, added_cond_kwargs=added_cond_kwargs
        )
    projection = getattr(module, "caption_projection", None)
    if projection is None:
        return embeddings
    states: torch.Tensor = projection(embeddings)
    return states.view(embeddings.shape[0], -1, states.shape[-1])


def project_rows(
    unet: Any,
    embeddings: torch.Tensor,
    edits: Sequence[RowEdit] = (),
    *,
    added_cond_kwargs: Mapping[str, Any] | None = None,
) -> KVRows:
    """Compute K and V of every cross-attention layer, with other weights at the edited rows.

    embeddings: [B, T, D] as given to the denoiser (``encoder_hidden_states``).
    edits: see ``RowEdit``. Rows of no edit are bit-equal to what the plain model computes.
    Differentiable with respect to whatever ``weights`` and ``embeddings`` depend on.
    Raises UsageError if rows or embeddings do not have the right shape.
    """
    if embeddings.ndim != 3:
        raise UsageError(
            f"embeddings have shape {tuple(embeddings.shape)}, expected [batch, tokens, dimension]"
        )
    states = text_states(unet, embeddings, added_cond_kwargs)
    flat = [_flatten(edit, states) for edit in edits]
    everywhere = [number for number, edit in enumerate(flat) if edit.index is None]
    flat = flat[everywhere[-1] :] if everywhere else flat  # what went before has no row left
    whole = _cover_all(flat, states.shape[0] * states.shape[1])
    tensors = {
        block.path: _project_block(block, states, flat, whole) for block in cross_attentions(unet)
    }
    return KVRows(tensors)


def _flatten(edit: RowEdit, states: torch.Tensor) -> _FlatEdit:
    if edit.rows is None:
        return _FlatEdit(edit.weights, None)
    if tuple(edit.rows.shape) != tuple(states.shape[:2]) or edit.rows.dtype != torch.bool:
        raise UsageError(
            f"rows are {edit.rows.dtype} {tuple(edit.rows.shape)}, expected torch.bool "
            f"{tuple(states.shape[:2])} (batch, tokens) for these embeddings"
        )
    index = edit.rows.flatten().nonzero()[:, 0]
    return _FlatEdit(edit.weights, index.to(states.device))


def _cover_all(edits: Sequence[_FlatEdit], count: int) -> bool:
    """Whether every one of ``count`` rows belongs to some edit."""
    covered = torch.zeros(count, dtype=torch.bool)
    for edit in edits:
        if edit.index is None:
            return True
        covered[edit.index.cpu()] = True
    return bool(covered.all())


def _project_block(
    block: CrossAttention, states: torch.Tensor, edits: Sequence[_FlatEdit], whole: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    attention = block.module
    if getattr(attention, "norm_cross", None):
        states = attention.norm_encoder_hidden_states(states)
    if states.shape[-1] != attention.to_k.in_features:
        raise UsageError(
            f"{block.path} reads text of dimension {attention.to_k.in_features}, the embeddings "
            f"have {states.shape[-1]}. Encode the prompt with this model's own text encoder"
        )
    return (
        _project(attention.to_k, block.key_name, states, edits, whole),
        _project(attention.to_v, block.value_name, states, edits, whole),
    )


def _project(
    layer: Any, name: str, states: torch.Tensor, edits: Sequence[_FlatEdit], whole: bool
) -> torch.Tensor:
    """K or V of one layer, [B, T, out]. The plain product is left out where ``whole`` allows it."""
    home, states = states.device, states.to(layer.weight.device)  # with offloading they differ
    flat = states.flatten(0, 1)
    changes = [_change(edit.weights, name, layer) for edit in edits]
    skipped = whole and None not in changes
    plain: torch.Tensor | None = None if skipped else layer(states).flatten(0, 1)
    # All rows first, then all writes: an edit never sees what another one wrote.
    written: list[tuple[torch.Tensor | None, torch.Tensor]] = []
    for edit, change in zip(edits, changes, strict=True):
        index = None if edit.index is None else edit.index.to(flat.device)
        before = plain if index is None or plain is None else plain[index]
        if change is not None:
            written.append((index, change(flat if index is None else flat[index], before)))
        elif len(edits) > 1 and index is not None and before is not None:
            written.append((index, before))  # takes back what an earlier edit did there
    projected = plain
    for index, rows in written:
        if index is None:
            projected = rows
            continue
        if projected is None:
            projected = flat.new_empty(len(flat), rows.shape[1])
        if torch.is_grad_enabled():
            projected = projected.index_copy(0, index, rows)
        else:
            projected.index_copy_(0, index, rows)
    if projected is None:
        projected = layer(states)
    return projected.view(*states.shape[:2], -1).to(home)


def _change(
    weights: WeightTransform, name: str, layer: Any
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None:
    """What an edit makes of inputs (and of the plain rows, if known); None: the layer's own."""
    if isinstance(weights, MaskedWeights) and not torch.is_grad_enabled():
        return partial(weights.project, name, layer) if weights.mask.count(name) else None
    weight = weights(name, layer.weight)
    if weight is layer.weight:
        return None
    return lambda inputs, _: linear(inputs, weight, layer.bias)
