"""Sorted runs: how the catalogue's tables lie in the store.

A run holds lines of one table, sorted by its key. A line replaces every line of equal key in older
runs, whole; a line that is `gone` takes them away. A run is written once, as a list of parts
`runs/<sha256>.parquet`, each small enough to be held in memory. Each row group of a part has its
digest in the part's footer, and the footer its digest in the manifest (`chain`), so that one key is
found by a few ranges, every byte of which is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ulid import ULID

from cones_registry.catalog.pages import MAX_GROUP_ROWS, check_footer, check_group
from cones_registry.digest import Digest, parse_digest, require_digest, sha256_bytes
from cones_registry.errors import CorruptDataError, NewerFormatError, UsageError
from cones_registry.store import Entry, Store

PREFIX: Final = "runs/"
_PART: Final = re.compile(r"runs/[0-9a-f]{64}\.parquet", re.ASCII)
GONE: Final = "gone"
"""Column of every run: whether the line takes its key away."""

PART_ROWS: Final = 65_536
PART_BYTES: Final = 64 * 2**20
"""Largest part: lines, and bytes of them in memory; it ends with the row group that reaches one."""

GROUP_ROWS: Final = 4096
MAX_PART_BYTES: Final = 256 * 2**20
MAX_PART_ROWS: Final = 2**20
MAX_RUN_PARTS: Final = 100_000
WHOLE_BELOW: Final = 512 * 1024
"""Bytes of a part up to which a lookup reads it whole: one request instead of two."""

_ZSTD_LEVEL: Final = 1
_FOOTER_KEY: Final = b"cones"

Key = tuple[Any, ...]
"""Values of a table's key columns."""


@dataclass(frozen=True)
class Table:
    """One table of the catalogue.

    Attributes:
        name: what it is called in manifests and queries.
        schema: its columns.
        key: names of the columns that a line is sorted and identified by: text or whole numbers.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]

    @cached_property
    def lines(self) -> pa.Schema:
        """Columns of a run: those of the table, and `gone`."""
        return self.schema.append(pa.field(GONE, pa.bool_()))

    def as_lines(self, rows: pa.Table | pa.RecordBatch, gone: bool = False) -> pa.Table:
        """Rows of the table as lines of a run."""
        table = pa.table(rows) if isinstance(rows, pa.RecordBatch) else rows
        lines = table.append_column(GONE, pa.array([gone] * table.num_rows, pa.bool_()))
        return lines if lines.schema.equals(self.lines) else lines.cast(self.lines)


@dataclass(frozen=True)
class Part:
    """One object of a run.

    Attributes:
        digest, size: sha256 and bytes of the object.
        rows: lines in it.
        first, last: keys of its first and last line.
        footer_size, footer_digest: of its last bytes, which tell where each row group lies.
    """

    digest: Digest
    size: int
    rows: int
    first: Key
    last: Key
    footer_size: int
    footer_digest: Digest

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"{PREFIX}{self.digest.removeprefix('sha256:')}.parquet"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **dataclasses.asdict(self),
            "first": list(self.first),
            "last": list(self.last),
        }

    @classmethod
    def from_json(cls, value: Any, table: Table) -> Part:
        """Inverse of `to_json`; `CorruptDataError` for anything else."""
        try:
            part = cls(
                parse_digest(value["digest"]),
                _number(value["size"], 1, MAX_PART_BYTES),
                _number(value["rows"], 1, MAX_PART_ROWS),
                _key(value["first"], table),
                _key(value["last"], table),
                _number(value["footer_size"], 1, MAX_PART_BYTES),
                parse_digest(value["footer_digest"]),
            )
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise CorruptDataError(f"a part of {table.name} is not described: {error}") from error
        if part.first > part.last or part.footer_size > part.size:
            raise CorruptDataError(f"a part of {table.name} ends before it begins")
        return part


def listed_parts(store: Store) -> list[Entry]:
    """Every part in the store, of whichever run; what else lies there is nobody's of ours."""
    return [entry for entry in store.list(PREFIX) if _PART.fullmatch(entry.key)]


