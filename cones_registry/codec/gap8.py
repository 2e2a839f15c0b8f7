"""Layout `gap8`: one row a layer, one byte a member."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cones_registry.bitmap import unpack_positions, unpack_runs
from cones_registry.codec.container import Column, Container, binary_column
from cones_registry.codec.gaps import (
    MAX_SHIFT,
    WIDTHS,
    Gaps,
    best_shift,
    best_width,
    decode_gaps,
    encode_gaps,
    set_gaps,
)
from cones_registry.codec.layout import (
    Contents,
    Indices,
    factor_columns,
    layer_columns,
    make_mask,
    read_factor_columns,
    read_layer_columns,
)
from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError
from cones_registry.layers import Layer, LayerTable
from cones_registry.mask import ConceptMask

Result = TypeVar("Result")

_BITMAP: Final = "bitmap"
_GAPS: Final = {
    f"gap{width}:{shift}".removesuffix(":0"): (width, shift)
    for width in WIDTHS
    for shift in range(MAX_SHIFT + 1)
}
"""Encoding -> width of a gap and shift."""


@dataclass(frozen=True)
class Gap8:
    """Columns `layer, rows, cols, n, encoding, gaps`, and `low` where a shift pays.

    `encoding` says for each layer what its cell of `gaps` holds: "gap8" (see `gaps.py`); "gap6",
    the same at a width of 6; "gap8:3", with a shift of 3, whose low bits are in `low`; or "bitmap",
    the packed bits themselves, where gaps would take more bytes than those.
    """

    name: ClassVar[str] = "gap8"

    def columns(self, mask: ConceptMask) -> dict[str, Column]:
        """The columns of a file that holds `mask`."""
        encodings, cells, lows = [], [], []
        members = unpack_runs(mask.words, mask.table.word_starts)
        for layer, positions in zip(mask.table.layers, members, strict=True):
            evenly = positions.size, layer.neuron_count
            gaps = encode_gaps(positions, best_shift(*evenly), best_width(*evenly))
            if len(gaps.data) > _bitmap_bytes(layer):
                words = mask.layer_words(layer.name).astype("<u8", copy=False)
                encodings.append(_BITMAP)
                cells.append(words.view(np.uint8)[: _bitmap_bytes(layer)].tobytes())
                lows.append(b"")
            else:
                encodings.append(_to_encoding(gaps))
                cells.append(gaps.data.tobytes())
                lows.append(gaps.low.tobytes())
        columns = layer_columns(mask)
        columns["encoding"] = Column(pa.array(encodings, pa.string()))
        if any(lows):
            columns["low"] = binary_column(lows, compressed=False)
        columns["gaps"] = binary_column(cells, extra_bytes=_all_bitmaps(mask.table))
        return columns | factor_columns(mask)

    def layer_table(self, mask: ConceptMask) -> list[Any] | None:
        """None: the columns say it."""
        return None

    def contents(self, container: Container) -> Contents:
        """The table and the counts of a file, without decoding any member."""
        return read_layer_columns(container)

    def decode(self, container: Container, contents: Contents) -> ConceptMask:
        """The whole mask."""
        rows = _Rows(container, contents)
        table = contents.table
        packed = np.empty(table.word_count * 8, dtype=np.uint8)
        starts = [8 * start for start in (*table.word_starts, table.word_count)]

        def decode_layer(position: int) -> None:
            layer = packed[starts[position] : starts[position + 1]]
            layer.fill(0)  # here rather than all before: so it is still in the processor's cache
            rows.decode_into(layer, position)

        rows.each(decode_layer, range(len(table.layers)))
        words = packed.view("<u8").astype(np.uint64, copy=False)
        return make_mask(container, contents, words, read_factor_columns(container, contents))

    def decode_indices(
        self, container: Container, contents: Contents, layers: Sequence[int]
    ) -> list[Indices]:
        """Indices of some layers, increasing, without a bitmap in between."""
        rows = _Rows(container, contents)
        return rows.each(rows.indices, layers)


class _Rows:
    """The cells of one file."""

    def __init__(self, container: Container, contents: Contents) -> None:
        self._contents = contents
        self._encodings = container.texts("encoding")
        # `Gap8.columns` never writes a cell larger than the layer's bitmap.
        self._gaps = container.cells("gaps", extra_bytes=_all_bitmaps(contents.table))
        self._lows = container.cells("low") if "low" in container else None

    def each(self, work: Callable[[int], Result], positions: Iterable[int]) -> list[Result]:
        """What `work` makes of some layers; whatever is wrong in one is said with its name."""
        found: list[Result] = []
        position = 0
        try:
            for position in positions:
                found.append(work(position))
        except CorruptDataError as error:
            layer = self._contents.table.layers[position]
            raise CorruptDataError(f"layer {layer.name!r}: {error}") from None
        return found

    def decode_into(self, packed: npt.NDArray[np.uint8], position: int) -> None:
        """Set the bits of one layer in `packed`, which starts with it and is zero there."""
        if self._encodings[position] == _BITMAP:
            cell = self._bitmap(position)
            packed[: len(cell)] = cell
        else:
            layer = self._contents.table.layers[position]
            set_gaps(packed, self._coded(position), layer.neuron_count)

    def indices(self, position: int) -> Indices:
        """Indices of one layer, increasing."""
        layer = self._contents.table.layers[position]
        if self._encodings[position] == _BITMAP:
            packed = np.zeros(layer.word_count * 8, dtype=np.uint8)
            self.decode_into(packed, position)
            return unpack_positions(packed.view("<u8")).astype(np.int32)
        parts = decode_gaps(self._coded(position), layer.neuron_count)
        return np.concatenate(
            [np.empty(0, dtype=np.int32), *(part.astype(np.int32) for part in parts)]
        )

    def _coded(self, position: int) -> Gaps:
        """The gaps of one layer."""
        width, shift = _parse_encoding(self._encodings[position])
        cell, count = self._gaps[position], int(self._contents.counts[position])
        low = cell[:0] if self._lows is None else self._lows[position]
        return Gaps(cell, low, shift, count, width)

    def _bitmap(self, position: int) -> npt.NDArray[np.uint8]:
        """The bitmap of one layer."""
        cell, layer = self._gaps[position], self._contents.table.layers[position]
        if len(cell) != _bitmap_bytes(layer):
            raise CorruptDataError(
                f"the bitmap takes {len(cell)} bytes; {layer.neuron_count} neurons "
                f"need {_bitmap_bytes(layer)}"
            )
        used = layer.neuron_count % 8
        if used and int(cell[-1]) >> used:
            raise CorruptDataError("the bitmap has bits set beyond the last neuron")
        count = int(self._contents.counts[position])
        found = int(np.bitwise_count(cell).sum(dtype=np.int64))
        if found != count:
            raise CorruptDataError(f"the bitmap holds {found} members; the row says {count}")
        return cell


def _to_encoding(gaps: Gaps) -> str:
    return f"gap{gaps.width}:{gaps.shift}".removesuffix(":0")


def _parse_encoding(encoding: str) -> tuple[int, int]:
    if encoding not in _GAPS:
        raise CorruptDataError(
            f"unknown encoding {quote(encoding)}; this version reads {_BITMAP!r}, "
            f"'gap{WIDTHS[0]}' to 'gap{WIDTHS[-1]}' and those with a shift, "
            f"'gap8:1' to 'gap8:{MAX_SHIFT}'. Upgrade cones-registry"
        )
    return _GAPS[encoding]


def _all_bitmaps(table: LayerTable) -> int:
    """Bytes of the packed bits of all layers, and of the lengths a reader keeps beside them."""
    return sum(_bitmap_bytes(layer) + 8 for layer in table.layers)


def _bitmap_bytes(layer: Layer) -> int:
    return -(-layer.neuron_count // 8)
