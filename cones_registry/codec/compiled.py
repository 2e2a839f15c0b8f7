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
# Indices are unsigned: numba counts an index that may be negative from the end, which costs a
# branch at every access. Mixed with a signed number they would become floats.
_Index = np.uint64
_ONE, _THREE, _SEVEN = _Index(1), _Index(3), _Index(7)
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
def _sort_by_class(labels: Any, classes: int, step: Any) -> Any:
    """(first place of each class and the end, `step` * each line sorted by class)."""
    starts = np.zeros(classes + 1, dtype=_Index)
    for label in labels:
        starts[_Index(label) + _ONE] += _ONE
    for label in range(classes):
        starts[label + 1] += starts[label]
    places = starts.copy()
    order = np.empty(labels.size, dtype=_Index)
    for line in range(labels.size):
        label = _Index(labels[line])
        order[places[label]] = _Index(line) * step
        places[label] += _ONE
    return starts, order


@njit(cache=True, nogil=True)
def _set_packed(
    packed: Any, data: Any, streams: Any, tops: Any, lefts: Any, rows: Any, columns: Any
) -> Any:
    """Stream 1: one bit for every neuron of its blocks."""
    col_classes = lefts.size - 1
    position = found = _Index(0)
    for block in range(streams.size):
        if streams[block] != 1:
            continue
        row_class, col_class = block // col_classes, block % col_classes
        left, right = lefts[col_class], lefts[col_class + 1]
        for row in range(tops[row_class], tops[row_class + 1]):
            if position + right - left > _Index(8 * data.size):
                return -1
            row_start = rows[row]
            for col in range(left, right):
                # No branch: in these blocks either side of one would be taken about as often.
                bit = (data[position >> _THREE] >> (position & _SEVEN)) & 1
                neuron = row_start + columns[col]
                packed[neuron >> _THREE] |= np.uint8(bit << (neuron & _SEVEN))
                found += _Index(bit)
                position += _ONE
    used = position & _SEVEN
    if _Index(data.size) != (position + _SEVEN) >> _THREE or (used and data[-1] >> used):
        return -1
    return np.int64(found)


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
    # Of the sequence: where the next member would be at the earliest, where row and block end.
    position = row_end = end = _Index(0)
    row = right = width = _Index(0)
    count = 0
    for byte in data:
        position += _Index(byte) << _Index(shift)
        if byte == _ESCAPE:
            continue
        if shift:
            if (count + 1) * shift > 8 * low.size:
                return -1
            position += _Index(_low_bits(low, count, shift))
        if position >= row_end:
            while position >= end:
                block += 1
                while block < streams.size and streams[block] != stream:
                    block += 1
                if block >= streams.size:
                    return -1
                row_class, col_class = block // col_classes, block % col_classes
                row, right = tops[row_class], lefts[col_class + 1]
                width = right - lefts[col_class]
                row_end = end + width
                end += width * (tops[row_class + 1] - row)
            # Mostly a row or two: quicker than to divide.
            while position >= row_end:
                row += _ONE
                row_end += width
        neuron = rows[row] + columns[right - (row_end - position)]
        packed[neuron >> _THREE] |= np.uint8(1) << (neuron & _SEVEN)
        position += _ONE
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
    position = _Index(0) - _ONE  # wraps, and comes back with the first byte
    for byte in data:
        member = _Index(byte != escape)
        position += _Index(byte) + member
        packed[position >> _THREE] |= np.uint8(member << (position & _SEVEN))
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
    end = _Index(0)
    count = 0
    for byte in data:
        end += _Index(byte) << _Index(shift)
        if byte >= escape:
            if byte > escape:
                return -1
            continue
        if (count + 1) * shift > 8 * low.size:
            return -1
        position = end + _Index(_low_bits(low, count, shift))
        if position >= _Index(bit_count):
            return -1
        packed[position >> _THREE] |= np.uint8(1) << (position & _SEVEN)
        end = position + _ONE
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
    tops, rows = _sort_by_class(row_labels, row_classes, _Index(col_labels.size))
    lefts, columns = _sort_by_class(col_labels, col_classes, _ONE)
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
