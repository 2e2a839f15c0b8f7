"""Layout `plain`: one row a member, for SQL without a decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cones_registry.codec.container import Column, Container
from cones_registry.codec.gaps import set_bits
from cones_registry.codec.layout import (
    Contents,
    Indices,
    check_contents,
    intern_table,
    make_mask,
)
from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError
from cones_registry.layers import MAX_LAYERS
from cones_registry.mask import ConceptMask

_LARGEST_BATCH: Final = 1 << 16
_SMALLEST_BATCH: Final = 1 << 10


@dataclass(frozen=True)
class Plain:
    """Columns `layer, index [, factor]`, in table order, then index order.

    Layers without members have no row, so the footer carries the layer table. `factor` is float32
    whatever the precision.
    """

    name: ClassVar[str] = "plain"

    def columns(self, mask: ConceptMask) -> dict[str, Column]:
        """The columns of a file that holds `mask`."""
        rows = np.repeat(np.arange(len(mask.table), dtype=np.int32), mask.counts)
        layers = pa.DictionaryArray.from_arrays(rows, pa.array(mask.table.names, pa.string()))
        indices = [mask.indices(name) for name in mask.table.names]
        columns = {
            "layer": Column(layers, "RLE_DICTIONARY"),
            "index": Column(pa.array(np.concatenate(indices)), "DELTA_BINARY_PACKED"),
        }
        if mask.factors is not None:
            factors = pa.array(mask.factors.astype(np.float32))
            columns["factor"] = Column(factors, "BYTE_STREAM_SPLIT")
        return columns

    def layer_table(self, mask: ConceptMask) -> list[Any] | None:
        """`[[name, rows, cols, members], …]`."""
        counts = mask.counts.tolist()
        return [
            [layer.name, layer.rows, layer.cols, count]
            for layer, count in zip(mask.table.layers, counts, strict=True)
        ]

    def contents(self, container: Container) -> Contents:
        """The table and the counts of a file, without decoding any member."""
        entries = container.footer.layer_table
        if not entries or len(entries) > MAX_LAYERS:
            raise CorruptDataError(
                f"layout 'plain' needs 1 to {MAX_LAYERS} layers under 'layer_table' in the footer"
            )
        for entry in entries:
            if not isinstance(entry, list) or [type(part) for part in entry] != [
                str,
                int,
                int,
                int,
            ]:
                raise CorruptDataError(
                    f"layer_table must hold [name, rows, cols, members], got {quote(entry)}"
                )
        # Python numbers have no bound; a count that int64 cannot hold is wrong whatever it is.
        counts = np.array([min(max(entry[3], -1), 2**62) for entry in entries], dtype=np.int64)
        table = intern_table(tuple(tuple(entry[:3]) for entry in entries))
        contents = check_contents(table, counts, container.footer)
        if container.row_count != container.footer.neuron_count:
            raise CorruptDataError(
                f"the file has {container.row_count} rows; "
                f"the footer says {container.footer.neuron_count} members"
            )
        return contents

    def decode(self, container: Container, contents: Contents) -> ConceptMask:
        """The whole mask."""
        table = contents.table
        packed = np.zeros(table.word_count * 8, dtype=np.uint8)
        starts = np.array(table.word_starts, dtype=np.int64) * 64
        factors = []
        for positions, rows, values in _batches(container, contents):
            set_bits(packed, positions + starts[rows])
            factors.append(values)
        words = packed.view("<u8").astype(np.uint64, copy=False)
        graded = np.concatenate(factors) if factors and "factor" in container else None
        return make_mask(container, contents, words, graded)

    def decode_indices(
        self, container: Container, contents: Contents, layers: Sequence[int]
    ) -> list[Indices]:
        """Indices of some layers. All rows are read: a plain file has no index of its layers."""
        parts = [positions.astype(np.int32) for positions, _, _ in _batches(container, contents)]
        index = np.concatenate([np.empty(0, dtype=np.int32), *parts])
        each = np.split(index, np.cumsum(contents.counts)[:-1])
        return [each[position] for position in layers]


def _batches(container: Container, contents: Contents) -> Any:
    """(index int64 [n], layer position int64 [n], factor float32 [n]) of the next rows, checked."""
    if not container.row_count:
        return  # Parquet writes no page for a column of no rows.
    types = {"layer": pa.string(), "index": pa.int32()}
    if container.footer.precision != "binary":
        types["factor"] = pa.float32()
    ends = np.cumsum(contents.counts)
    sizes = np.array([layer.neuron_count for layer in contents.table.layers])
    done, last_row, last_index = 0, -1, -1
    size = min(max(container.byte_count, _SMALLEST_BATCH), _LARGEST_BATCH)
    for batch in container.batches(types, size, dictionaries=["layer"]):
        index = batch["index"].to_numpy().astype(np.int64)
        rows = np.searchsorted(ends, np.arange(done, done + len(index)), side="right")
        _check_layers(batch["layer"], rows, contents)
        wrong = np.flatnonzero((index < 0) | (index >= sizes[rows]))
        if wrong.size:
            raise CorruptDataError(
                f"row {done + wrong[0]} holds index {index[wrong[0]]}, which its layer has not"
            )
        # One number that grows from row to row: layer first, then index.
        order = np.diff(rows, prepend=last_row) * 2**32 + np.diff(index, prepend=last_index)
        if (order <= 0).any():
            raise CorruptDataError(
                "the rows are not in strictly increasing order of layer and index"
            )
        done, last_row, last_index = done + len(index), int(rows[-1]), int(index[-1])
        yield index, rows, batch["factor"].to_numpy() if "factor" in batch else None


def _check_layers(names: pa.Array, rows: npt.NDArray[np.int64], contents: Contents) -> None:
    """Whether the layer named in each row is the one that the footer's counts put there."""
    expected = {name: position for position, name in enumerate(contents.table.names)}
    dictionary = [expected.get(name, -1) for name in names.dictionary.to_pylist()]
    entries = names.indices.to_numpy()
    # Arrow does not look whether the dictionary has the entries that are asked for.
    known = len(entries) == 0 or 0 <= entries.min() <= entries.max() < len(dictionary)
    found = np.array(dictionary, dtype=np.int64)[entries] if known else None
    if found is None or not np.array_equal(found, rows):
        raise CorruptDataError("the column 'layer' does not agree with the footer's layer table")
