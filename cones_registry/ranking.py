"""Ranks: how the members of a mask compare, coarsely, so that a mask can be cut later.

Level k holds the members that are among the best 2^(-k/2) of a mask, but not among the best
2^(-(k+1)/2): level 0 the worst 29 %, level 1 the next 21 %, … level 15 the best 0.55 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cones_registry import bitmap
from cones_registry.errors import UsageError
from cones_registry.mask import ConceptMask

LEVELS: Final = 16
"""Levels 0 to 15: 4 bits."""

Ranks = npt.NDArray[np.uint8]
"""Level of each member, uint8 [n], in table order, then index order."""


def ranks_of(mask: ConceptMask, scores: Mapping[str, npt.NDArray[Any]]) -> Ranks:
    """Levels of the members of a mask.

    Args:
        mask: n members.
        scores: layer name -> float [out, in], as an `Extraction` has them: the higher, the sooner
            a neuron is shut. Only those of members count; a layer without members may be missing.

    Members of equal scores have equal levels.

    Raises:
        UsageError: a layer that is missing or of another shape, or a score that is NaN.
    """
    parts = []
    for layer in mask.table.layers:
        if not mask.count(layer.name):
            continue
        found = np.asarray(scores.get(layer.name))
        if found.shape != (layer.rows, layer.cols) or found.dtype.kind != "f":
            raise UsageError(
                f"scores of layer {layer.name!r} are {found.dtype} {found.shape}; "
                f"expected floats ({layer.rows}, {layer.cols})"
            )
        parts.append(found.reshape(-1)[mask.indices(layer.name)])
    values = np.concatenate([np.empty(0, dtype=np.float32), *parts])
    if np.isnan(values).any():
        raise UsageError("a score is NaN, which ranks nowhere")
    # Share of the members that score at least as much.
    ordered = np.sort(values)
    share = 1 - np.searchsorted(ordered, values) / max(values.size, 1)
    ranks: Ranks = np.floor(-2 * np.log2(share)).clip(0, LEVELS - 1).astype(np.uint8)
    return ranks


def cut(mask: ConceptMask, ranks: Ranks, count: int) -> ConceptMask:
    """The `count` members of a mask that rank highest, with their factors.

    Of equal levels those go first that a fixed shuffle of the table puts first, so no layer is
    preferred, and of two cuts the smaller is part of the larger.

    Raises:
        UsageError: more than the mask has, or ranks of another length.
    """
    members = bitmap.unpack_positions(mask.words)
    if ranks.shape != members.shape or not 0 <= count <= members.size:
        raise UsageError(
            f"cannot cut a mask of {members.size} members with {ranks.size} ranks to {count}"
        )
    above = np.cumsum(np.bincount(ranks, minlength=LEVELS)[::-1])[::-1]  # of this level or higher
    lowest = int(np.flatnonzero(above >= count)[-1])
    kept = ranks > lowest
    level = np.flatnonzero(ranks == lowest)
    shuffled = (members[level].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).argsort()
    kept[level[shuffled[: count - int(kept.sum())]]] = True
    words = bitmap.pack_positions(members[kept], mask.words.size)
    factors = None if mask.factors is None else mask.factors[kept]
    return ConceptMask.trusted(mask.table, words, factors, mask.precision)
