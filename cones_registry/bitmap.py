"""Packed bitmaps: uint64 words, bit i of word w is position 64 * w + i (LSB first)."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cones_registry.errors import UsageError

Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

WORD_BITS: Final = 64
_LITTLE: Final = np.dtype("<u8")


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


def unpack_positions(words: Words) -> Positions:
    """Positions of the set bits, int64 [n], strictly increasing."""
    data = words.astype(_LITTLE, copy=False).view(np.uint8)
    # Masks are sparse: unpacking only bytes that are not zero is many times faster.
    used = np.flatnonzero(data != 0)
    bits = np.flatnonzero(np.unpackbits(data[used], bitorder="little").view(np.bool_))
    positions: Positions = (used[bits >> 3] << 3) + (bits & 7)
    return positions


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
