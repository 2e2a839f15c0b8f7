"""What a Parquet file says of its columns and pages, checked before a Parquet reader sees it.

Field numbers and enumerations are those of parquet.thrift. A mask file is a narrow kind of Parquet:
one row group, flat required columns, version 1 pages with a CRC-32, zstd or no compression.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

from cones_registry.codec.thrift import Struct, ThriftReader
from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError

MAGIC: Final = b"PAR1"
MAX_METADATA_BYTES: Final = 4 << 20

_TYPES: Final = {1: "INT32", 4: "FLOAT", 6: "BYTE_ARRAY"}
_REQUIRED: Final = 0
_UNCOMPRESSED: Final = 0
_ZSTD: Final = 6
_PAGE_DETAILS: Final = {0: 5, 2: 7}
"""Page type (data, dictionary) -> field of `PageHeader` with its details."""
_DATA_PAGE: Final = 0
_LARGEST_PAGE: Final = 2**31 - 1

Value = TypeVar("Value", int, bytes, "list[Any]", "dict[int, Any]")


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """Where one column lies: bytes `[start, end)` of the file; its physical type; zstd or not."""

    name: str
    physical_type: str
    is_compressed: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its kind, values, decompressed size, content `[start, end)` and CRC-32."""

    is_data: bool
    value_count: int
    encoding: int
    byte_count: int
    start: int
    end: int
    checksum: int


class ParquetMetadata:
    """The metadata at the end of a Parquet file.

    Raises:
        CorruptDataError: not a Parquet file, damaged, or another kind than mask files are.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        size = len(data)
        if size < 12 or bytes(data[:4]) != MAGIC or bytes(data[-4:]) != MAGIC:
            raise CorruptDataError(
                f"not a mask file: {size} bytes that do not start and end with 'PAR1'. "
                "Expected the Parquet file that `encode` or `save_file` wrote"
            )
        length = int.from_bytes(data[-8:-4], "little")
        if length > MAX_METADATA_BYTES:
            raise CorruptDataError(
                f"the metadata claims {length} bytes; at most {MAX_METADATA_BYTES} are read"
            )
        self.start = size - 8 - length
        if self.start < 4:
            raise CorruptDataError("the file is cut off: its metadata would start before its data")
        self._fields = ThriftReader(data, self.start, size - 8).struct()
        if 8 in self._fields or 9 in self._fields:
            raise CorruptDataError("the file is encrypted; mask files are not")

    def key_value(self, key: bytes) -> bytes | None:
        """The value kept under `key`, or None."""
        for pair in _get(self._fields, 5, list) if 5 in self._fields else ():
            if _struct(pair).get(1) == key:
                return _get(pair, 2, bytes)
        return None

    @cached_property
    def row_count(self) -> int:
        """Rows of the file."""
        return _get(self._fields, 3, int)

    @cached_property
    def columns(self) -> dict[str, ColumnChunk]:
        """Column name -> where it lies. Empty for a file without a row group."""
        leaves = self._leaves()
        groups = _get(self._fields, 4, list)
        if len(groups) > 1:
            raise CorruptDataError(f"the file has {len(groups)} row groups; expected one")
        if not groups:
            if self.row_count:
                raise CorruptDataError(f"the file has {self.row_count} rows but no row group")
            return {}
        chunks = _get(_struct(groups[0]), 1, list)
        if len(chunks) != len(leaves) or _get(groups[0], 3, int) != self.row_count:
            raise CorruptDataError("the row group does not have the file's columns and rows")
        return {
            name: self._chunk(name, kind, _struct(chunk))
            for (name, kind), chunk in zip(leaves.items(), chunks, strict=True)
        }

    def _leaves(self) -> dict[str, str]:
        """Column name -> physical type. Every column is flat and required."""
        root, *elements = _get(self._fields, 2, list) or [{}]
        if _get(_struct(root), 5, int) != len(elements):
            raise CorruptDataError("the schema is nested; expected flat columns")
        leaves: dict[str, str] = {}
        for element in elements:
            name = _get(_struct(element), 4, bytes).decode("utf-8", "replace")
            if 5 in element or element.get(3) != _REQUIRED:
                raise CorruptDataError(
                    f"column {quote(name)} is optional, nested or repeated; expected required"
                )
            if name in leaves:
                raise CorruptDataError(f"the file has two columns {quote(name)}")
            leaves[name] = _type_name(element)
        return leaves

    def _chunk(self, name: str, kind: str, chunk: Struct) -> ColumnChunk:
        details = _get(chunk, 3, dict)
        if chunk.keys() & {1, 8, 9}:
            raise CorruptDataError(f"column {quote(name)} lies in another file, or is encrypted")
        if details.get(3) != [name.encode()] or _type_name(details) != kind:
            raise CorruptDataError(f"column {quote(name)} is not the one that the schema names")
        if _get(details, 4, int) not in (_UNCOMPRESSED, _ZSTD):
            raise CorruptDataError(
                f"column {quote(name)} is compressed with codec {details[4]}; expected zstd or none"
            )
        if _get(details, 5, int) != self.row_count:
            raise CorruptDataError(
                f"column {quote(name)} holds {details[5]} values; "
                f"the file has {self.row_count} rows"
            )
        # A column without rows has no pages, and offsets that mean nothing.
        if not self.row_count:
            return ColumnChunk(name, kind, False, 4, 4)
        start = _get(details, 9, int)
        if 11 in details:
            start = min(start, _get(details, 11, int))
        end = start + _get(details, 7, int)
        if not 4 <= start <= end <= self.start:
            raise CorruptDataError(f"column {quote(name)} lies outside the file")
        return ColumnChunk(name, kind, details[4] == _ZSTD, start, end)

    def pages(self, column: ColumnChunk) -> Iterator[Page]:
        """The pages of a column, which fill it exactly."""
        position = column.start
        while position < column.end:
            reader = ThriftReader(self._data, position, column.end)
            header = reader.struct()
            kind = _get(header, 1, int)
            if kind not in _PAGE_DETAILS:
                raise CorruptDataError(
                    f"column {quote(column.name)} has a page of type {kind}; "
                    "expected data and dictionary pages of version 1"
                )
            details = _get(header, _PAGE_DETAILS[kind], dict)
            if 4 not in header:
                raise CorruptDataError(f"a page of column {quote(column.name)} has no checksum")
            page = Page(
                is_data=kind == _DATA_PAGE,
                value_count=_get(details, 1, int),
                encoding=_get(details, 2, int),
                byte_count=_get(header, 2, int),
                start=reader.position,
                end=reader.position + _get(header, 3, int),
                checksum=_get(header, 4, int) & 0xFFFFFFFF,
            )
            if not page.start <= page.end <= column.end:
                raise CorruptDataError(
                    f"a page of column {quote(column.name)} claims {header[3]} bytes, "
                    "more than its column has"
                )
            if not 0 <= page.byte_count <= _LARGEST_PAGE or page.value_count < 0:
                raise CorruptDataError(f"a page of column {quote(column.name)} has sizes below 0")
            position = page.end
            yield page


def _get(fields: Struct, number: int, kind: type[Value]) -> Value:
    value = fields.get(number)
    if type(value) is not kind:
        raise CorruptDataError(f"the metadata lacks field {number}, or it is of another type")
    return value


def _type_name(fields: Struct) -> str:
    kind = _get(fields, 1, int)
    return _TYPES.get(kind, f"type {kind}")


def _struct(value: Any) -> Struct:
    if not isinstance(value, dict):
        raise CorruptDataError("the metadata holds something else where a struct was expected")
    return value
