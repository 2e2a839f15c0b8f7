"""Sorted runs agree with a dictionary, whatever is folded and merged; hostile parts are refused."""

import dataclasses
import io
import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cones_registry.catalog import pages, runs
from cones_registry.catalog.runs import Part, Run, Table
from cones_registry.digest import sha256_bytes
from cones_registry.errors import CorruptDataError, NewerFormatError
from cones_registry.store import Store, open_store

SCHEMA = pa.schema(
    [
        ("owner", pa.string()),
        ("version", pa.int32()),
        ("note", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("sketch", pa.binary()),
    ]
)
TABLE = Table("things", SCHEMA, ("owner", "version"))
_COUNT = itertools.count()

KEYS = st.tuples(st.sampled_from(["a", "b", "ab", "ü", "zz"]), st.integers(1, 6))
FOLDS = st.lists(st.dictionaries(KEYS, st.none() | st.text(max_size=3), max_size=8), max_size=24)


def new_store() -> Store:
    return open_store(f"memory://runs-{next(_COUNT)}")


def lines_of(news: dict[tuple[str, int], str | None]) -> pa.Table:
    """Lines of a fold; None takes the key away."""
    rows = [
        {
            "owner": owner,
            "version": version,
            "note": note,
            "tags": None if note is None else [note, note],
            "sketch": b"x",
            "gone": note is None,
        }
        for (owner, version), note in sorted(news.items())
    ]
    return pa.Table.from_pylist(rows, TABLE.lines)


def add(store: Store, found: list[Run], number: int, news: dict[tuple[str, int], Any]) -> list[Run]:
    """The runs after one more fold, merged in tiers; the newest first."""
    if news:
        found = [Run(number, number, runs.write_parts(store, TABLE, [lines_of(news)])), *found]
    for count in runs.tiers([run.rows for run in found], ratio=3):
        some = found[:count]
        sources = [runs.read_run(TABLE, run, lambda part: store.get(part.key)) for run in some]
        merged = runs.merge(TABLE, sources, keep_gone=count < len(found))
        parts = runs.write_parts(store, TABLE, merged)
        found = [*([Run(some[-1].first, some[0].last, parts)] if parts else []), *found[count:]]
    return found


@settings(max_examples=15, deadline=None)
@given(FOLDS, KEYS)
def test_folded_and_merged_runs_say_what_a_dictionary_does(
    folds: list[dict[tuple[str, int], str | None]], asked: tuple[str, int]
) -> None:
    store, found, expected = new_store(), [], {}  # type: ignore[var-annotated]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "GROUP_ROWS", 3)
        patch.setattr(runs, "PART_ROWS", 7)
        for number, news in enumerate(folds, 1):
            found = add(store, found, number, news)
            expected.update(news)
    expected = {key: note for key, note in expected.items() if note is not None}
    rows = [row for batch in runs.scan(store, TABLE, found) for row in batch.to_pylist()]
    assert [(row["owner"], row["version"]) for row in rows] == sorted(expected)
    assert {(row["owner"], row["version"]): row["note"] for row in rows} == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "WHOLE_BELOW", 0)  # by ranges, however small
        for prefix in (asked, asked[:1]):
            some = [row for batch in runs.scan(store, TABLE, found, prefix) for row in
                    batch.to_pylist()]  # fmt: skip
            assert {(row["owner"], row["version"]): row["note"] for row in some} == {
                key: note for key, note in expected.items() if key[: len(prefix)] == prefix
            }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 100_000), max_size=300))
def test_merging_in_tiers_writes_a_line_about_once_a_tier(folds: list[int]) -> None:
    found: list[int] = []
    written = 0
    for rows in folds:
        found.insert(0, rows)
        written += rows
        for count in runs.tiers(found):
            written += sum(found[:count])
            found[:count] = [sum(found[:count])]
    total = sum(folds)
    assert sum(found) == total
    tiers = 2 + len(range(20)[: next(n for n in range(30) if 8**n >= total + 1)])
    assert written <= tiers * total
    assert len(found) <= 8 * tiers


def test_runs_and_parts_are_read_back_from_json() -> None:
    store = new_store()
    parts = runs.write_parts(store, TABLE, [lines_of({("a", 1): "x", ("b", 2): None})])
    run = Run(3, 5, parts)
    assert Run.from_json(run.to_json(), TABLE) == run
    (part,) = parts
    assert (part.first, part.last, part.rows) == (("a", 1), ("b", 2), 2)
    for wrong in (
        {**part.to_json(), "first": ["a"]},
        {**part.to_json(), "first": ["a", "1"]},
        {**part.to_json(), "first": ["c", 1]},
        {**part.to_json(), "size": 2**40},
        {**part.to_json(), "digest": "sha256:abc"},
        {**part.to_json(), "rows": True},
        [],
    ):
        with pytest.raises(CorruptDataError):
            Run.from_json({"first": 1, "last": 1, "parts": [wrong]}, TABLE)


def test_equal_lines_are_never_the_same_object() -> None:
    store = new_store()
    lines = lines_of({("a", 1): "x"})
    one, two = (runs.write_parts(store, TABLE, [lines]) for _ in range(2))
    assert one[0].digest != two[0].digest  # who removes his own takes nothing of another's


