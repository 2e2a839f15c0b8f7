"""The Parquet container: how columns and a footer become one file, and how they come out again.

Nothing is decompressed before the headers of its pages were found to be within bounds: no
allocation is larger than 64 times the file plus one bit for every neuron of the layer table.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cones_registry.codec.cells import Cell, page_content, read_cells, read_integers, to_text
from cones_registry.codec.footer import FOOTER_KEY, LONG_KEY, Footer
from cones_registry.codec.parquet import MAX_METADATA_BYTES, ColumnChunk, Page, ParquetMetadata
from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError

ZSTD_LEVEL: Final = 1
"""Level 3 and 9 gain at most 0.9 % and lose up to 5 % at 10 % density."""
MAX_EXPANSION: Final = 64
"""A column never decompresses to more than this times the file (plus a bit for each neuron)."""

_LARGEST_PAGE: Final = 2**31 - 1
_WRITER: Final = b"parquet-cpp-arrow version "
_CREATED_BY: Final = 0x18
_CREATED_AS: Final = b"cones-registry"
_MAX_CONTAINER: Final = 4096
_PHYSICAL: Final = {
    pa.string(): "BYTE_ARRAY",
    pa.int32(): "INT32",
    pa.float32(): "FLOAT",
}


@dataclass(frozen=True)
class Column:
    """One column to be written.

    Attributes:
        values: Arrow array without nulls.
        encoding: a Parquet encoding; "RLE_DICTIONARY" for a dictionary.
        compressed: whether its pages go through zstd.
        extra_bytes: what readers grant this column beyond `MAX_EXPANSION` times the file.
        growth: bytes in memory that readers make of each of its bytes.
    """

    values: pa.Array
    encoding: str = "PLAIN"
    compressed: bool = True
    extra_bytes: int = 0
    growth: int = 1

    def fits(self, limit: int) -> bool:
        """Whether readers would decompress this column, from a file that allows `limit` bytes."""
        return not self.compressed or self.values.nbytes <= limit // self.growth + self.extra_bytes


def write_container(columns: Mapping[str, Column], footer: Footer) -> bytes:
    """A Parquet file with one row group; pages carry a CRC-32, there are no statistics.

    Args:
        columns: name -> column, all of one length.
        footer: written under the key `cones`.
    """
    data = _write(columns, footer)
    # A column that shrinks by more than any reader will expand again is written as it is.
    limit = MAX_EXPANSION * len(data)
    if not all(column.fits(limit) for column in columns.values()):
        columns = {
            name: column if column.fits(limit) else replace(column, compressed=False)
            for name, column in columns.items()
        }
        data = _write(columns, footer)
    return data


def _write(columns: Mapping[str, Column], footer: Footer) -> bytes:
    fields = [pa.field(n, column.values.type, nullable=False) for n, column in columns.items()]
    table = pa.table([column.values for column in columns.values()], schema=pa.schema(fields))
    dictionaries = [n for n, c in columns.items() if c.encoding == "RLE_DICTIONARY"]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression={n: "zstd" if c.compressed else "none" for n, c in columns.items()},
        compression_level={n: ZSTD_LEVEL for n, c in columns.items() if c.compressed},
        use_dictionary=dictionaries or False,
        column_encoding={
            n: c.encoding for n, c in columns.items() if c.encoding != "RLE_DICTIONARY"
        },
        data_page_size=_LARGEST_PAGE,
        max_rows_per_page=_LARGEST_PAGE,
        # Minimum and maximum of a column of gaps are gaps: 2.8 % of the file for nothing.
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=max(1, len(table)))
        texts = footer.to_metadata().items()
        writer.add_key_value_metadata({key.decode(): text.decode() for key, text in texts})
    return _without_writer(bytes(sink.getvalue()))


def _without_writer(data: bytes) -> bytes:
    """The same file without the version of the library that wrote it.

    One mask is one object, whichever version of pyarrow writes it. ``created_by`` is field 6 of
    the metadata: a byte for field and type, the length in a byte, the text.
    """
    start = data.rfind(_WRITER)
    if start < 2 or data[start - 2] != _CREATED_BY or data[start - 1] >= 0x80:
        return data
    end = start + data[start - 1]
    length = int.from_bytes(data[-8:-4], "little") - data[start - 1] + len(_CREATED_AS)
    metadata = data[: start - 1] + bytes([len(_CREATED_AS)]) + _CREATED_AS + data[end:-8]
    return metadata + length.to_bytes(4, "little") + data[-4:]


def binary_column(
    cells: Sequence[bytes], *, compressed: bool = True, extra_bytes: int = 0, growth: int = 1
) -> Column:
    """A BINARY column; its lengths stand apart from its bytes, so zstd is not disturbed by them."""
    values = pa.array(cells, pa.binary())
    return Column(values, "DELTA_LENGTH_BYTE_ARRAY", compressed, extra_bytes, growth)


@contextmanager
def translate_arrow_errors() -> Iterator[None]:
    """Whatever Arrow says about bytes it cannot read becomes a `CorruptDataError`."""
    try:
        yield
    except CorruptDataError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        raise CorruptDataError(
            f"not a readable Parquet file: {quote(str(error))}. Fetch or write it again"
        ) from error


class Container:
    """One opened mask file: its footer, and its columns on demand.

    Raises:
        CorruptDataError: not Parquet, no footer of this format, or damaged.
    """

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B")
        self._metadata = ParquetMetadata(self._view)
        footer = self._metadata.key_value(FOOTER_KEY)
        if footer is None:
            raise CorruptDataError(
                "a Parquet file, but not a mask: its metadata has no key 'cones'"
            )
        self.footer = Footer.parse(footer, self._metadata.key_value(LONG_KEY))

    @property
    def byte_count(self) -> int:
        """Bytes of the file."""
        return len(self._view)

    @property
    def row_count(self) -> int:
        """Rows of the file."""
        return self._metadata.row_count

    @property
    def largest_page(self) -> int:
        """Bytes a page may take when decompressed, before the layer table is known."""
        return MAX_EXPANSION * len(self._view)

    def __contains__(self, name: str) -> bool:
        return name in self._metadata.columns

    def raw(self, name: str) -> bytes:
        """A column as it is written, headers, checksums and all; empty if there is none."""
        column = self._metadata.columns.get(name)
        return b"" if column is None else bytes(self._view[column.start : column.end])

    def integers(self, name: str) -> npt.NDArray[np.int32]:
        """A whole INT32 column."""
        parts = [
            read_integers(content, page)
            for content, page in self._pages(name, "INT32", self.largest_page)
        ]
        return np.concatenate([np.empty(0, dtype=np.int32), *parts])

    def cells(self, name: str, *, extra_bytes: int = 0, growth: int = 1) -> list[Cell]:
        """A whole BYTE_ARRAY column, each value uint8 [length].

        Args:
            name: the column.
            extra_bytes: what a page may take beyond `largest_page` when decompressed.
            growth: bytes that the caller makes of each of its bytes.
        """
        pages = self._pages(name, "BYTE_ARRAY", self.largest_page // growth + extra_bytes)
        return [cell for content, page in pages for cell in read_cells(content, page)]

    def texts(self, name: str) -> list[str]:
        """A whole column of UTF-8 text."""
        return [to_text(cell) for cell in self.cells(name)]

    def batches(
        self, types: Mapping[str, pa.DataType], rows: int, *, dictionaries: Sequence[str] = ()
    ) -> Iterator[dict[str, pa.Array]]:
        """Columns read by Arrow, at most `rows` rows at a time.

        Args:
            types: column name -> string, int32 or float32.
            rows: rows at a time.
            dictionaries: columns that are to come as dictionary arrays.
        """
        for name, kind in types.items():
            self._check(name, _PHYSICAL[kind], self.largest_page)
        with translate_arrow_errors():
            file = pq.ParquetFile(
                pa.BufferReader(pa.py_buffer(self._view)),
                page_checksum_verification=True,
                read_dictionary=list(dictionaries),
                thrift_string_size_limit=MAX_METADATA_BYTES,
                thrift_container_size_limit=_MAX_CONTAINER,
            )
            for batch in file.iter_batches(rows, columns=list(types), use_threads=False):
                arrays = {name: batch.column(name) for name in types}
                _check_types(arrays, types)
                yield arrays

    def _pages(self, name: str, kind: str, largest_page: int) -> Iterator[tuple[memoryview, Page]]:
        """Content of the pages of a column, decompressed one at a time."""
        column, pages = self._check(name, kind, largest_page)
        for page in pages:
            yield page_content(self._view, column, page), page

    def _check(self, name: str, kind: str, largest_page: int) -> tuple[ColumnChunk, list[Page]]:
        """Check the type and every page header of a column that is about to be read."""
        column = self._metadata.columns.get(name)
        if column is None:
            raise CorruptDataError(
                f"the file has no column {name!r}; layout {self.footer.layout!r} needs it"
            )
        if column.physical_type != kind:
            raise CorruptDataError(f"column {name!r} is {column.physical_type}; expected {kind}")
        pages = list(self._metadata.pages(column))
        for page in pages:
            if page.byte_count > largest_page:
                raise CorruptDataError(
                    f"a page of column {name!r} claims {page.byte_count} bytes; "
                    f"a file of {len(self._view)} bytes cannot need that many"
                )
        values = sum(page.value_count for page in pages if page.is_data)
        if values != self.row_count:
            raise CorruptDataError(
                f"the pages of column {name!r} hold {values} values; "
                f"the file has {self.row_count} rows"
            )
        return column, pages


def _check_types(arrays: Mapping[str, pa.Array], types: Mapping[str, pa.DataType]) -> None:
    """The same bytes can be called a date or a text: Arrow must have read what was asked for."""
    for name, array in arrays.items():
        kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        if kind != types[name]:
            raise CorruptDataError(f"column {name!r} holds {kind}; expected {types[name]}")
