"""What every layout can do, and the columns that layouts of one row a layer share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cones_registry.bitmap import Words
from cones_registry.codec.container import Column, Container, binary_column
from cones_registry.codec.footer import Footer
from cones_registry.codec.planes import GROWTH, decode_factors, encode_factors, plane_names
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.layers import MAX_LAYERS, LayerTable
from cones_registry.mask import ConceptMask

Indices = npt.NDArray[np.int32]


class Layout(Protocol):
    """One way to write the members of a mask. Values of the frozen layout classes are stateless."""

    @property
    def name(self) -> str:
        """What the footer calls it."""
        ...

    def columns(self, mask: ConceptMask) -> dict[str, Column]:
        """The columns of a file that holds `mask`."""
        ...

    def layer_table(self, mask: ConceptMask) -> list[Any] | None:
        """`[[name, rows, cols, members], …]` for the footer, if no column says it."""
        ...

    def contents(self, container: Container) -> "Contents":
        """The table and the counts of a file, without decoding any member."""
        ...

    def decode(self, container: Container, contents: "Contents") -> ConceptMask:
        """The whole mask."""
        ...

    def decode_indices(
        self, container: Container, contents: "Contents", layers: Sequence[int]
    ) -> list[Indices]:
        """Indices of some layers, increasing, without decoding the others."""
        ...


_MOST_TABLES: Final = 16
_TABLES: Final[dict[tuple[bytes, ...], LayerTable]] = {}
"""Bytes of three columns -> the table that was read from them."""


@dataclass(frozen=True)
class Contents:
    """The layer table of a file and the members of each layer, int64 [layers]."""

    table: LayerTable
    counts: npt.NDArray[np.int64]


def layer_columns(mask: ConceptMask) -> dict[str, Column]:
    """Columns `layer`, `rows`, `cols`, `n` of a file with one row a layer."""
    layers = mask.table.layers
    return {
        "layer": Column(pa.array(mask.table.names, pa.string())),
        "rows": Column(pa.array([layer.rows for layer in layers], pa.int32())),
        "cols": Column(pa.array([layer.cols for layer in layers], pa.int32())),
        "n": Column(pa.array(mask.counts.astype(np.int32))),
    }


def read_layer_columns(container: Container) -> Contents:
    """Inverse of `layer_columns`, checked against the footer."""
    if not 0 < container.row_count <= MAX_LAYERS:
        raise CorruptDataError(
            f"the file has {container.row_count} rows, one for each layer; "
            f"expected 1 to {MAX_LAYERS}"
        )
    return check_contents(_read_table(container), container.integers("n"), container.footer)


def _read_table(container: Container) -> LayerTable:
    """The layer table of columns `layer`, `rows`, `cols`.

    Masks of one base model share one table object, so comparing their tables costs nothing; and as
    they were written alike, the bytes of these columns mostly say that they were read before.
    """
    written = tuple(container.raw(name) for name in ("layer", "rows", "cols"))
    table = _TABLES.get(written)
    if table is None:
        rows, cols = (container.integers(name).tolist() for name in ("rows", "cols"))
        table = intern_table(tuple(zip(container.texts("layer"), rows, cols, strict=True)))
        if len(_TABLES) >= _MOST_TABLES:
            _TABLES.clear()
        _TABLES[written] = table
    return table


def check_contents(table: LayerTable, counts: npt.NDArray[Any], footer: Footer) -> Contents:
    """Table and counts, if they agree with each other and with the footer."""
    if table.digest != footer.layer_table_digest or table.neuron_count != footer.table_neuron_count:
        raise CorruptDataError("the layer table is not the one that the footer names")
    counts = counts.astype(np.int64)
    for layer, count in zip(table.layers, counts.tolist(), strict=True):
        if not 0 <= count <= layer.neuron_count:
            raise CorruptDataError(
                f"layer {layer.name!r} claims {count} members of {layer.neuron_count} neurons"
            )
    if int(counts.sum()) != footer.neuron_count:
        raise CorruptDataError(
            f"the layers hold {int(counts.sum())} members; the footer says {footer.neuron_count}"
        )
    return Contents(table, counts)


@lru_cache(maxsize=_MOST_TABLES)
def intern_table(entries: tuple[tuple[Any, ...], ...]) -> LayerTable:
    """The one table of these `(name, rows, cols)`; `CorruptDataError` if they are none."""
    return LayerTable.parse(entries)


def make_mask(
    container: Container,
    contents: Contents,
    words: Words,
    factors: npt.NDArray[Any] | None,
) -> ConceptMask:
    """The mask of decoded words and factors, if the factors are what the footer says."""
    precision = container.footer.precision
    try:
        mask = ConceptMask.trusted(contents.table, words, factors, precision)
    except UsageError as error:
        raise CorruptDataError(f"bad factors: {error}") from error
    if mask.precision != precision:
        raise CorruptDataError(
            f"the footer says precision {precision!r}, but every factor is 0, as in a binary mask"
        )
    return mask


def factor_columns(mask: ConceptMask) -> dict[str, Column]:
    """Factor planes of a file with one row a layer; none for a binary mask."""
    if mask.factors is None:
        return {}
    rows = [encode_factors(mask.layer_factors(n), mask.precision) for n in mask.table.names]
    return {
        name: binary_column([row[plane] for row in rows], growth=GROWTH[mask.precision])
        for plane, name in enumerate(plane_names(mask.precision))
    }


def read_factor_columns(container: Container, contents: Contents) -> npt.NDArray[Any] | None:
    """Factors of all layers, in table order; None for a binary mask."""
    names = plane_names(container.footer.precision)
    if not names:
        return None
    growth = GROWTH[container.footer.precision]
    cells = [container.cells(name, growth=growth) for name in names]
    return np.concatenate(
        [
            decode_factors([plane[row] for plane in cells], count, container.footer.precision)
            for row, count in enumerate(contents.counts.tolist())
        ]
    )
