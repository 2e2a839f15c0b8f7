"""Packed bitmaps: uint64 words, bit i of word w is position 64 * w + i (LSB first)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cones_registry.errors import UsageError

Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

WORD_BITS: Final = 64
_LITTLE: Final = np.dtype("<u8")
_SPARSE: Final = 3
"""Set bits a word up to which taking them one by one is faster than unpacking them (measured)."""
_CHUNK: Final = 1 << 14
"""Words unpacked at a time: working arrays small enough that their memory is not given back to the
system, and fetched page by page from it, each time."""
_KEPT: Final[ContextVar[tuple[Words, Positions] | None]] = ContextVar("kept", default=None)


def word_count(bit_count: int) -> int:
    """Words that hold `bit_count` bits."""
    return -(-bit_count // WORD_BITS)


def check_positions(values: npt.NDArray[Any], bit_count: int) -> Positions:
    """`values` as int64 [n] if they are strictly increasing integers in [0, bit_count).

    Raises:
        UsageError: they are not; the message names the value.
    """
    if values.ndim != 1 or (values.dtype.kind not in "iu" and values.size):
        raise UsageError(f"indices are {values.dtype} {values.shape}; expected integers [n]")
    if values.size == 0:
        return np.empty(0, dtype=np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= bit_count:
        wrong = low if low < 0 else high
        raise UsageError(f"there is no neuron {wrong}; indices run from 0 to {bit_count - 1}")
    positions = values.astype(np.int64)
    steps = np.flatnonzero(positions[1:] <= positions[:-1])
    if steps.size:
        first, second = positions[steps[0] : steps[0] + 2].tolist()
        raise UsageError(
            f"index {second} follows {first}; indices must be strictly increasing. "
            "Sort them and drop repeats"
        )
    return positions


def pack_positions(positions: npt.NDArray[Any], count: int) -> Words:
    """Words with the bits at `positions` set.

    Args:
        positions: integers [n], strictly increasing, in [0, 64 * count).
        count: words to return.
    """
    words = np.zeros(count, dtype=np.uint64)
    if positions.size == 0:
        return words
    word = positions >> 6
    bits = np.left_shift(np.uint64(1), (positions & 63).astype(np.uint64))
    # Sorted positions of one word are neighbours and their bits differ: sum = or.
    starts = np.flatnonzero(np.concatenate(([True], word[1:] != word[:-1])))
    words[word[starts]] = np.add.reduceat(bits, starts)
    return words


@contextmanager
def keep_positions(words: Words) -> Iterator[None]:
    """Unpack `words` once for all in the block, and in this thread, that ask for their positions.

    Not for longer: sorted positions take many times the memory of the words.
    """
    positions = unpack_positions(words)
    positions.flags.writeable = False
    before = _KEPT.set((words, positions))
    try:
        yield
    finally:
        _KEPT.reset(before)


def unpack_positions(words: Words) -> Positions:
    """Positions of the set bits, int64 [n], strictly increasing."""
    kept = _KEPT.get()
    if kept is not None and kept[0] is words:
        return kept[1]
    count = popcount(words)
    if count > _SPARSE * words.size:
        return _unpack_dense_positions(words)
    positions = np.empty(count, dtype=np.int64)
    done = 0
    for start in range(0, words.size, _CHUNK):
        done += _take_bits(words[start : start + _CHUNK], WORD_BITS * start, positions[done:])
    return positions


def _take_bits(words: Words, offset: int, positions: Positions) -> int:
    """Write the positions of the set bits, counted from `offset`; how many there are."""
    used = np.flatnonzero(words != 0)
    if not used.size:
        return 0
    left = words[used]
    starts = WORD_BITS * used + offset
    ends = np.cumsum(np.bitwise_count(left), dtype=np.intp)
    places = np.concatenate(([0], ends[:-1]))
    # One bit of every word a round: few words of a sparse mask have a second one.
    while left.size:
        rest = left & (left - np.uint64(1))
        positions[places] = starts + np.bitwise_count((left ^ rest) - np.uint64(1))
        more = np.flatnonzero(rest != 0)
        left, starts, places = rest[more], starts[more], places[more] + 1
    return int(ends[-1])


def _unpack_dense_positions(words: Words) -> Positions:
    data = words.astype(_LITTLE, copy=False).view(np.uint8)
    used = np.flatnonzero(data != 0)
    bits = np.flatnonzero(np.unpackbits(data[used], bitorder="little").view(np.bool_))
    positions: Positions = (used[bits >> 3] << 3) + (bits & 7)
    return positions


def unpack_runs(words: Words, starts: tuple[int, ...]) -> list[Positions]:
    """Positions of the set bits of each run of words, counted from its start; runs as `popcounts`.

    One pass over all words costs less than one over each run.
    """
    positions = unpack_positions(words)
    firsts = np.array(starts, dtype=np.int64) * WORD_BITS
    ends = np.searchsorted(positions, firsts[1:])
    parts = np.split(positions, ends)
    return [part - first for part, first in zip(parts, firsts, strict=True)]


def pack_dense(flags: npt.NDArray[np.bool_]) -> Words:
    """Words of a flat bool array [n]; bits after the last are zero."""
    packed = np.zeros(word_count(flags.size) * 8, dtype=np.uint8)
    data = np.packbits(flags, bitorder="little")
    packed[: data.size] = data
    return packed.view(_LITTLE).astype(np.uint64, copy=False)


def unpack_dense(words: Words, bit_count: int) -> npt.NDArray[np.bool_]:
    """The first `bit_count` bits as a flat bool array."""
    data = words.astype(_LITTLE, copy=False).view(np.uint8)
    return np.unpackbits(data, count=bit_count, bitorder="little").view(np.bool_)


def popcount(words: Words) -> int:
    """Number of set bits."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def popcounts(words: Words, starts: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Set bits of each run of words; run i is `words[starts[i]:starts[i + 1]]` and not empty."""
    return np.add.reduceat(np.bitwise_count(words), starts, dtype=np.int64)


def contains(words: Words, positions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Whether each of `positions` is set, bool [n]."""
    shift = (positions & 63).astype(np.uint64)
    found: npt.NDArray[np.bool_] = ((words[positions >> 6] >> shift) & np.uint64(1)) != 0
    return found