def test_a_flipped_bit_is_found_by_whole_reads_and_by_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "WHOLE_BELOW", 0)
    part, data = runs.encode_part(TABLE, [lines_of({("a", 1): "x", ("b", 1): "y"})])
    for position in range(4, len(data), 7):
        flipped = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        with pytest.raises(CorruptDataError, match="damaged"):
            list(runs.read_part(TABLE, part, flipped))
        store = new_store()
        store.put_new(part.key, flipped)
        with pytest.raises(CorruptDataError, match="damaged"):
            list(runs.find_in_part(store, TABLE, part, ("a",)))


def hostile(table: pa.Table, **options: Any) -> tuple[Part, bytes]:
    """A part of any content whose digests are right."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, store_schema=False, **{"compression": "zstd"} | options)
    data = buffer.getvalue()
    part, _ = runs.encode_part(TABLE, [lines_of({("a", 1): "x"})])
    return dataclasses.replace(
        part, digest=sha256_bytes(data), size=len(data), rows=table.num_rows
    ), data


def many(count: int, **columns: pa.Array) -> pa.Table:
    whole = {
        "owner": pa.array(["a"] * count),
        "version": pa.array(range(count), pa.int32()),
        "note": pa.nulls(count, pa.string()),
        "tags": pa.nulls(count, pa.list_(pa.string())),
        "sketch": pa.nulls(count, pa.binary()),
        "gone": pa.array([False] * count),
    }
    return pa.table(whole | columns)


LONG = "x" * 1_000_000
SAME = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array([LONG]))
HOSTILE: dict[str, tuple[Callable[[], tuple[Part, bytes]], str]] = {
    "a long value that every line names": (
        lambda: hostile(many(4000, note=SAME)),
        "expands to",
    ),
    "a long tag that every line names": (
        lambda: hostile(many(4000, tags=pa.ListArray.from_arrays(list(range(4001)), SAME))),
        "expands to",
    ),
    "a page that inflates": (
        lambda: hostile(
            many(70, sketch=pa.array([b"x" * 2**20] * 70)),
            use_dictionary=False,
            data_page_size=2**30,
        ),
        "page that cannot be|more than",
    ),
    "more lines in a row group than there may be": (
        lambda: hostile(many(70_000), row_group_size=70_000),
        "row group of 70000 lines",
    ),
    "lists of millions of nothing": (
        lambda: hostile(many(50, tags=pa.array([[None] * 100_000] * 50, pa.list_(pa.string())))),
        "5000000 values",
    ),
    "an encoding in which values grow out of each other": (
        lambda: hostile(
            many(10, note=pa.array([LONG] * 10)),
            use_dictionary=False,
            column_encoding={"note": "DELTA_BYTE_ARRAY"},
        ),
        "encoding 7",
    ),
    "another compression": (lambda: hostile(many(2), compression="snappy"), "SNAPPY"),
    "a key twice": (
        lambda: hostile(many(2, version=pa.array([1, 1], pa.int32()))),
        "not sorted",
    ),
    "keys out of order": (
        lambda: hostile(many(2, owner=pa.array(["b", "a"]))),
        "not sorted",
    ),
    "no key": (lambda: hostile(many(2, owner=pa.array([None, "a"]))), "line without owner"),
    "no column gone": (lambda: hostile(many(2).drop_columns(["gone"])), "lacks the columns gone"),
    "a column of another type": (
        lambda: hostile(many(2).set_column(1, "version", pa.array(["x", "y"]))),
        "cannot be read",
    ),
    "not Parquet": (lambda: _not_parquet(), "not Parquet"),
}


def _not_parquet() -> tuple[Part, bytes]:
    part, _ = runs.encode_part(TABLE, [lines_of({("a", 1): "x"})])
    data = b"PAR1" + bytes(100) + b"PAR1"
    return dataclasses.replace(part, digest=sha256_bytes(data), size=len(data)), data


@pytest.mark.parametrize("rule", sorted(HOSTILE))
def test_a_hostile_part_is_refused_for_its_own_reason_before_it_takes_memory(rule: str) -> None:
    make, reason = HOSTILE[rule]
    part, data = make()
    before = pa.total_allocated_bytes()
    peak_before = pa.default_memory_pool().max_memory() or 0
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError, match=reason):
            list(runs.read_part(TABLE, part, data))
        assert tracemalloc.get_traced_memory()[1] < 4 * pages.MAX_GROUP_BYTES
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < pages.MAX_GROUP_BYTES
    assert (pa.default_memory_pool().max_memory() or 0) - peak_before < 2 * pages.MAX_GROUP_BYTES


def test_what_a_newer_writer_added_is_passed_over_and_never_written_without() -> None:
    table = many(2).append_column("mood", pa.array(["glad", "sad"]))
    part, data = hostile(table)
    (lines,) = runs.read_part(TABLE, part, data)
    assert lines.schema == TABLE.lines
    with pytest.raises(NewerFormatError, match="mood"):  # a merge would lose it
        list(runs.read_part(TABLE, part, data, to_rewrite=True))


def test_a_column_that_an_older_writer_did_not_have_is_null() -> None:
    part, data = hostile(many(2).drop_columns(["sketch"]))
    (lines,) = runs.read_part(TABLE, part, data)
    assert lines["sketch"].to_pylist() == [None, None]
