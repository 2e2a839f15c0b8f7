"""Sketches: a few bytes that say about how much two masks have in common, without either mask.

One-permutation MinHash: the neurons of a layer table are shuffled once, the same for every mask,
and cut into buckets; of each bucket the first member is kept. Two masks have the same first member
in a bucket about as often as their Jaccard index says. Only a few bits of a hash of each are
stored; members that differ then look equal at a known rate, which the estimate takes out again.

Sources: Li, Owen, Zhang, One Permutation Hashing (NIPS 2012); Li, König, b-Bit Minwise Hashing
(WWW 2010); Shrivastava, Optimal Densification (ICML 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cones_registry.bitmap import contains, unpack_positions
from cones_registry.mask import ConceptMask

_NONE: Final = -1
_ROUNDS: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Odd factors of the permutation, those of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""


@dataclass(frozen=True)
class SketchFormat:
    """How sketches are made; only sketches of one format and one layer table can be compared.

    Attributes:
        buckets: a power of two, at least 64.
        bits: of the hash of each bucket's first member.
    """

    buckets: int
    bits: int

    @property
    def byte_count(self) -> int:
        """Bytes of a sketch."""
        return self.buckets * self.bits // 8

    def sketch(self, mask: ConceptMask) -> bytes:
        """The sketch of a mask's members; empty for the empty mask, which is like no other.

        Bit-sliced: plane p, `buckets / 8` bytes, holds bit p of every bucket, LSB first.
        """
        if not len(mask):
            return b""
        first = self.first_members(mask)
        empty = np.flatnonzero(first == _NONE)
        filled = first.copy()
        attempt = 0
        while empty.size:
            # A bucket without a member takes that of another one, the same one for every mask.
            attempt += 1
            lender = _mix(empty.astype(np.uint64) + np.uint64(attempt * self.buckets))
            filled[empty] = first[(lender % np.uint64(self.buckets)).astype(np.intp)]
            empty = empty[filled[empty] == _NONE]
        shifts = np.arange(self.bits, dtype=np.uint64)[:, None]
        planes = ((_mix(filled.astype(np.uint64)) >> shifts) & np.uint64(1)).astype(np.uint8)
        return np.packbits(planes, axis=1, bitorder="little").tobytes()

    def first_members(self, mask: ConceptMask) -> npt.NDArray[np.int64]:
        """The first member of each bucket, int64 [buckets]; -1 where a bucket has none.

        Neurons are counted in bits of the mask's packed words.
        """
        shuffle = _Shuffle.over(64 * mask.words.size, self.buckets)
        # Walking through the buckets finds a member after so many steps on average.
        steps = shuffle.size / max(len(mask), 1)
        if self.buckets * steps < len(mask):
            return self._walked(mask, shuffle, 2 * int(steps))
        return self._sorted(mask, shuffle)

    def _sorted(self, mask: ConceptMask, shuffle: _Shuffle) -> npt.NDArray[np.int64]:
        """By shuffling every member: for masks of few."""
        places = shuffle.places(unpack_positions(mask.words))
        first = np.full(self.buckets, shuffle.size, dtype=np.int64)
        np.minimum.at(first, places // (shuffle.size // self.buckets), places)
        return np.where(first < shuffle.size, shuffle.neurons(first), _NONE)

    def _walked(self, mask: ConceptMask, shuffle: _Shuffle, stride: int) -> npt.NDArray[np.int64]:
        """By looking through each bucket from its start: for masks of many."""
        length = shuffle.size // self.buckets
        first = np.full(self.buckets, _NONE, dtype=np.int64)
        open_buckets = np.arange(self.buckets)
        start = 0
        while open_buckets.size and start < length:
            offsets = np.arange(start, min(start + stride, length))
            neurons = shuffle.neurons(open_buckets[:, None] * length + offsets)
            inside = neurons < 64 * mask.words.size
            members = inside & contains(mask.words, np.where(inside, neurons, 0))
            found = members.any(axis=1)
            first[open_buckets[found]] = neurons[found, members[found].argmax(axis=1)]
            open_buckets = open_buckets[~found]
            start += stride
            stride *= 2
        return first

    def estimates(self, query: bytes, others: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """About the Jaccard index of one mask with many.

        Args:
            query: sketch of the one.
            others: sketches of the many, uint8 [n, byte_count], C-contiguous.

        Returns:
            float64 [n] in [0, 1]. The standard error is `error` of the true index.
        """
        words = np.frombuffer(query, dtype="<u8").reshape(1, self.bits, -1)
        rows = others.view("<u8").reshape(len(others), self.bits, -1)
        found = np.empty(len(others))
        # A step at a time stays in the processor's cache.
        for start in range(0, len(others), 1024):
            differ = rows[start : start + 1024] ^ words
            different = differ[:, 0]
            for plane in range(1, self.bits):
                different |= differ[:, plane]
            found[start : start + 1024] = np.bitwise_count(different).sum(axis=1, dtype=np.int64)
        by_chance = 2.0**-self.bits
        matching = 1 - found / self.buckets
        estimates: npt.NDArray[np.float64] = (matching - by_chance) / (1 - by_chance)
        return estimates.clip(0, 1)

    def error(self, jaccard: float) -> float:
        """Standard error of an estimate of masks whose Jaccard index is `jaccard`."""
        by_chance = 2.0**-self.bits
        matching = by_chance + (1 - by_chance) * jaccard
        return float(np.sqrt(matching * (1 - matching) / self.buckets)) / (1 - by_chance)


@dataclass(frozen=True)
class _Shuffle:
    """A permutation of 0 … 2^width - 1: twice a multiplication, then the high bits onto the low."""

    width: int

    @classmethod
    def over(cls, count: int, buckets: int) -> _Shuffle:
        """A permutation of at least `count` values, and of enough for all buckets."""
        return cls(max(count - 1, buckets - 1).bit_length())

    @property
    def size(self) -> int:
        """Values it permutes."""
        return 1 << self.width

    def places(self, neurons: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each neuron comes to stand."""
        values = neurons.astype(np.uint64)
        for factor in _ROUNDS:
            values *= np.uint64(factor)
            values &= np.uint64(self.size - 1)
            values ^= values >> self._half
        return values.astype(np.int64)

    def neurons(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Inverse of `places`."""
        values = places.astype(np.uint64)
        for factor in reversed(_ROUNDS):
            # Shifting by half of the bits or more is undone by doing it again.
            values ^= values >> self._half
            values *= np.uint64(pow(factor, -1, 1 << 64))
            values &= np.uint64(self.size - 1)
        return values.astype(np.int64)

    @property
    def _half(self) -> np.uint64:
        return np.uint64((self.width + 1) // 2)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of each value, uint64: the last steps of SplitMix64."""
    mixed = values * np.uint64(_ROUNDS[0])
    for shift, factor in ((30, _ROUNDS[1]), (27, _ROUNDS[2])):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


FORMAT: Final = SketchFormat(buckets=512, bits=4)
"""Sketches of the catalogue: 256 bytes a concept."""
