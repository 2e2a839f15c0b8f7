"""Exact overlap counts on packed words.

Of a few masks every subset's intersection is counted, and the rest follows by inclusion and
exclusion. Of many, bit slicing: bit i of plane p is bit p of the number of masks that contain
neuron i, and adding a mask is a ripple-carry addition of one bit to 64 counters at a time. Words
are worked on a block at a time, so that the blocks of all masks stay in the processor's cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cones_registry.bitmap import Words

FEW: Final = 4
"""Masks up to which counting all 2^masks intersections is quicker than bit slicing."""
BLOCK: Final = 131_072
"""Words worked on at a time, of all masks together: 1 MiB."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OverlapCounts:
    """How masks overlap, exactly.

    Attributes:
        exclusive: of each mask, the neurons that no other mask contains, int64 [masks].
        shared: neurons that both of two masks contain, int64 [masks, masks], symmetric; each
            mask's own members on the diagonal.
        histogram: element k = neurons in exactly k masks, int64 [masks + 1].
    """

    exclusive: Counts
    shared: Counts
    histogram: Counts


def count_overlaps(masks: Sequence[Words], neuron_count: int) -> OverlapCounts:
    """Exact counts over all masks.

    Args:
        masks: uint64 [words] each, at least one; bits of no neuron are 0.
        neuron_count: neurons in all.
    """
    counts = (_by_subsets if len(masks) <= FEW else _by_slices)(masks)
    counts.histogram[0] = neuron_count - counts.histogram[1:].sum()
    return counts


def occurrence_planes(masks: Sequence[Words]) -> list[Words]:
    """Bit-sliced counters over all masks: plane p holds bit p of each neuron's count."""
    planes: list[Words] = []
    for number, words in enumerate(masks, 1):
        carry = words
        for position, plane in enumerate(planes):
            above = plane & carry
            plane ^= carry
            carry = above
            if 2 << position > number:
                break  # no neuron is in so many masks that more is carried
        if number.bit_length() > len(planes):
            planes.append(carry.copy())
    return planes


def _by_subsets(masks: Sequence[Words]) -> OverlapCounts:
    number = len(masks)
    subsets = range(1, 1 << number)
    # Neurons that at least the masks of a subset contain; then: that exactly those contain.
    at_least = np.zeros(1 << number, dtype=np.int64)
    step = BLOCK // number
    for start in range(0, masks[0].size, step):
        block = [mask[start : start + step] for mask in masks]
        count = _Counter(block[0])
        both: dict[int, Words] = {1 << each: words for each, words in enumerate(block)}
        for subset in subsets:
            lowest = subset & -subset
            if subset != lowest:
                both[subset] = both[subset ^ lowest] & both[lowest]
            at_least[subset] += count.of(both[subset])
    exactly = at_least.copy()
    for each in range(number):
        for subset in subsets:
            if not subset >> each & 1:
                exactly[subset] -= exactly[subset | 1 << each]
    ones = range(number)
    return OverlapCounts(
        exclusive=np.array([exactly[1 << each] for each in ones]),
        shared=np.array([[at_least[1 << one | 1 << other] for other in ones] for one in ones]),
        histogram=np.bincount(
            [subset.bit_count() for subset in subsets], exactly[1:], number + 1
        ).astype(np.int64),
    )


def _by_slices(masks: Sequence[Words]) -> OverlapCounts:
    number = len(masks)
    counts = OverlapCounts(
        exclusive=np.zeros(number, dtype=np.int64),
        shared=np.zeros((number, number), dtype=np.int64),
        histogram=np.zeros(number + 1, dtype=np.int64),
    )
    step = max(1, BLOCK // number)
    for start in range(0, masks[0].size, step):
        block = [mask[start : start + step] for mask in masks]
        count = _Counter(block[0])
        planes = occurrence_planes(block)
        single = planes[0].copy()
        for plane in planes[1:]:
            single &= ~plane
        for one, words in enumerate(block):
            counts.exclusive[one] += count.both(words, single)
            for other in range(one, number):
                counts.shared[one, other] += count.both(words, block[other])
        for members in range(1, number + 1):
            counts.histogram[members] += count.of(_equal_to(members, planes))
    counts.shared[:] += np.triu(counts.shared, 1).T
    return counts


def _equal_to(number: int, planes: Sequence[Words]) -> Words:
    """Neurons whose count is `number`, packed."""
    match = planes[-1] if number >> (len(planes) - 1) & 1 else ~planes[-1]
    for position in reversed(range(len(planes) - 1)):
        plane = planes[position]
        match = match & plane if number >> position & 1 else match & ~plane
    return match


class _Counter:
    """Counts set bits of arrays of one size in memory of its own."""

    def __init__(self, like: Words) -> None:
        self._words = np.empty_like(like)
        self._bits = np.empty(like.size, dtype=np.uint8)

    def of(self, words: Words) -> int:
        """Set bits."""
        np.bitwise_count(words, out=self._bits)
        # A block has fewer bits than uint32 can count.
        return int(self._bits.sum(dtype=np.uint32))

    def both(self, first: Words, second: Words) -> int:
        """Bits set in both."""
        return self.of(np.bitwise_and(first, second, out=self._words))
