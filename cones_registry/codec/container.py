"""The Parquet container: how columns and a footer become one file, and how they come out again.

Nothing is decompressed before the headers of its pages were found to be within bounds: no
allocation is larger than 64 times the file plus one bit for every neuron of the layer table.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cones_registry.codec.footer import FOOTER_KEY, Footer
from cones_registry.codec.parquet import MAX_METADATA_BYTES, ParquetMetadata
from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError

ZSTD_LEVEL: Final = 1
"""Level 3 and 9 gain at most 0.9 % and lose up to 5 % at 10 % density."""
MAX_EXPANSION: Final = 64
"""A column never decompresses to more than this times the file (plus a bit for each neuron)."""

_LARGEST_PAGE: Final = 2**31 - 1
_MAX_CONTAINER: Final = 4096
_PHYSICAL: Final = {
    pa.string(): "BYTE_ARRAY",
    pa.binary(): "BYTE_ARRAY",
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
    """

    values: pa.Array
    encoding: str = "PLAIN"
    compressed: bool = True
    extra_bytes: int = 0

    def fits(self, limit: int) -> bool:
        """Whether readers would decompress this column, from a file that allows `limit` bytes."""
        return not self.compressed or self.values.nbytes <= limit + self.extra_bytes


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
        writer.add_key_value_metadata({FOOTER_KEY.decode(): footer.to_bytes().decode()})
    return bytes(sink.getvalue())


def binary_column(
    cells: Sequence[bytes], *, compressed: bool = True, extra_bytes: int = 0
) -> Column:
    """A BINARY column; its lengths stand apart from its bytes, so zstd is not disturbed by them."""
    values = pa.array(cells, pa.binary())
    return Column(values, "DELTA_LENGTH_BYTE_ARRAY", compressed, extra_bytes)


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
        self.footer = Footer.parse(footer)

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

    def read(self, types: Mapping[str, pa.DataType], *, largest_page: int) -> dict[str, pa.Array]:
        """Whole columns.

        Args:
            types: column name -> string, binary, int32 or float.
            largest_page: bytes that any one page may take when decompressed.
        """
        self._check(types, largest_page)
        with translate_arrow_errors():
            table = self._file.read(columns=list(types), use_threads=False)
            arrays = {name: table.column(name).combine_chunks() for name in types}
        _check_types(arrays, types)
        return arrays

    def batches(
        self, types: Mapping[str, pa.DataType], rows: int, *, dictionaries: Sequence[str] = ()
    ) -> Iterator[dict[str, pa.Array]]:
        """Columns, at most `rows` rows at a time; those in `dictionaries` as dictionary arrays."""
        self._check(types, self.largest_page)
        with translate_arrow_errors():
            file = self._open(read_dictionary=list(dictionaries))
            for batch in file.iter_batches(rows, columns=list(types), use_threads=False):
                arrays = {name: batch.column(name) for name in types}
                _check_types(arrays, types)
                yield arrays

    def _check(self, types: Mapping[str, pa.DataType], largest_page: int) -> None:
        """Check the type and every page header of the columns that are about to be read."""
        for name, kind in types.items():
            column = self._metadata.columns.get(name)
            if column is None:
                raise CorruptDataError(
                    f"the file has no column {name!r}; layout {self.footer.layout!r} needs it"
                )
            if column.physical_type != _PHYSICAL[kind]:
                raise CorruptDataError(
                    f"column {name!r} is {column.physical_type}; expected {_PHYSICAL[kind]}"
                )
            values = 0
            for page in self._metadata.pages(column):
                if page.byte_count > largest_page:
                    raise CorruptDataError(
                        f"a page of column {name!r} claims {page.byte_count} bytes; "
                        f"a file of {len(self._view)} bytes cannot need that many"
                    )
                values += page.value_count if page.is_data else 0
            if values != self.row_count:
                raise CorruptDataError(
                    f"the pages of column {name!r} hold {values} values; "
                    f"the file has {self.row_count} rows"
                )

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return self._open()

    def _open(self, **options: Any) -> pq.ParquetFile:
        return pq.ParquetFile(
            pa.BufferReader(pa.py_buffer(self._view)),
            page_checksum_verification=True,
            thrift_string_size_limit=MAX_METADATA_BYTES,
            thrift_container_size_limit=_MAX_CONTAINER,
            **options,
        )


def _check_types(arrays: Mapping[str, pa.Array], types: Mapping[str, pa.DataType]) -> None:
    """The same bytes can be called a date or a text: Arrow must have read what was asked for."""
    for name, array in arrays.items():
        kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        if kind != types[name]:
            raise CorruptDataError(f"column {name!r} holds {kind}; expected {types[name]}")


def integers(array: pa.Array) -> npt.NDArray[np.int32]:
    """An int32 column as numpy, without a copy."""
    with translate_arrow_errors():
        values: npt.NDArray[np.int32] = array.to_numpy(zero_copy_only=True)
    return values


def texts(array: pa.Array) -> list[str]:
    """A string column as Python strings."""
    with translate_arrow_errors():
        array.validate(full=True)
        values: list[str] = array.to_pylist()
    return values


class Cells:
    """A BINARY column as a sequence of uint8 arrays, without a copy."""

    def __init__(self, array: pa.Array) -> None:
        buffers = array.buffers()
        offsets = np.frombuffer(buffers[1], dtype=np.int32)
        self._offsets = offsets[array.offset : array.offset + len(array) + 1]
        data: Any = buffers[2] if buffers[2] is not None else b""
        self._data = np.frombuffer(data, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        return self._data[self._offsets[row] : self._offsets[row + 1]]
