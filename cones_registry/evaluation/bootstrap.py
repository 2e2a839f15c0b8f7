"""Means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean of ``count`` pictures and the interval that holds it in 95 % of resamples."""

    mean: float
    low: float
    high: float
    count: int


def interval(values: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0) -> Interval:
    """The mean of ``values`` with its percentile bootstrap interval.

    groups: what each value belongs to (the set of subjects): pictures of one set are alike, so sets
    are drawn with replacement first, then as many pictures of each as it has.
    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values to take the mean of")
    generator = np.random.default_rng(seed)
    parts: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        parts.setdefault(group, []).append(value)
    sums = np.empty((len(parts), RESAMPLES))
    for number, part in enumerate(parts.values()):
        chosen = generator.integers(len(part), size=(RESAMPLES, len(part)))
        sums[number] = np.asarray(part)[chosen].sum(1)
    sizes = np.array([len(part) for part in parts.values()])
    drawn = generator.integers(len(parts), size=(RESAMPLES, len(parts)))
    totals = sums[drawn, np.arange(RESAMPLES)[:, None]].sum(1)
    means = totals / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))
