"""In-place shutting: the reference, and the way for code that wants an ordinary pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.attention.modules import original, text_attentions
from cones_registry.attention.weights import check_table, masked_weight
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.mask import ConceptMask


@contextmanager
def shut(unet: Any, mask: ConceptMask) -> Iterator[Any]:
    """Multiply the mask's neurons by their factors (0 = shut) in place; restore on leaving.

    unet: the denoiser (its own weights change while the block runs, for every thread that uses it).
    mask: a mask of this denoiser's layer table.
    On leaving, also by an error, the old values are written back bit for bit. Blocks may be nested.
    Raises BaseModelMismatchError before anything is written, UsageError for fused projections,
    which do not read the weights that would be shut, and for a mask with members in single-stream
    blocks (FLUX.1), whose weights project the picture too.
    Source: Cones, arXiv 2303.05125 (a concept is drawn by shutting its neurons).
    """
    module = original(unet)
    check_table(module, mask)
    fused = [b.path for b in text_attentions(module) if getattr(b.module, "fused_projections", 0)]
    if fused:
        raise UsageError(
            f"{fused[0]} has fused K/V projections, copies that shutting would not reach. "
            "Call unfuse_qkv_projections() first"
        )
    joined = {
        name
        for block in text_attentions(module)
        if block.text_first
        for name in (block.key_name, block.value_name)
    }
    shared = [name for name in mask.table.names if name in joined and mask.count(name)]
    if shared:
        raise UsageError(
            f"{shared[0]} projects text and picture alike; shut in place it would act on both. "
            "Draw with a Generator, whose masks act on the text's rows alone"
        )
    saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    try:
        for name in mask.table.names:
            if mask.count(name) == 0:
                continue
            weight = module.get_parameter(name).data
            index = torch.from_numpy(mask.indices(name)).to(weight.device, torch.int64)
            flat = weight.view(-1)
            masked = masked_weight(mask, name, weight).view(-1)[index]
            saved.append((flat, index, flat[index]))
            flat[index] = masked
        yield unet
    finally:
        for flat, index, values in reversed(saved):
            flat[index] = values
