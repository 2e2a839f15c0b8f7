"""Values of small columns, read straight from their pages.

Of all that Parquet knows, the columns of layouts with one row a layer use three things: PLAIN
integers, PLAIN texts and DELTA_LENGTH_BYTE_ARRAY bytes. Reading those takes less than asking a
general reader to, and leaves nothing to trust it with.
"""

import threading
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from cones_registry.codec.parquet import ColumnChunk, Page
from cones_registry.codec.thrift import ThriftReader
from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError

Cell = npt.NDArray[np.uint8]

_PLAIN: Final = 0
_DELTA_LENGTH_BYTE_ARRAY: Final = 6
_WIDEST: Final = 32
_LARGEST_BLOCK: Final = 1024


_of_thread = threading.local()


def page_content(data: memoryview, column: ColumnChunk, page: Page) -> memoryview:
    """What a page holds, checked and decompressed; its size was found within bounds before."""
    content = data[page.start : page.end]
    if zlib.crc32(content) != page.checksum:
        raise CorruptDataError(
            f"a page of column {quote(column.name)} does not match its checksum. Fetch it again"
        )
    if column.is_compressed:
        try:
            size = zstandard.frame_content_size(content)
            if size == page.byte_count:
                content = memoryview(_decompressor().decompress(content))
        except zstandard.ZstdError as error:
            raise CorruptDataError(
                f"a page of column {quote(column.name)} does not decompress: {error}"
            ) from error
    if len(content) != page.byte_count:
        raise CorruptDataError(f"a page of column {quote(column.name)} is not as long as it says")
    return content


def read_integers(content: memoryview, page: Page) -> npt.NDArray[np.int32]:
    """PLAIN int32 values."""
    if page.encoding != _PLAIN or len(content) != 4 * page.value_count:
        raise CorruptDataError(f"expected {page.value_count} PLAIN integers")
    return np.frombuffer(content, dtype="<i4")


def read_cells(content: memoryview, page: Page) -> list[Cell]:
    """PLAIN or DELTA_LENGTH_BYTE_ARRAY byte strings, each uint8 [length], without a copy."""
    cells = np.frombuffer(content, dtype=np.uint8)
    if page.encoding == _PLAIN:
        return list(_plain_cells(content, cells, page.value_count))
    if page.encoding != _DELTA_LENGTH_BYTE_ARRAY:
        raise CorruptDataError(f"byte strings in encoding {page.encoding}; expected 0 or 6")
    lengths, start = _delta_integers(content, page.value_count)
    found = []
    for length in lengths:
        if not 0 <= length <= len(cells) - start:
            raise CorruptDataError(f"a byte string claims {length} bytes, more than its page has")
        found.append(cells[start : start + length])
        start += length
    if start != len(cells):
        raise CorruptDataError("a page of byte strings does not end with the last")
    return found


def to_text(cell: Cell) -> str:
    """UTF-8 text."""
    try:
        return cell.tobytes().decode()
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{quote(cell.tobytes())} is not UTF-8 text") from error


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's decompressor: making one takes about as long as a small page."""
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    return _of_thread.decompressor  # type: ignore[no-any-return]


def _plain_cells(content: memoryview, cells: Cell, count: int) -> Iterator[Cell]:
    position = 0
    for _ in range(count):
        start = position + 4
        position = start + int.from_bytes(content[position:start], "little")
        if start > len(cells) or position > len(cells):
            raise CorruptDataError("a byte string claims more bytes than its page has")
        yield cells[start:position]
    if position != len(cells):
        raise CorruptDataError("a page of byte strings does not end with the last")


def _delta_integers(content: memoryview, count: int) -> tuple[list[int], int]:
    """DELTA_BINARY_PACKED values, and where they end: miniblocks of packed differences."""
    reader = ThriftReader(content, 0, len(content))
    block_size, miniblocks = reader.varint(), reader.varint()
    total, value = reader.varint(), reader.zigzag()
    if total != count or not 0 < miniblocks <= block_size <= _LARGEST_BLOCK:
        raise CorruptDataError(f"expected {count} packed integers, the page says {total}")
    size = block_size // miniblocks
    values = [value][:count]
    while len(values) < count:
        least = reader.zigzag()
        widths = reader.take(miniblocks)
        for width in widths:
            if len(values) >= count:
                break
            if width > _WIDEST:
                raise CorruptDataError(f"packed integers of {width} bits; at most 32 are read")
            packed = int.from_bytes(reader.take(size * width // 8), "little")
            for _ in range(min(size, count - len(values))):
                value += least + (packed & ((1 << width) - 1))
                packed >>= width
                values.append(value)
    return values, reader.position
