"""K or V of one layer, with other weights at some rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import linear

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
class _FlatEdit:
    """A RowEdit whose rows are flat indices int64 [n] into B·S (None: all)."""

    weights: WeightTransform
    index: torch.Tensor | None


@dataclass(frozen=True)
class _Places:
    """Where the edits act in inputs of one shape; whole: every row belongs to some edit."""

    edits: tuple[_FlatEdit, ...]
    whole: bool


_PlaceKey = tuple[int, int, bool, str]  # batch, rows of the input, text_first, device


class RowEdits:
    """Edits of one batch. The text may stand alone in a layer's input, or before other rows.

    once: keep K and V of each layer from its first call on. text_length: T, rows of the text.
    seconds: that projecting took, without what was served as kept; on a GPU, until it was queued.
    """

    def __init__(self, edits: Sequence[RowEdit], *, once: bool = False) -> None:
        self._edits = tuple(edits)
        self.once = once
        self.text_length: int | None = None
        self.seconds = 0.0
        for edit in self._edits:
            if edit.rows is not None and (edit.rows.ndim != 2 or edit.rows.dtype != torch.bool):
                raise UsageError(
                    f"rows are {edit.rows.dtype} {tuple(edit.rows.shape)}, expected torch.bool "
                    "[batch, tokens]"
                )
        self._places: dict[_PlaceKey, _Places] = {}
        self._kept: dict[str, torch.Tensor] = {}

    @property
    def byte_count(self) -> int:
        """Memory of all kept K and V in bytes."""
        return sum(each.numel() * each.element_size() for each in self._kept.values())

    @property
    def kept(self) -> dict[str, torch.Tensor]:
        """Layer name -> its K or V [B, T, out], of layers that were called with ``once``."""
        return dict(self._kept)

    def project(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        name: str,
        *,
        text_first: bool = False,
    ) -> torch.Tensor:
        """K or V [B, S, out] of inputs [B, S, in] of the layer called ``name``."""
        if not self.once:
            return self._project(inputs, weight, bias, name, text_first)
        kept = self._kept.get(name)
        if kept is None or kept.shape[:-1] != inputs.shape[:-1]:
            kept = self._project(inputs, weight, bias, name, text_first)
            self._kept[name] = kept
        return kept

    def _project(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        name: str,
        text_first: bool,
    ) -> torch.Tensor:
        began = time.perf_counter()
        projected = self._with_edits(inputs, weight, bias, name, text_first)
        self.seconds += time.perf_counter() - began
        return projected

    def _with_edits(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        name: str,
        text_first: bool,
    ) -> torch.Tensor:
        if not self._edits:
            return linear(inputs, weight, bias)
        if inputs.ndim != 3:
            raise UsageError(
                f"{name} reads {tuple(inputs.shape)}, expected [batch, tokens, dimension]"
            )
        places = self._places_in(inputs, name, text_first)
        return _with_edits(inputs, weight, bias, name, places)

    def _places_in(self, inputs: torch.Tensor, name: str, text_first: bool) -> _Places:
        batch, length = inputs.shape[:2]
        key = (batch, length, text_first, str(inputs.device))
        places = self._places.get(key)
        if places is None:
            flat = [self._flatten(edit, inputs, name, text_first) for edit in self._edits]
            everywhere = [number for number, edit in enumerate(flat) if edit.index is None]
            flat = flat[everywhere[-1] :] if everywhere else flat  # no row is left of earlier ones
            places = _Places(tuple(flat), _cover_all(flat, batch * length))
            self._places[key] = places
        return places

    def _flatten(
        self, edit: RowEdit, inputs: torch.Tensor, name: str, text_first: bool
    ) -> _FlatEdit:
        batch, length = inputs.shape[:2]
        rows = edit.rows
        if rows is None:
            if not text_first:
                return _FlatEdit(edit.weights, None)
            if self.text_length is None:
                raise UsageError(
                    f"{name} reads text before other rows; say which rows are the text's: give the "
                    "edit's rows, or call the model with encoder_hidden_states by name"
                )
            rows = torch.ones(batch, self.text_length, dtype=torch.bool)
        fits = rows.shape[0] == batch and (
            rows.shape[1] <= length if text_first else rows.shape[1] == length
        )
        if not fits:
            raise UsageError(
                f"rows are torch.bool {tuple(rows.shape)}, expected torch.bool "
                f"({batch}, {length}) (batch, tokens) for what {name} reads"
            )
        found = rows.nonzero()  # [n, 2]
        index = found[:, 0] * length + found[:, 1]
        return _FlatEdit(edit.weights, index.to(inputs.device))


def _cover_all(edits: Sequence[_FlatEdit], count: int) -> bool:
    """Whether every one of ``count`` rows belongs to some edit."""
    covered = torch.zeros(count, dtype=torch.bool)
    for edit in edits:
        if edit.index is None:
            return True
        covered[edit.index.cpu()] = True
    return bool(covered.all())


def _with_edits(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    name: str,
    places: _Places,
) -> torch.Tensor:
    """K or V of one layer. The plain product is left out where every row is another's."""
    flat = inputs.flatten(0, 1)
    changes = [_change(edit.weights, name, weight, bias) for edit in places.edits]
    if all(change is None for change in changes):
        return linear(inputs, weight, bias)
    skipped = places.whole and None not in changes
    plain = None if skipped else linear(inputs, weight, bias).flatten(0, 1)
    # All rows first, then all writes: an edit never sees what another one wrote.
    written: list[tuple[torch.Tensor | None, torch.Tensor]] = []
    for edit, change in zip(places.edits, changes, strict=True):
        index = edit.index
        before = plain if index is None or plain is None else plain[index]
        if change is not None:
            written.append((index, change(flat if index is None else flat[index], before)))
        elif len(places.edits) > 1 and index is not None and before is not None:
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
        projected = linear(inputs, weight, bias)
    return projected.view(*inputs.shape[:2], -1)


def _change(
    weights: WeightTransform, name: str, weight: torch.Tensor, bias: torch.Tensor | None
) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None:
    """What an edit makes of inputs (and of the plain rows, if known); None: the layer's own."""
    if isinstance(weights, MaskedWeights) and not torch.is_grad_enabled():
        if not weights.mask.count(name):
            return None
        return partial(weights.project, name, weight, bias)
    changed = weights(name, weight)
    if changed is weight:
        return None
    return lambda inputs, _: linear(inputs, changed, bias)
