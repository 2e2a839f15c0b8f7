"""Decoding kernels compiled by numba: one pass over the bytes, no arrays in between.

Each sets bits in `packed`, a zeroed bitmap of bytes, LSB first, never beyond the layer it decodes,
and returns how many, or -1 for data that cannot be. What is wrong is then said by the numpy path.
"""

from typing import Any

import numba  # type: ignore[import-not-found, import-untyped, unused-ignore]
import numpy as np

# Its types say less than they seem to; what is compiled is checked by numba itself.
njit: Any = numba.njit
types: Any = numba.types

_ESCAPE = 255
# One signature, so that nothing is compiled again for arrays that happen to be writable.
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_LABELS = types.Array(types.int64, 1, "C", readonly=True)
_PACKED = types.Array(types.uint8, 1, "C")


@njit(cache=True, nogil=True)
def _low_bits(low: Any, index: int, shift: int) -> Any:
    value = np.int64(0)
    for offset in range(shift):
        bit = index * shift + offset
        value |= np.int64((low[bit >> 3] >> (bit & 7)) & 1) << offset
    return value


@njit(cache=True, nogil=True)
def _sort_by_class(labels: Any, classes: int) -> Any:
    """(first place of each class and the end, lines sorted by class), a counting sort."""
    starts = np.zeros(classes + 1, dtype=np.int64)
    for label in labels:
        starts[label + 1] += 1
    for label in range(classes):
        starts[label + 1] += starts[label]
    places = starts.copy()
    order = np.empty(labels.size, dtype=np.int64)
    for line in range(labels.size):
        order[places[labels[line]]] = line
        places[labels[line]] += 1
    return starts, order


@njit(cache=True, nogil=True)
def _set_packed(
    packed: Any, data: Any, streams: Any, tops: Any, lefts: Any, rows: Any, columns: Any
) -> Any:
    """Stream 1: one bit for every neuron of its blocks."""
    col_classes = lefts.size - 1
    position = np.int64(0)
    found = 0
    for block in range(streams.size):
        if streams[block] != 1:
            continue
        row_class, col_class = block // col_classes, block % col_classes
        for row in range(tops[row_class], tops[row_class + 1]):
            if position + lefts[col_class + 1] - lefts[col_class] > 8 * data.size:
                return -1
            for col in range(lefts[col_class], lefts[col_class + 1]):
                # No branch: in these blocks either side of one would be taken about as often.
                bit = (data[position >> 3] >> (position & 7)) & 1
                neuron = rows[row] + columns[col]
                packed[neuron >> 3] |= np.uint8(bit << (neuron & 7))
                found += bit
                position += 1
    if data.size != (position + 7) // 8 or (position & 7 and data[-1] >> (position & 7)):
        return -1
    return found


@njit(cache=True, nogil=True)
def _set_stream(
    packed: Any,
    data: Any,
    low: Any,
    shift: int,
    streams: Any,
    stream: int,
    tops: Any,
    lefts: Any,
    rows: Any,
    columns: Any,
) -> Any:
    """One stream of gaps."""
    if data.size and data[-1] == _ESCAPE:
        return -1
    col_classes = lefts.size - 1
    block = -1
    position = np.int64(-1)
    row_start = end = width = row = left = np.int64(0)
    count = 0
    for byte in data:
        position += np.int64(byte) << shift
        if byte == _ESCAPE:
            continue
        if shift:
            if (count + 1) * shift > 8 * low.size:
                return -1
            position += _low_bits(low, count, shift)
        position += 1
        while position >= end:
            block += 1
            while block < streams.size and streams[block] != stream:
                block += 1
            if block >= streams.size:
                return -1
            row_class, col_class = block // col_classes, block % col_classes
            row, left = tops[row_class], lefts[col_class]
            width = lefts[col_class + 1] - left
            row_start = end
            end += width * (tops[row_class + 1] - row)
        col = position - row_start
        if col >= width:
            skipped = col // width
            row += skipped
            row_start += skipped * width
            col -= skipped * width
        neuron = rows[row] + columns[left + col]
        packed[neuron >> 3] |= np.uint8(1 << (neuron & 7))
        count += 1
    return count if low.size == (count * shift + 7) // 8 else -1


@njit(cache=True, nogil=True)
def _set_bytes(packed: Any, data: Any, escape: int, bit_count: int) -> Any:
    """Gaps without a shift: one pass that checks them all, and one with no branch in it."""
    total = np.int64(0)
    members = np.int64(0)
    largest = np.uint8(0)
    for byte in data:
        total += byte
        members += byte != escape
        largest = max(largest, byte)
    if largest > escape or total + members > bit_count:
        return -1
    position = np.int64(-1)
    for byte in data:
        member = np.int64(byte != escape)
        position += byte + member
        packed[position >> 3] |= np.uint8(member << (position & 7))
    return members


@njit(
    types.int64(_PACKED, _BYTES, types.int64, _BYTES, types.int64, types.int64),
    cache=True,
    nogil=True,
)
def set_gaps(packed: Any, data: Any, escape: int, low: Any, shift: int, bit_count: int) -> Any:
    """As `gaps.set_gaps`."""
    if data.size and data[-1] == escape:
        return -1
    if not shift:
        return -1 if low.size else _set_bytes(packed, data, escape, bit_count)
    position = np.int64(-1)
    count = 0
    for byte in data:
        position += np.int64(byte) << shift
        if byte >= escape:
            if byte > escape:
                return -1
            continue
        if (count + 1) * shift > 8 * low.size:
            return -1
        position += _low_bits(low, count, shift) + 1
        if position >= bit_count:
            return -1
        packed[position >> 3] |= np.uint8(1 << (position & 7))
        count += 1
    return count if low.size == (count * shift + 7) // 8 else -1


@njit(
    types.int64(
        _PACKED, _BYTES, _LABELS, _LABELS, types.int64, types.int64, *[_BYTES] * 7, types.int64
    ),
    cache=True,
    nogil=True,
)
def set_members(
    packed: Any,
    streams: Any,
    row_labels: Any,
    col_labels: Any,
    row_classes: int,
    col_classes: int,
    bits: Any,
    gaps_4: Any,
    gaps_8: Any,
    gaps_16: Any,
    gaps_32: Any,
    gaps_64: Any,
    low: Any,
    shift: int,
) -> Any:
    """As `class_.set_members`: all streams of one layer, the last with a shift."""
    tops, rows = _sort_by_class(row_labels, row_classes)
    lefts, columns = _sort_by_class(col_labels, col_classes)
    rows *= col_labels.size
    found = _set_packed(packed, bits, streams, tops, lefts, rows, columns)
    stream = 2
    for data in (gaps_4, gaps_8, gaps_16, gaps_32, gaps_64):
        if found < 0:
            return -1
        mine, by = (low, shift) if stream == 6 else (low[:0], 0)
        count = _set_stream(packed, data, mine, by, streams, stream, tops, lefts, rows, columns)
        found = found + count if count >= 0 else -1
        stream += 1
    return found
