"""Catalogues of many concepts for benchmarks: rows made by SQL, written as runs in no time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import duckdb
import pyarrow as pa

from cones_registry import Registry
from cones_registry.catalog import chain, runs
from cones_registry.catalog.chain import Manifest
from cones_registry.catalog.runs import Run
from cones_registry.catalog.syncing import rest_of
from cones_registry.catalog.tables import TABLES

# A sketch is as random as a digest, and as little to be compressed.
SKETCH = f"unhex({' || '.join(f'sha256({n} || name)' for n in range(8))})"
OWNERS = 5000
BATCH = 16_384


def concepts(count: int, base: str, neurons: int, first: int = 0) -> Iterator[pa.Table]:
    """Rows `first` up to `first + count` of a table that goes on for ever, sorted by key.

    Args:
        count: how many.
        base: fingerprint of the base model of all.
        neurons: of that model's layer table.
        first: number of the first.
    """
    connection = duckdb.connect(config={"threads": 1})
    reader = connection.sql(
        f"""
        SELECT owner || '/' || name || ':1' AS ref, owner, name, 1::INTEGER AS version,
            '{base}' AS base, 'sha256:' || sha256('m' || i) AS mask_digest,
            'sha256:' || sha256('b' || i) AS blob_digest, 20000 + i % 5000 AS blob_bytes,
            17000 + i % 4000 AS neuron_count, {neurons}::BIGINT AS table_neuron_count,
            (17000 + i % 4000) / {neurons} AS density, 'binary' AS precision,
            'gap8' AS layout, CASE WHEN i % 3 = 0 THEN 'subject' ELSE 'prompt' END AS scope,
            'v' || i % 1000 AS token, 'dog' AS class_noun,
            ['tag' || i % 100, 'tag' || (i % 17 + 100)] AS tags, '' AS note,
            TIMESTAMP '2026-01-01' + INTERVAL (i * 7919 % 20000000) SECOND AS created,
            'gates' AS method, false AS ranked, {SKETCH} AS sketch,
            false AS removed, false AS pruned
        FROM (SELECT i, 'owner' || i % {OWNERS} AS owner, 'concept' || i AS name
              FROM range({first}, {first + count}) r(i) ORDER BY owner, name)
        """
    ).to_arrow_reader(BATCH)
    for batch in reader:
        yield whole("concepts", pa.Table.from_batches([batch]))


def aliases(count: int) -> Iterator[pa.Table]:
    """An alias of every tenth of the first `count` concepts, sorted by key."""
    connection = duckdb.connect(config={"threads": 1})
    reader = connection.sql(
        f"""
        SELECT 'owner' || i % {OWNERS} AS owner, 'concept' || i AS name, 'prod' AS alias,
            1::INTEGER AS version, 1::INTEGER AS generation
        FROM range(0, {count}, 10) r(i) ORDER BY owner, name
        """
    ).to_arrow_reader(BATCH)
    for batch in reader:
        yield whole("aliases", pa.Table.from_batches([batch]))


def whole(table: str, rows: pa.Table) -> pa.Table:
    """Rows with every column of the table; NULL in those that are not given."""
    schema = TABLES[table].schema
    return pa.table(
        [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.nulls(len(rows), field.type)
            for field in schema
        ],
        schema=schema,
    )


def publish(registry: Registry, rows: Mapping[str, Iterable[pa.Table]]) -> Manifest:
    """Let these rows be the whole catalogue of a registry whose log is folded.

    No commit says them: they are seen by machines that have no local copy yet.
    """
    session = registry._session
    registry.compact(grace=0)
    state = session.fresh_now()
    before = session.chain.read_position(state.meta.position)
    number = state.meta.position.number + 1
    found = {}
    for name, table in TABLES.items():
        lines = (table.as_lines(batch) for batch in rows.get(name, ()))
        parts = runs.write_parts(session.store, table, lines)
        found[name] = (Run(1, number, parts),) if parts else ()
    data = chain.encode_manifest(
        number,
        before.position.epoch if before else session.clock.next(),
        registry.id,
        before,
        since=number,
        folded=(),
        latest=state.meta.latest,
        tables=found,
        rest=rest_of(state.meta),
    )
    made = session.chain.create(number, data)
    if made is None:
        raise RuntimeError("somebody else made this manifest")
    session.chain.publish(session.clock.next(), made)
    session.expire()
    return made
