"""Gaps: a sorted set of positions as one byte each.

Byte b < 255 stands for a position, b positions skipped since the one before; 255 skips 255
positions and stands for none. At a width of w < 8 bits 2**w - 1 takes the place of 255, and no byte
is greater. With a shift s a byte counts steps of 2**s, and the low s bits of every gap are kept
apart, bit-packed, LSB first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cones_registry.codec.kernels import compiled_kernels
from cones_registry.errors import CorruptDataError

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

ESCAPE: Final = 255
MAX_SHIFT: Final = 24
WIDTHS: Final = range(4, 9)
_CHUNK: Final = 1 << 13
"""Bytes decoded at a time: working arrays of 64 KiB, less than 64 times the smallest file."""
_LARGEST_MEAN: Final = 160
"""Mean gap above which a shift pays (measured: best at a shifted mean of 80 to 160)."""
_LARGEST_ESCAPE: Final = 7
"""Mean gaps beyond which bytes are so rare that their places in a Huffman table of at most 11 bits
(zstd) cost more than skips in their stead (measured: best at 3 to 7 mean gaps)."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """Encoded positions: gap bytes, packed low bits, shift, number of positions, bits of a byte."""

    data: Bytes
    low: Bytes
    shift: int
    count: int
    width: int = 8

    @property
    def escape(self) -> int:
        """The byte that skips and stands for no position."""
        return (1 << self.width) - 1


def best_shift(count: int, bit_count: int) -> int:
    """The shift that codes `count` positions in `bit_count` smallest, if they are spread evenly."""
    shift = 0
    while count and shift < MAX_SHIFT and bit_count > (count << shift) * _LARGEST_MEAN:
        shift += 1
    return shift


def best_width(count: int, bit_count: int) -> int:
    """The width that codes `count` positions in `bit_count` smallest, if they are spread evenly."""
    fitting = [width for width in WIDTHS if count << width <= _LARGEST_ESCAPE * bit_count]
    return max(fitting, default=WIDTHS[0])


def encode_gaps(
    positions: npt.NDArray[np.integer[Any]], shift: int = 0, width: int = WIDTHS[-1]
) -> Gaps:
    """Gaps of strictly increasing positions."""
    escape = (1 << width) - 1
    gaps = positions.copy()
    gaps[1:] -= positions[:-1] + 1
    high = gaps >> shift if shift else gaps
    skips = high // escape
    ends = np.cumsum(skips) + np.arange(len(skips))
    data = np.full(int(ends[-1]) + 1 if len(ends) else 0, escape, dtype=np.uint8)
    data[ends] = high - skips * escape
    low = _pack_low(gaps & ((1 << shift) - 1), shift) if shift else data[:0]
    return Gaps(data, low, shift, len(positions), width)


def decode_gaps(gaps: Gaps, bit_count: int) -> Iterator[Positions]:
    """Positions, strictly increasing in [0, bit_count), a chunk at a time.

    Raises:
        CorruptDataError: a position of `bit_count` or beyond, more or fewer positions than
            `gaps.count`, or a skip at the end that leads nowhere.
    """
    for reached, live in _walk(gaps, bit_count):
        yield reached[live]


def set_gaps(packed: Bytes, gaps: Gaps, bit_count: int) -> None:
    """Set the bits at the positions of `gaps` in a zeroed bitmap of bytes; as `decode_gaps`."""
    compiled = compiled_kernels(len(gaps.data))
    if compiled:
        parts = gaps.data, gaps.escape, gaps.low, gaps.shift
        if compiled.set_gaps(packed, *parts, bit_count) == gaps.count:
            return
        # Something is wrong with them: begin again, and say what.
        packed[: -(-bit_count // 8)] = 0
    for reached, live in _walk(gaps, bit_count):
        # A skip adds no bit: cheaper than leaving it out.
        _add_bits(packed, reached, live.view(np.uint8))


def set_bits(packed: Bytes, positions: Positions) -> None:
    """Set the bits at distinct `positions` in a bitmap of bytes where they are 0, LSB first."""
    _add_bits(packed, positions, np.uint8(1))


def _add_bits(packed: Bytes, positions: Positions, bits: Bytes | np.uint8) -> None:
    values = np.left_shift(bits, positions.astype(np.uint8) & 7)
    # Distinct bits: adding is or-ing, and `add.at` is the one with a fast loop.
    np.add.at(packed, positions >> 3, values)


def _walk(gaps: Gaps, bit_count: int) -> Iterator[tuple[Positions, npt.NDArray[np.bool_]]]:
    """(position reached, whether it is a member) of every byte, a chunk at a time."""
    low = _LowBits(gaps)
    data, previous, done = gaps.data, -1, 0
    if len(data) and data.max() > gaps.escape:
        raise CorruptDataError(f"a gap of {data.max()}; {gaps.width} bits hold {gaps.escape}")
    if len(data) and data[-1] == gaps.escape:
        raise CorruptDataError("the gaps end with a skip that leads to no index")
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        live = chunk != gaps.escape
        count = int(np.count_nonzero(live))
        if done + count > gaps.count:
            raise CorruptDataError(f"the gaps hold more than {gaps.count} indices")
        if gaps.shift == 0:
            # In uint8 on purpose: 254 + 1 and 255 + 0 both fit.
            reached = np.cumsum(chunk + live, dtype=np.int64)
        else:
            steps = chunk.astype(np.int64) << gaps.shift
            steps[live] += low.take(done, count) + 1
            reached = np.cumsum(steps)
        reached += previous
        previous = int(reached[-1])
        if previous >= bit_count:
            raise CorruptDataError(
                f"the gaps lead to index {previous}; indices run from 0 to {bit_count - 1}"
            )
        done += count
        yield reached, live
    if done != gaps.count:
        raise CorruptDataError(f"the gaps hold {done} indices; the row says {gaps.count}")


def _pack_low(values: npt.NDArray[np.integer[Any]], shift: int) -> Bytes:
    planes = (values[:, None] >> np.arange(shift)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")


class _LowBits:
    """The low bits of all gaps, read some at a time."""

    def __init__(self, gaps: Gaps) -> None:
        bit_count = gaps.count * gaps.shift
        if len(gaps.low) != -(-bit_count // 8):
            raise CorruptDataError(
                f"the low bits take {len(gaps.low)} bytes; {gaps.count} indices "
                f"of {gaps.shift} low bits need {-(-bit_count // 8)}"
            )
        self._shift = gaps.shift
        # A value of up to 24 bits begins within a byte: it lies in four.
        self._data = np.concatenate([gaps.low, np.zeros(3, dtype=np.uint8)])

    def take(self, start: int, count: int) -> Positions:
        """Values `start` to `start + count`, int64 [count]."""
        bits = np.arange(start, start + count, dtype=np.int64) * self._shift
        values = np.zeros(count, dtype=np.int64)
        for byte in range(4):
            values |= self._data[(bits >> 3) + byte].astype(np.int64) << (8 * byte)
        values >>= bits & 7
        values &= (1 << self._shift) - 1
        return values
