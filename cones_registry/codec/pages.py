"""Page headers of a Parquet file, read before anything is decompressed.

A Parquet reader allocates what a page header asks for. These headers come from strangers, so they
are walked first (Thrift compact protocol, parquet.thrift `PageHeader`) and checked against a limit.
"""

from dataclasses import dataclass
from typing import Final

from cones_registry.errors import CorruptDataError

DATA_PAGE: Final = 0
DICTIONARY_PAGE: Final = 2

_STRUCT: Final = 12
_DEEPEST: Final = 4
_LONGEST_VARINT: Final = 10
_PAGE_KINDS: Final = {5: DATA_PAGE, 7: DICTIONARY_PAGE}
"""Field of `PageHeader` -> the page type whose details it holds."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its type, sizes in bytes, number of values, and whether it carries a CRC-32."""

    kind: int
    uncompressed_bytes: int
    compressed_bytes: int
    value_count: int
    has_checksum: bool


def walk_pages(data: memoryview, start: int, end: int) -> list[Page]:
    """The pages that fill `data[start:end]` exactly; `CorruptDataError` if they do not."""
    pages = []
    position = start
    while position < end:
        header = _Header(data[position:end])
        page = header.read_page()
        if page.compressed_bytes > end - position - header.position:
            raise CorruptDataError(
                f"the page at byte {position} claims {page.compressed_bytes} bytes, "
                f"more than are left of its column ({end - position - header.position})"
            )
        position += header.position + page.compressed_bytes
        pages.append(page)
    return pages


class _Header:
    """A cursor over one Thrift compact struct."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def read_page(self) -> Page:
        numbers: dict[int, int] = {}
        details: dict[int, int] = {}
        kind = None
        field = 0
        while (head := self._byte()) != 0:
            field, wire = self._field(head, field)
            if wire in (5, 6):
                numbers[field] = self._zigzag()
            elif wire == _STRUCT and field in _PAGE_KINDS:
                kind, details = _PAGE_KINDS[field], self._numbers(1)
            else:
                self._skip(wire, 1)
        if kind is None or numbers.get(1) != kind:
            raise CorruptDataError(
                "a page is neither a data page nor a dictionary page of Parquet version 1"
            )
        sizes = numbers.get(2, -1), numbers.get(3, -1), details.get(1, -1)
        if min(sizes) < 0 or max(sizes) > 2**31 - 1:
            raise CorruptDataError(f"a page header holds impossible sizes {sizes}")
        return Page(kind, *sizes, has_checksum=4 in numbers)

    def _numbers(self, depth: int) -> dict[int, int]:
        """Integer fields of a nested struct; everything else in it is skipped."""
        numbers: dict[int, int] = {}
        field = 0
        while (head := self._byte()) != 0:
            field, wire = self._field(head, field)
            if wire in (4, 5, 6):
                numbers[field] = self._zigzag()
            else:
                self._skip(wire, depth + 1)
        return numbers

    def _field(self, head: int, previous: int) -> tuple[int, int]:
        delta, wire = head >> 4, head & 15
        return (previous + delta if delta else self._zigzag()), wire

    def _skip(self, wire: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise CorruptDataError("a page header is nested too deeply")
        if wire in (1, 2):  # a boolean is its own type
            return
        if wire == 3:
            self._byte()
        elif wire in (4, 5, 6):
            self._zigzag()
        elif wire == 7:
            self._advance(8)
        elif wire == 8:
            self._advance(self._varint())
        elif wire == _STRUCT:
            self._numbers(depth)
        else:
            raise CorruptDataError(f"a page header holds a field of unexpected type {wire}")

    def _advance(self, count: int) -> None:
        if count > len(self.data) - self.position:
            raise CorruptDataError("a page header runs past the end of its column")
        self.position += count

    def _byte(self) -> int:
        position = self.position
        self._advance(1)
        return self.data[position]

    def _varint(self) -> int:
        value = 0
        for index in range(_LONGEST_VARINT):
            byte = self._byte()
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value
        raise CorruptDataError("a page header holds a number that does not end")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