@dataclass(frozen=True)
class Run:
    """Some folds' lines of one table.

    Attributes:
        first, last: numbers of the first and last manifest whose news are in it.
        parts: in key order; no key is in two of them.
    """

    first: int
    last: int
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Lines in it."""
        return sum(part.rows for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of its objects."""
        return sum(part.size for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        parts = [part.to_json() for part in self.parts]
        return {"first": self.first, "last": self.last, "parts": parts}

    @classmethod
    def from_json(cls, value: Any, table: Table) -> Run:
        """Inverse of `to_json`; `CorruptDataError` for anything else."""
        try:
            parts = value["parts"]
            if not isinstance(parts, list) or not 0 < len(parts) <= MAX_RUN_PARTS:
                raise CorruptDataError(f"a run of {table.name} has no parts, or too many")
            return cls(
                _number(value["first"], 1, 2**31),
                _number(value["last"], 1, 2**31),
                tuple(Part.from_json(part, table) for part in parts),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptDataError(f"a run of {table.name} is not described: {error}") from error


# -- writing --------------------------------------------------------------------------------------


def encode_part(table: Table, lines: Sequence[pa.Table]) -> tuple[Part, bytes]:
    """A part of these lines, sorted and of distinct keys; each item becomes one row group."""
    buffer = io.BytesIO()
    # Digests, sketches and names of concepts repeat nowhere; a dictionary would hold them twice.
    repeated = [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in table.lines
        if _repeats(lines[0][field.name])
    ]
    groups = []
    with pq.ParquetWriter(
        buffer,
        table.lines,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=repeated,
        write_statistics=list(table.key),
        store_schema=False,
    ) as writer:
        start = 4
        for each in lines:
            writer.write_table(each, row_group_size=MAX_GROUP_ROWS)
            end = buffer.tell()
            with buffer.getbuffer() as whole:
                digest = sha256_bytes(bytes(whole[start:end]))
            first = _key_at(table, each, 0)
            groups.append({"start": start, "end": end, "first": list(first), "digest": digest})
            start = end
        # A time stamp, so that no two writers ever make the same object: one may remove its own.
        footer = {"table": table.name, "made": str(ULID()), "groups": groups}
        writer.add_key_value_metadata({_FOOTER_KEY: json.dumps(footer, separators=(",", ":"))})
    data = buffer.getvalue()
    rest = data[start:]
    return Part(
        sha256_bytes(data),
        len(data),
        sum(each.num_rows for each in lines),
        _key_at(table, lines[0], 0),
        _key_at(table, lines[-1], -1),
        len(rest),
        sha256_bytes(rest),
    ), data


def write_parts(store: Store, table: Table, batches: Iterable[pa.Table]) -> tuple[Part, ...]:
    """Put lines, sorted and of distinct keys, into the store; one part is in memory at a time."""
    parts: list[Part] = []

    def put(groups: list[pa.Table]) -> None:
        part, data = encode_part(table, groups)
        store.put_new(part.key, data)
        parts.append(part)

    groups: list[pa.Table] = []
    for group in _in_groups(batches):
        groups.append(group)
        if (
            sum(each.num_rows for each in groups) >= PART_ROWS
            or sum(each.nbytes for each in groups) >= PART_BYTES
        ):
            put(groups)
            groups = []
    if groups:
        put(groups)
    return tuple(parts)


def _in_groups(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same lines in tables of `GROUP_ROWS`, the last one shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            head = batch.slice(0, GROUP_ROWS - count)
            batch = batch.slice(head.num_rows)
            waiting.append(head)
            count += head.num_rows
            if count == GROUP_ROWS:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, count = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _repeats(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    if not (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
        return False
    return bool(pc.count_distinct(column, mode="all").as_py() * 2 <= len(column))


# -- reading --------------------------------------------------------------------------------------


def read_part(
    table: Table, part: Part, data: bytes, *, to_rewrite: bool = False
) -> Iterator[pa.Table]:
    """The lines of a part's bytes, a row group at a time, checked before they are used.

    With `to_rewrite` nothing may be passed over, since what is not read will not be written.

    Raises:
        NewerFormatError: a newer writer's columns would be lost.
        CorruptDataError: not the bytes of this part, or no such part can be.
    """
    if len(data) != part.size:
        raise CorruptDataError(f"{part.key} has {len(data)} bytes, expected {part.size}")
    require_digest(data, part.digest, part.key)
    file = _open(table, part, pa.BufferReader(data))
    unknown = unknown_columns(file.schema_arrow.names, table)
    if to_rewrite and unknown:
        raise NewerFormatError.of(f"a column {unknown[0][:100]!a} of {table.name}")
    view = memoryview(data)
    seen = 0
    for index in range(file.num_row_groups):
        check_group(file.metadata, index, lambda start, end: view[start:end], part.key)
        lines = _lines(table, file, index, part.key)
        seen += lines.num_rows
        yield lines
    if seen != part.rows:
        raise CorruptDataError(f"{part.key} has {seen} lines; its manifest says {part.rows}")


class Readable(Protocol):
    """What is asked of a store here."""

    def get(self, key: str) -> bytes: ...
    def get_range(self, key: str, start: int, end: int) -> bytes: ...


def find_in_part(store: Readable, table: Table, part: Part, prefix: Key) -> Iterator[pa.Table]:
    """Row groups of a part that can hold keys which start with `prefix`, read by ranges."""
    if part.size <= WHOLE_BELOW:
        yield from read_part(table, part, store.get(part.key))
        return
    start = part.size - part.footer_size
    footer = store.get_range(part.key, start, part.size)
    require_digest(footer, part.footer_digest, part.key)
    source = _Pieces(part.size, start, footer)
    file = _open(table, part, pa.PythonFile(source, mode="r"))
    groups = _groups(file, table, part)
    width = len(prefix)
    for index, group in enumerate(groups):
        after = groups[index + 1]["first"][:width] if index + 1 < len(groups) else None
        if group["first"][:width] > prefix or (after is not None and after < prefix):
            continue
        data = store.get_range(part.key, group["start"], group["end"])
        require_digest(data, group["digest"], part.key)
        source.add(group["start"], data)
        check_group(file.metadata, index, source.view, part.key)
        yield _lines(table, file, index, part.key)


def _open(table: Table, part: Part, source: Any) -> pq.ParquetFile:
    limits = {"thrift_string_size_limit": 2**20, "thrift_container_size_limit": 2**20}
    try:
        file = pq.ParquetFile(source, **limits)
        check_footer(file.metadata, part.key)
        names = set(file.schema_arrow.names)
        # A column that is read as it lies, dictionary and places, takes no more than its pages do.
        lies = {
            chunk.path_in_schema
            for group in map(file.metadata.row_group, range(file.num_row_groups))
            for chunk in map(group.column, range(group.num_columns))
            if chunk.has_dictionary_page
        }
        source.seek(0)
        file = pq.ParquetFile(source, read_dictionary=sorted(lies), **limits)
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(f"{part.key} is not Parquet: {str(error)[:200]}") from error
    missing = {*table.key, GONE} - names
    if missing:
        raise CorruptDataError(f"{part.key} lacks the columns {', '.join(sorted(missing))}")
    return file


def _groups(file: pq.ParquetFile, table: Table, part: Part) -> list[dict[str, Any]]:
    """Where each row group lies, as the footer says."""
    try:
        groups: list[dict[str, Any]] = json.loads(file.metadata.metadata[_FOOTER_KEY])["groups"]
        if len(groups) != file.num_row_groups:
            raise ValueError("the footer tells of another number of row groups")
        for group in groups:
            group["first"] = _key(group["first"], table)
            _number(group["start"], 4, part.size - 1)
            _number(group["end"], group["start"] + 1, part.size)
            parse_digest(group["digest"])
        return groups
    except (KeyError, TypeError, ValueError, UsageError, RecursionError) as error:
        raise CorruptDataError(f"the footer of {part.key} cannot be read: {error}") from error


def unknown_columns(file_names: Iterable[str], table: Table) -> list[str]:
    """Columns that a newer writer knows and this version does not."""
    return sorted(set(file_names) - set(table.lines.names))


def _lines(table: Table, file: pq.ParquetFile, index: int, source: str) -> pa.Table:
    """One row group as lines: known columns, in order; NULL in those that the file lacks."""
    present = [name for name in table.lines.names if name in file.schema_arrow.names]
    try:
        found = file.read_row_group(index, columns=present, use_threads=False)
        columns = []
        for field in table.lines:
            if field.name not in present:
                columns.append(pa.chunked_array([pa.nulls(found.num_rows, field.type)]))
                continue
            columns.append(_plain(found[field.name], field.type, source))
        lines = pa.table(columns, schema=table.lines).combine_chunks()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CorruptDataError(f"{source} cannot be read: {str(error)[:200]}") from error
    for name in (*table.key, GONE):
        if lines[name].null_count:
            raise CorruptDataError(f"{source} has a line without {name}")
    if not _increases(table, lines):
        raise CorruptDataError(f"{source} is not sorted by {', '.join(table.key)}")
    return lines


def _plain(column: pa.ChunkedArray, kind: pa.DataType, source: str) -> pa.ChunkedArray:
    """A column without dictionaries, unless it would take more than a row group may."""
    size = 0
    for chunk in column.chunks:
        values = chunk.values if pa.types.is_list(chunk.type) else chunk
        if isinstance(values, pa.DictionaryArray):
            lengths = pc.binary_length(values.dictionary)
            size += pc.sum(pc.take(lengths, values.indices)).as_py() or 0
    if size > PART_BYTES:
        raise CorruptDataError(f"{source} expands to {size} bytes; at most {PART_BYTES} are read")
    return column.cast(kind)


class _Pieces(io.RawIOBase):
    """A file of which some ranges are known."""

    def __init__(self, size: int, start: int, data: bytes) -> None:
        self._size = size
        self._pieces = [(start, data)]
        self._position = 0

    def add(self, start: int, data: bytes) -> None:
        self._pieces.append((start, data))

    def view(self, start: int, end: int) -> memoryview:
        for begins, data in self._pieces:
            if begins <= start and end <= begins + len(data):
                return memoryview(data)[start - begins : end - begins]
        raise CorruptDataError("a column lies outside its row group")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = self._tail(self._position, end)
        self._position = end
        return data

    def _tail(self, start: int, end: int) -> bytes:
        # A Parquet reader asks for the last 64 KiB; of those it uses the footer alone.
        footer = self._pieces[0][0]
        if start < footer < end:
            return bytes(footer - start) + bytes(self.view(footer, end))
        return bytes(self.view(start, end))


# -- merging --------------------------------------------------------------------------------------

Fetch = Callable[[Part], bytes]


def read_run(
    table: Table, run: Run, fetch: Fetch, *, to_rewrite: bool = False
) -> Iterator[pa.Table]:
    """The lines of a run in order; one part is in memory at a time."""
    for part in run.parts:
        yield from read_part(table, part, fetch(part), to_rewrite=to_rewrite)


def merge(
    table: Table, sources: Sequence[Iterable[pa.Table]], *, keep_gone: bool
) -> Iterator[pa.Table]:
    """The newest line of each key, in order.

    Args:
        table: whose lines they are.
        sources: sorted lines, the newest source first.
        keep_gone: whether lines that take their key away stay: older lines lie elsewhere.
    """
    heads = [_Head(table, iter(source)) for source in sources]
    while True:
        heads = [head for head in heads if head.is_loaded()]
        if not heads:
            return
        # Up to this key every source that has more is known.
        bound = min(head.last for head in heads)
        pieces = [piece for head in heads if (piece := head.take(bound)).num_rows]
        lines = pieces[0] if len(pieces) == 1 else _newest(table, pieces)
        if not keep_gone:
            lines = lines.filter(pc.invert(lines[GONE]))
        if lines.num_rows:
            yield lines


class _Head:
    """What comes next of one source."""

    def __init__(self, table: Table, source: Iterator[pa.Table]) -> None:
        self._table = table
        self._source = source
        self._batch: pa.Table | None = None
        self.last: Key = ()

    def is_loaded(self) -> bool:
        """Whether there is a line left."""
        while self._batch is None or not self._batch.num_rows:
            self._batch = next(self._source, None)
            if self._batch is None:
                return False
            if self._batch.num_rows:
                self.last = _key_at(self._table, self._batch, -1)
        return True

    def take(self, bound: Key) -> pa.Table:
        """The lines up to and including the key `bound`."""
        batch = self._batch
        if batch is None:
            raise UsageError("nothing is loaded")
        low, high = 0, batch.num_rows
        if self.last <= bound:
            low = high
        while low < high:
            middle = (low + high) // 2
            if _key_at(self._table, batch, middle) <= bound:
                low = middle + 1
            else:
                high = middle
        self._batch = batch.slice(low)
        return batch.slice(0, low)


def _newest(table: Table, pieces: list[pa.Table]) -> pa.Table:
    """Lines of several sources, newest first, sorted; of equal keys the first source's."""
    ages = [pa.repeat(pa.scalar(age, pa.int32()), len(piece)) for age, piece in enumerate(pieces)]
    together = pa.concat_tables(pieces).combine_chunks()
    keys = together.select(list(table.key)).append_column("age", pa.chunked_array(ages))
    order = pc.sort_indices(keys, [(name, "ascending") for name in (*table.key, "age")])
    together = together.take(order)
    return together.filter(_begins(table, together))


def _begins(table: Table, lines: pa.Table) -> pa.ChunkedArray | pa.Array:
    """For each line whether its key differs from the one before."""
    differs = None
    for name in table.key:
        column = lines[name].combine_chunks()
        one = pc.not_equal(column[1:], column[:-1])
        differs = one if differs is None else pc.or_(differs, one)
    return pa.concat_arrays([pa.array([True]), differs])


def _increases(table: Table, lines: pa.Table) -> bool:
    """Whether every key is greater than the one before."""
    greater = None
    for name in reversed(table.key):
        column = lines[name].combine_chunks()
        after, before = column[1:], column[:-1]
        one = pc.greater(after, before)
        if greater is not None:
            one = pc.or_(one, pc.and_(pc.equal(after, before), greater))
        greater = one
    return bool(pc.all(greater, min_count=0).as_py())


def tiers(rows: Sequence[int], ratio: int = 8) -> list[int]:
    """How many of the newest runs to merge into one, for each merge that is due.

    A run of `rows` lines is of tier log(rows) to the base `ratio`. When `ratio` runs in a row, the
    newest on, are of a tier or below, they become one of the next: each line is written about once
    a tier.

    Args:
        rows: lines of each run, the newest first.
        ratio: how many make one.
    """
    rows, merges, tier = list(rows), [], 0
    while len(rows) >= ratio:
        bound = ratio**tier // 2
        count = next((n for n, each in enumerate(rows) if each >= bound), len(rows))
        if count >= ratio:
            merges.append(count)
            rows[:count] = [sum(rows[:count])]
        elif count == len(rows):
            break
        tier += 1
    return merges


def scan(store: Store, table: Table, runs: Sequence[Run], prefix: Key = ()) -> Iterator[pa.Table]:
    """The newest lines whose key starts with `prefix`, in order, read by ranges where it says much.

    Args:
        store: where the runs lie.
        table: whose they are.
        runs: the newest first.
        prefix: first values of the key; none: all lines.
    """

    def lines(run: Run) -> Iterator[pa.Table]:
        if not prefix:
            yield from read_run(table, run, lambda part: store.get(part.key))
            return
        for part in run.parts:
            if part.first[: len(prefix)] <= prefix <= part.last[: len(prefix)]:
                for group in find_in_part(store, table, part, prefix):
                    for name, value in zip(table.key, prefix, strict=False):
                        group = group.filter(pc.equal(group[name], value))
                    if group.num_rows:
                        yield group

    yield from merge(table, [lines(run) for run in runs], keep_gone=False)


def _key_at(table: Table, lines: pa.Table, index: int) -> Key:
    return tuple(lines[name][index].as_py() for name in table.key)


def _key(value: Any, table: Table) -> Key:
    if not isinstance(value, list) or len(value) != len(table.key):
        raise CorruptDataError(f"{str(value)[:100]!a} is not a key of {table.name}")
    for name, each in zip(table.key, value, strict=True):
        wanted = str if pa.types.is_string(table.schema.field(name).type) else int
        if type(each) is not wanted:
            raise CorruptDataError(f"{str(value)[:100]!a} is not a key of {table.name}")
    return tuple(value)


def _number(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise CorruptDataError(f"{str(value)[:50]!a} is not a number from {low} to {high}")
    return value
