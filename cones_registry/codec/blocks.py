"""Blocks: the rows of one class by the columns of another, and the streams that hold their members.

A stream is one sequence: the neurons of all its blocks, block by block (by row class, then column
class), row by row in each. What is stored says which positions of the sequence are members.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from cones_registry.codec.clusters import Clusters
from cones_registry.codec.gaps import Bytes, Gaps, Positions, decode_gaps, set_bits
from cones_registry.errors import CorruptDataError

_CHUNK: Final = 1 << 10
"""Bytes of packed bits unpacked at a time."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of one layer: class of each row and column, and the stream of each block.

    Attributes:
        clusters: class of each row and column.
        streams: uint8 [row classes * column classes], row class first.
    """

    clusters: Clusters
    streams: Bytes

    @cached_property
    def _heights(self) -> Positions:
        return np.bincount(self.clusters.rows, minlength=self.clusters.row_classes)

    @cached_property
    def _widths(self) -> Positions:
        return np.bincount(self.clusters.cols, minlength=self.clusters.col_classes)

    @cached_property
    def _tops(self) -> Positions:
        return np.cumsum(self._heights) - self._heights

    @cached_property
    def _lefts(self) -> Positions:
        return np.cumsum(self._widths) - self._widths

    @cached_property
    def _row_offsets(self) -> Positions:
        """Index of the first neuron of each row, rows sorted by class."""
        return np.argsort(self.clusters.rows, kind="stable") * len(self.clusters.cols)

    @cached_property
    def _columns(self) -> Positions:
        """Columns sorted by class."""
        return np.argsort(self.clusters.cols, kind="stable")

    def _of(self, stream: int) -> list[tuple[int, int]]:
        """(row class, column class) of each block of a stream."""
        numbers = np.flatnonzero(self.streams == stream).tolist()
        return [divmod(number, self.clusters.col_classes) for number in numbers]

    def size(self, stream: int) -> int:
        """Neurons in the sequence of a stream."""
        return int(sum(self._heights[row] * self._widths[col] for row, col in self._of(stream)))

    def flags(self, stream: int, dense: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which neurons of a stream's sequence are members, bool [size]."""
        rows, cols = self.clusters.rows, self.clusters.cols
        parts = [dense[rows == row][:, cols == col].reshape(-1) for row, col in self._of(stream)]
        return np.concatenate([np.empty(0, dtype=np.bool_), *parts])

    def neurons(self, stream: int, positions: Positions) -> Positions:
        """Index in the layer of each position in a stream's sequence; positions increase."""
        found = np.empty_like(positions)
        start = low = 0
        for row_class, col_class in self._of(stream):
            width = int(self._widths[col_class])
            end = start + width * int(self._heights[row_class])
            high = int(np.searchsorted(positions, end))
            if high > low:
                col = positions[low:high] - start
                row = col // width
                col -= row * width
                row += self._tops[row_class]
                col += self._lefts[col_class]
                np.add(self._row_offsets[row], self._columns[col], out=found[low:high])
            start, low = end, high
        return found

    def set_gaps(self, packed: Bytes, stream: int, gaps: Gaps) -> int:
        """Set the bits of the neurons at the positions of `gaps`; raises as `decode_gaps`."""
        return self._set(packed, stream, decode_gaps(gaps, self.size(stream)))

    def set_bits(self, packed: Bytes, stream: int, data: Bytes) -> int:
        """Set the bits of the neurons at the set bits of `data`, LSB first.

        Raises:
            CorruptDataError: more or fewer bytes than the sequence needs, or bits beyond its end.
        """
        size = self.size(stream)
        if len(data) != -(-size // 8) or (size % 8 and int(data[-1]) >> size % 8):
            raise CorruptDataError(f"{size} neurons in {len(data)} bytes of packed bits")
        return self._set(packed, stream, _unpack(data))

    def _set(self, packed: Bytes, stream: int, chunks: Iterable[Positions]) -> int:
        count = 0
        for positions in chunks:
            set_bits(packed, self.neurons(stream, positions))
            count += len(positions)
        return count


def _unpack(data: Bytes) -> Iterator[Positions]:
    for start in range(0, len(data), _CHUNK):
        flags = np.unpackbits(data[start : start + _CHUNK], bitorder="little")
        yield np.flatnonzero(flags) + start * 8
