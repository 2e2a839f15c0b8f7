"""From scores to a mask: so many of the highest, or all above a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from cones_registry.errors import UsageError
from cones_registry.mask import ConceptMask

if TYPE_CHECKING:
    from cones_registry.layers import LayerTable

Scores: TypeAlias = Mapping[str, npt.NDArray[np.float32]]
"""Layer name -> float32 [out, in]; the higher, the sooner a neuron is shut; never at 0 or less."""


@dataclass(frozen=True)
class Target:
    """How many neurons to shut: exactly one of the two is given.

    density: share of the neurons, 0 < density ≤ 1. tau: the paper's τ, at least 0.
    """

    density: float | None = None
    tau: float | None = None

    def __post_init__(self) -> None:
        if (self.density is None) == (self.tau is None):
            raise UsageError("give a density or a tau; they are two ways to say one thing")
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(
                f"density={self.density}; expected above 0 and at most 1, a share of the neurons"
            )
        if self.tau is not None and not 0 <= self.tau < float("inf"):
            raise UsageError(
                f"tau={self.tau}; expected at least 0: neurons that score less do harm when shut"
            )

    def require_members(self, table: LayerTable) -> None:
        """Raise UsageError for a density so low that it is no neuron at all."""
        if self.density is not None and not table.count_within(self.density):
            raise UsageError(
                f"density={self.density} of {table.neuron_count:,} neurons is not one neuron. "
                f"Ask for at least {math.ceil(1e9 / table.neuron_count) / 1e9:.9f}; 0.01 to 0.1 "
                "is usual"
            )

    def select(self, table: LayerTable, scores: Scores) -> ConceptMask:
        """The mask these scores come to."""
        if self.density is not None:
            return highest(table, scores, self.density)
        return above(table, scores, self.tau or 0.0)


def highest(table: LayerTable, scores: Scores, density: float) -> ConceptMask:
    """The mask of the neurons with the highest positive scores, at most ``density`` of all.

    scores: layer name -> float32 [out, in]; neurons that score 0 or less are never members, so
        fewer may be found. Of equal scores the first in table order is taken.
    Raises UsageError for a density outside [0, 1].
    """
    if not 0 <= density <= 1:
        raise UsageError(f"density {density}; expected 0 … 1, a share of the neurons")
    flat = np.concatenate([scores[name].reshape(-1) for name in table.names])
    count = min(table.count_within(density), int(np.count_nonzero(flat > 0)))
    chosen = np.zeros(flat.size, dtype=np.bool_)
    if count:
        threshold = np.partition(flat, flat.size - count)[flat.size - count]
        chosen = flat > threshold
        level = np.flatnonzero(flat == threshold)
        chosen[level[: count - int(chosen.sum())]] = True
    return _mask(table, chosen)


def above(table: LayerTable, scores: Scores, threshold: float) -> ConceptMask:
    """The mask of all neurons that score more than ``threshold`` (the paper's τ)."""
    flat = np.concatenate([scores[name].reshape(-1) for name in table.names])
    return _mask(table, flat > threshold)


def _mask(table: LayerTable, chosen: npt.NDArray[np.bool_]) -> ConceptMask:
    bounds = np.cumsum([layer.neuron_count for layer in table.layers])[:-1]
    parts = np.split(chosen, bounds)
    return ConceptMask.from_dense(
        {
            layer.name: part.reshape(layer.rows, layer.cols)
            for layer, part in zip(table.layers, parts, strict=True)
        },
        table=table,
    )
