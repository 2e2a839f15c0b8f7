"""Attention maps: where in the picture each row of the text is attended to."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from cones_registry.attention.modules import TextAttention, original, text_attentions
from cones_registry.errors import UsageError

# Processors whose probabilities are those of ``_probabilities``. Others add rotary embeddings, norm
# over all heads, attend linearly, or attend to text and picture together.
_KNOWN = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")


class AttentionMaps:
    """Cross-attention probabilities, averaged over heads and summed over calls of the denoiser.

    Source: DAAM, arXiv 2210.04885 (heads, layers and steps are put together by their mean).
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}  # path -> float32 [B, pixels, T]
        self._calls: dict[str, int] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the cross-attention blocks that were seen, in the order of their calls."""
        return tuple(self._sums)

    def add(self, path: str, probabilities: torch.Tensor) -> None:
        """Note one call: ``probabilities`` [B, heads, pixels, T]."""
        mean = probabilities.detach().float().mean(1).cpu()
        if path in self._sums and self._sums[path].shape == mean.shape:
            self._sums[path] += mean
            self._calls[path] += 1
        else:
            self._sums[path], self._calls[path] = mean, 1

    def of(
        self,
        rows: torch.Tensor,
        entry: int,
        *,
        shape: tuple[int, int],
        layer: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Share of attention that ``rows`` get at every place: float32 [height, width], in [0, 1].

        rows: bool [T]. entry: of the last batch; negative numbers count from its end (with
        guidance the conditional entries stand last). shape: height and width in pixels.
        layer: of one block alone; else the mean of all.
        Raises UsageError if nothing was recorded, or rows do not fit.
        """
        if not self._sums:
            raise UsageError("no attention was recorded. Draw a picture inside `record_maps`")
        chosen = self.layers if layer is None else (layer,)
        height, width = shape
        total = torch.zeros(height, width)
        for path in chosen:
            if path not in self._sums:
                raise UsageError(f"no block {path!r} was recorded; there are {list(self.layers)}")
            sums = self._sums[path]
            if rows.shape != sums.shape[-1:]:
                raise UsageError(
                    f"rows have shape {tuple(rows.shape)}, the text has {sums.shape[-1]} rows"
                )
            flat = sums[entry][:, rows].sum(-1) / self._calls[path]  # [pixels]
            across = max(1, round(math.sqrt(len(flat) * width / height)))
            grid = flat.view(1, 1, -1, across)
            total += interpolate(grid, (height, width), mode="bilinear", align_corners=False)[0, 0]
        found: npt.NDArray[np.float32] = (total / len(chosen)).numpy()
        return found


@contextmanager
def record_maps(unet: Any) -> Iterator[AttentionMaps]:
    """Record what every cross-attention block of ``unet`` attends to while the block runs.

    Works with served K/V rows and with plain pipelines alike. Only calls of this thread are seen,
    and nothing that is drawn changes. Calls of another batch size start the sums anew, so draw one
    batch.

    Raises:
        UsageError: attention that is computed in a way not known here.
    """
    _require_known(unet)
    maps, thread = AttentionMaps(), threading.get_ident()
    hooks = []
    for block in text_attentions(unet):

        def hook(
            module: Any, given: tuple[Any, ...], named: Mapping[str, Any], block: Any = block
        ) -> None:
            if threading.get_ident() == thread:
                maps.add(block.path, _probabilities(block, module, given, named))

        hooks.append(block.module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield maps
    finally:
        for each in hooks:
            each.remove()


def _require_known(unet: Any) -> None:
    for block in text_attentions(unet):
        kind = type(getattr(block.module, "processor", None)).__name__
        if kind not in _KNOWN:
            raise UsageError(
                f"attention maps are not known for {type(original(unet)).__name__}: its "
                f"{block.path} attends by {kind}. Expected cross-attention by "
                f"{', '.join(_KNOWN[:2])}, as in Stable Diffusion 1, 2 and XL, Kolors and PixArt"
            )


@torch.no_grad()
def _probabilities(
    block: TextAttention, module: Any, given: tuple[Any, ...], named: Mapping[str, Any]
) -> torch.Tensor:
    """softmax(Q Kᵀ / √d) of one call, as its processor computes it: [B, heads, pixels, T]."""
    hidden = given[0] if given else named["hidden_states"]
    text = given[1] if len(given) > 1 else named.get("encoder_hidden_states")
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if module.group_norm is not None:
        hidden = module.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
    if module.norm_cross:
        text = module.norm_encoder_hidden_states(text)
    key = module.to_k(text)  # with the rows that edits change, where some act
    query = _heads(module.to_q(hidden), module.heads)
    key = _heads(key, module.heads)
    if module.norm_q is not None:
        query, key = module.norm_q(query), module.norm_k(key)
    logits = query.float() @ key.float().transpose(-1, -2) * module.scale
    padding = given[2] if len(given) > 2 else named.get("attention_mask")
    if padding is not None:  # added before the softmax, [B, 1, T]: PixArt shuts padding rows off
        logits = logits + padding.float().unsqueeze(1)
    probabilities: torch.Tensor = logits.softmax(-1)
    return probabilities


def _heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, n, heads · d] -> [B, heads, n, d]."""
    split: torch.Tensor = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split
