"""Thrift compact protocol, read into plain Python values within bounds.

Parquet describes its columns and pages in it. Those descriptions come from strangers, and Parquet
readers believe them: a hostile one makes them allocate gigabytes, or abort the process. So they
are read here first. A struct becomes `{field number: value}`; numbers, `bytes`, lists and bools
are what they are.
"""

from typing import Any, Final

from cones_registry.errors import CorruptDataError

_DEEPEST: Final = 12
_LONGEST_VARINT: Final = 10
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)

Struct = dict[int, Any]


class ThriftReader:
    """A cursor over one buffer: `position` is the next byte, `end` lies one behind the last."""

    def __init__(self, data: memoryview, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = end

    def struct(self, depth: int = 0) -> Struct:
        """Read one struct; `CorruptDataError` if it does not end or is nested too deeply."""
        if depth > _DEEPEST:
            raise CorruptDataError("the metadata is nested too deeply")
        fields: Struct = {}
        number = 0
        while head := self._byte():
            delta = head >> 4
            number = number + delta if delta else self.zigzag()
            kind = head & 15
            # In a struct, unlike in a list, the type of a bool is its value.
            fields[number] = kind == _TRUE if kind <= _FALSE else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if _I16 <= kind <= _I64:
            return self.zigzag()
        if kind == _BINARY:
            return self.take(self.varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind == _DOUBLE:
            return self.take(8)
        raise CorruptDataError(f"the metadata holds a value of unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        if depth > _DEEPEST:
            raise CorruptDataError("the metadata is nested too deeply")
        head = self._byte()
        size = head >> 4
        if size == 15:
            size = self.varint()
        # Every element takes a byte at least.
        if size > self.end - self.position:
            raise CorruptDataError(
                f"the metadata holds a list of {size}, more than there are bytes"
            )
        kind = head & 15
        return [self._value(kind, depth) for _ in range(size)]

    def take(self, size: int) -> bytes:
        """Read `size` bytes."""
        start = self.position
        if size > self.end - start:
            raise CorruptDataError("the metadata runs past its end")
        self.position = start + size
        return bytes(self.data[start : start + size])

    def _byte(self) -> int:
        position = self.position
        if position >= self.end:
            raise CorruptDataError("the metadata runs past its end")
        self.position = position + 1
        return self.data[position]

    def varint(self) -> int:
        """Read an unsigned number."""
        value = self._byte()
        if value < 0x80:
            return value
        value &= 0x7F
        for index in range(1, _LONGEST_VARINT):
            byte = self._byte()
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value
        raise CorruptDataError("the metadata holds a number that does not end")

    def zigzag(self) -> int:
        """Read a signed number."""
        value = self.varint()
        return (value >> 1) ^ -(value & 1)
