"""Layout `class`: rows and columns grouped by density, and every block coded by its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from cones_registry.bitmap import unpack_positions
from cones_registry.codec.blocks import Blocks
from cones_registry.codec.cells import Cell
from cones_registry.codec.clusters import MAX_SIDE, Clusters, find_clusters
from cones_registry.codec.container import Column, Container, binary_column
from cones_registry.codec.gaps import (
    ESCAPE,
    MAX_SHIFT,
    Bytes,
    Gaps,
    Positions,
    best_shift,
    encode_gaps,
)
from cones_registry.codec.kernels import compiled_kernels
from cones_registry.codec.labels import pack_labels, read_clusters
from cones_registry.codec.layout import (
    Contents,
    Indices,
    factor_columns,
    layer_columns,
    make_mask,
    read_factor_columns,
    read_layer_columns,
)
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.layers import Layer, LayerTable
from cones_registry.mask import ConceptMask

STREAMS: Final = ("bits", "gaps_4", "gaps_8", "gaps_16", "gaps_32", "gaps_64")
"""Stream 1: packed bits of blocks denser than one in four; 2, 3, …: gaps, by their mean."""

_EMPTY: Final = 0
_BITS: Final = 1
_LAST: Final = len(STREAMS)
_TABLES: Final = ("blocks", "row_classes", "col_classes")


@dataclass(frozen=True)
class Class:
    """Columns `layer, rows, cols, n, blocks, row_classes, col_classes`, `low` and the `STREAMS`.

    The neurons of all blocks of one stream form one sequence (see `blocks.py`); the stream holds
    which of them are members.
    """

    name: ClassVar[str] = "class"

    def columns(self, mask: ConceptMask) -> dict[str, Column]:
        """The columns of a file that holds `mask`."""
        if not fits_classes(mask.table):
            raise UsageError(
                f"layout 'class' takes layers of at most {MAX_SIDE} rows and columns. "
                "Choose 'gap8' or 'plain'"
            )
        cells: dict[str, list[bytes]] = {name: [] for name in (*_TABLES, "low", *STREAMS)}
        for layer in mask.table.layers:
            for name, cell in _encode_layer(mask, layer).items():
                cells[name].append(cell)
        columns = layer_columns(mask)
        for name, column in cells.items():
            # Every file has the tables; a stream that no layer uses has no column.
            if name in _TABLES or any(column):
                columns[name] = binary_column(
                    column, compressed=name != "low", extra_bytes=mask.table.neuron_count // 8
                )
        return columns | factor_columns(mask)

    def layer_table(self, mask: ConceptMask) -> list[Any] | None:
        """None: the columns say it."""
        return None

    def contents(self, container: Container) -> Contents:
        """The table and the counts of a file, without decoding any member."""
        return read_layer_columns(container)

    def decode(self, container: Container, contents: Contents) -> ConceptMask:
        """The whole mask."""
        cells = _read_cells(container, contents)
        table = contents.table
        packed = np.zeros(table.word_count * 8, dtype=np.uint8)
        for position, start in enumerate(table.word_starts):
            _decode_layer(packed[start * 8 :], cells, contents, position)
        words = packed.view("<u8").astype(np.uint64, copy=False)
        return make_mask(container, contents, words, read_factor_columns(container, contents))

    def decode_indices(
        self, container: Container, contents: Contents, layers: Sequence[int]
    ) -> list[Indices]:
        """Indices of some layers, increasing; blocks are sorted by way of a bitmap."""
        cells, found = _read_cells(container, contents), []
        for position in layers:
            packed = np.zeros(contents.table.layers[position].word_count * 8, dtype=np.uint8)
            _decode_layer(packed, cells, contents, position)
            words = packed.view("<u8").astype(np.uint64, copy=False)
            found.append(unpack_positions(words).astype(np.int32))
        return found


def fits_classes(table: LayerTable) -> bool:
    """Whether the layers of a table are small enough for this layout."""
    return all(max(layer.rows, layer.cols) <= MAX_SIDE for layer in table.layers)


def _encode_layer(mask: ConceptMask, layer: Layer) -> dict[str, bytes]:
    rows, cols = np.divmod(mask.indices(layer.name).astype(np.int64), layer.cols)
    clusters = find_clusters(rows, cols, (layer.rows, layer.cols))
    blocks = Blocks(clusters, _choose_streams(rows, cols, clusters))
    dense = mask.to_dense(layer.name)
    shift, cells = 0, {"low": b""}
    for stream, name in enumerate(STREAMS, start=1):
        flags = blocks.flags(stream, dense)
        if stream == _BITS:
            cells[name] = np.packbits(flags, bitorder="little").tobytes()
            continue
        members = np.flatnonzero(flags)
        if stream == _LAST:
            shift = best_shift(len(members), len(flags))
        gaps = encode_gaps(members, shift)
        cells[name] = gaps.data.tobytes()
        cells["low"] += gaps.low.tobytes()
    header = bytes((clusters.row_classes, clusters.col_classes, shift))
    cells["blocks"] = header + blocks.streams.tobytes()
    cells["row_classes"] = pack_labels(clusters.rows, clusters.row_classes)
    cells["col_classes"] = pack_labels(clusters.cols, clusters.col_classes)
    return cells


def _choose_streams(rows: Positions, cols: Positions, clusters: Clusters) -> npt.NDArray[np.uint8]:
    """Stream of each block, uint8 [row classes * column classes], by its density."""
    count = clusters.row_classes * clusters.col_classes
    numbers = clusters.rows[rows] * clusters.col_classes + clusters.cols[cols]
    members = np.bincount(numbers, minlength=count)
    heights = np.bincount(clusters.rows, minlength=clusters.row_classes)
    widths = np.bincount(clusters.cols, minlength=clusters.col_classes)
    mean_gaps = np.outer(heights, widths).reshape(-1) / np.maximum(members, 1)
    octaves = np.floor(np.log2(mean_gaps)).astype(np.int64)
    return np.where(members > 0, np.clip(octaves, _BITS, _LAST), _EMPTY).astype(np.uint8)


def _read_cells(container: Container, contents: Contents) -> dict[str, list[Cell]]:
    names = [*_TABLES, *(name for name in ("low", *STREAMS) if name in container)]
    bitmap_bytes = contents.table.neuron_count // 8
    return {name: container.cells(name, extra_bytes=bitmap_bytes) for name in names}


def _decode_layer(
    packed: Bytes, cells: dict[str, list[Cell]], contents: Contents, position: int
) -> None:
    """Set the bits of one layer in `packed`, which starts with it and is zero there."""
    layer = contents.table.layers[position]
    nothing = np.empty(0, dtype=np.uint8)
    mine = dict.fromkeys((*STREAMS, "low"), nothing)
    mine |= {name: column[position] for name, column in cells.items()}
    try:
        blocks, shift = _read_blocks(mine, layer)
        gaps = tuple(mine[name] for name in STREAMS[1:])
        count = set_members(packed, blocks, mine[STREAMS[0]], gaps, mine["low"], shift)
        if count != contents.counts[position]:
            raise CorruptDataError(
                f"the blocks hold {count} members; the row says {contents.counts[position]}"
            )
    except CorruptDataError as error:
        raise CorruptDataError(f"layer {layer.name!r}: {error}") from None


def set_members(
    packed: Bytes, blocks: Blocks, bits: Bytes, gaps: tuple[Bytes, ...], low: Bytes, shift: int
) -> int:
    """Set the bits of all members of one layer in `packed`, which is zero there; return how many.

    Args:
        packed: uint8, a bitmap that starts with the layer.
        blocks: the blocks of the layer.
        bits, gaps: the first stream, and the others.
        low, shift: low bits of the last stream.
    """
    compiled = compiled_kernels(len(bits) + sum(len(stream) for stream in gaps))
    if compiled:
        clusters = blocks.clusters
        labels = clusters.rows, clusters.cols, clusters.row_classes, clusters.col_classes
        count = int(compiled.set_members(packed, blocks.streams, *labels, bits, *gaps, low, shift))
        if count >= 0:
            return count
        # Something is wrong with them: begin again, and say what.
        packed[: -(-len(clusters.rows) * len(clusters.cols) // 8)] = 0
    count = blocks.set_bits(packed, _BITS, bits)
    for stream, data in enumerate(gaps, start=_BITS + 1):
        last = stream == _LAST
        members = int(np.count_nonzero(data != ESCAPE))
        part = Gaps(data, low if last else low[:0], shift if last else 0, members)
        count += blocks.set_gaps(packed, stream, part)
    return count


def _read_blocks(cells: dict[str, Cell], layer: Layer) -> tuple[Blocks, int]:
    """The blocks of one layer, and the shift of its last stream."""
    head = cells["blocks"]
    clusters = read_clusters(head, cells["row_classes"], cells["col_classes"], layer)
    shift, streams = int(head[2]) if len(head) > 2 else 0, head[3:]
    count = clusters.row_classes * clusters.col_classes
    if len(streams) != count or (streams > _LAST).any() or shift > MAX_SHIFT:
        raise CorruptDataError("the table of blocks does not give every block one of the streams")
    return Blocks(clusters, streams), shift
