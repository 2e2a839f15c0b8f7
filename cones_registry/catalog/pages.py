"""What the Parquet parts of a run may hold, checked before anything is allocated for it.

A footer and the head of each page say how much memory a Parquet reader takes. A hostile file says
gigabytes in a few bytes: a page that inflates, a level that repeats, a long value in a dictionary
that every line names. So only what this package writes is let through: flat columns and lists of
text, pages of version 1, zstd or nothing, plain or dictionary encoding, within bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cones_registry.codec.thrift import ThriftReader
from cones_registry.errors import CorruptDataError

MAX_GROUP_ROWS: Final = 65_536
MAX_GROUPS: Final = 4096
MAX_COLUMNS: Final = 200
MAX_PAGE_BYTES: Final = 64 * 2**20
MAX_GROUP_BYTES: Final = 128 * 2**20
"""Of all pages of a row group, decompressed."""

MAX_LIST_VALUES: Final = 4 * 2**20
"""Values of a list column in a row group."""

_COMPRESSIONS: Final = frozenset(("ZSTD", "UNCOMPRESSED"))
_ENCODINGS: Final = frozenset((0, 2, 3, 8))
"""PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY: no value grows out of the one before."""

_DATA, _DICTIONARY = 0, 2
_DETAILS: Final = {_DATA: 5, _DICTIONARY: 7}
"""Page type -> field of `PageHeader` with its details."""


def check_footer(metadata: Any, source: str) -> None:
    """`CorruptDataError` unless a file's metadata stays within bounds."""
    if not 0 < metadata.num_row_groups <= MAX_GROUPS or metadata.num_columns > MAX_COLUMNS:
        raise CorruptDataError(
            f"{source} has {metadata.num_row_groups} row groups of {metadata.num_columns} columns"
        )


def check_group(
    metadata: Any, index: int, view: Callable[[int, int], memoryview], source: str
) -> None:
    """`CorruptDataError` unless every page of a row group stays within bounds.

    Args:
        metadata: of the file.
        index: of the row group.
        view: bytes `[start, end)` of the file.
        source: what it is, for messages.
    """
    group = metadata.row_group(index)
    if not 0 < group.num_rows <= MAX_GROUP_ROWS:
        raise CorruptDataError(f"{source} has a row group of {group.num_rows} lines")
    left = MAX_GROUP_BYTES
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.compression not in _COMPRESSIONS or chunk.file_path:
            raise CorruptDataError(f"{source} is compressed with {chunk.compression}")
        is_list = metadata.schema.column(number).max_repetition_level > 0
        values = chunk.num_values
        if not (0 <= values <= MAX_LIST_VALUES if is_list else values == group.num_rows):
            raise CorruptDataError(
                f"{source} says {values} values of {group.num_rows} lines in one column"
            )
        left -= _check_pages(chunk, view, source, left)


def _check_pages(chunk: Any, view: Callable[[int, int], memoryview], source: str, left: int) -> int:
    """Decompressed bytes of a column's pages, which fill it exactly; at most `left`."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page:
        start = min(start, chunk.dictionary_page_offset)
    size = chunk.total_compressed_size
    if not 4 <= start < start + size < 2**40:
        raise CorruptDataError(f"a column of {source} lies nowhere")
    data = view(start, start + size)
    if len(data) != size:
        raise CorruptDataError(f"a column of {source} ends outside of it")
    position = values = total = 0
    while position < size:
        reader = ThriftReader(data, position, size)
        header = reader.struct()
        kind, inflated, packed = header.get(1), header.get(2), header.get(3)
        details = header.get(_DETAILS.get(kind, -1)) if isinstance(kind, int) else None
        if (
            not isinstance(details, dict)
            or type(inflated) is not int
            or type(packed) is not int
            or not 0 <= inflated <= MAX_PAGE_BYTES
            or not 0 <= packed <= size - reader.position
        ):
            raise CorruptDataError(f"{source} has a page that cannot be: {inflated} bytes")
        count, encoding = details.get(1), details.get(2)
        if type(count) is not int or count < 0 or encoding not in _ENCODINGS:
            raise CorruptDataError(f"{source} has a page of {count} values, encoding {encoding}")
        if kind == _DATA:
            values += count
        elif position or not chunk.has_dictionary_page or count > MAX_GROUP_ROWS:
            raise CorruptDataError(f"{source} has a dictionary of {count} values out of place")
        total += inflated
        if total > left:
            raise CorruptDataError(f"{source} has a row group of more than {MAX_GROUP_BYTES} bytes")
        position = reader.position + packed
    if values != chunk.num_values:
        raise CorruptDataError(
            f"{source} has {values} values in a column that says {chunk.num_values}"
        )
    return total
