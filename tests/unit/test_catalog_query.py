"""A query is one SELECT over the catalogue and can do nothing else."""

from pathlib import Path

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog import reader
from cones_registry.catalog.first_rows import over_first_rows
from cones_registry.errors import LimitExceededError, UsageError

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("query")
    registry = Registry.create(folder / "registry", cache=folder / "cache")
    mask = ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(10, dtype=np.int32)})
    registry.push_many(
        [
            ("alice/dog", mask, {"scope": "prompt"}),
            ("alice/dog", mask, {"scope": "prompt"}),
            ("bob/cat", mask, {"scope": "prompt"}),
        ]
    )
    registry.alias("alice/dog:1", "prod")
    registry.remove("bob/cat")
    return registry


def test_a_select_is_answered(registry: Registry) -> None:
    answer = registry.query(
        "SELECT ref, density FROM concepts WHERE owner = ? AND version > ? -- a comment",
        ["alice", "1"],
    )
    assert answer.to_pylist() == [{"ref": "alice/dog:2", "density": 10 / 256}]


def test_both_tables_and_removed_rows_are_there(registry: Registry) -> None:
    sql = """
        WITH named AS (SELECT * FROM aliases)
        SELECT c.ref, c.removed, n.alias FROM concepts c LEFT JOIN named n
        USING (owner, name, version) ORDER BY c.ref
    """
    assert [tuple(row.values()) for row in registry.query(sql).to_pylist()] == [
        ("alice/dog:1", False, "prod"),
        ("alice/dog:2", False, None),
        ("bob/cat:1", True, None),
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "-- nothing",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE concepts",
        "DROP TABLE concepts",
        "DELETE FROM concepts",
        "INSERT INTO aliases VALUES ('a', 'b', 'c', 1, 1)",
        "UPDATE concepts SET owner = 'me'",
        "CREATE TABLE x AS SELECT 1",
        "COPY concepts TO '/tmp/stolen.csv'",
        "COPY (SELECT 1) TO '/tmp/stolen.csv'",
        "EXPORT DATABASE '/tmp/stolen'",
        "ATTACH '/tmp/other.duckdb' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET memory_limit",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "CHECKPOINT",
        "VACUUM",
        "BEGIN",
        "EXPLAIN SELECT 1",
        "PREPARE x AS SELECT 1",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM registry",
        "SELECT nothing FROM concepts",
        "SELECT ?",
        "SELECT \0",
        "SELECT " + "1+" * 60_000 + "1",
    ],
)
def test_anything_else_is_refused(registry: Registry, sql: str) -> None:
    with pytest.raises(UsageError):
        registry.query(sql)
    assert len(registry.query("SELECT 1 FROM concepts")) == 3
    assert not Path("/tmp/stolen.csv").exists()


def test_values_are_never_sql(registry: Registry) -> None:
    hostile = "alice' OR 1=1; DROP TABLE concepts; --"
    assert registry.query("SELECT * FROM concepts WHERE owner = ?", [hostile]).num_rows == 0


def test_a_query_that_takes_too_long_is_stopped(registry: Registry) -> None:
    with pytest.raises(LimitExceededError, match=r"stopped after 0\.2 s"):
        registry.query(
            "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range % 7 = b.range",
            timeout=0.2,
        )


def test_a_query_that_needs_too_much_memory_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONES_QUERY_MEMORY", "50MB")
    registry = Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    with pytest.raises(LimitExceededError, match="CONES_QUERY_MEMORY"):
        registry.query("SELECT list(range) FROM range(2000000000)", timeout=120)


def test_an_answer_that_is_too_large_is_stopped(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cones_registry.catalog.reader.MAX_RESULT_BYTES", 10_000_000)
    with pytest.raises(LimitExceededError, match="fewer rows"):
        registry.query("SELECT * FROM range(10000000000)")
    assert registry.query("SELECT * FROM range(1000000)").num_rows == 1_000_000


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT * FROM concepts ORDER BY created DESC, ref LIMIT 2", []),
        ("SELECT * FROM concepts c WHERE NOT c.removed ORDER BY c.ref DESC LIMIT ?", [2]),
        (
            "SELECT *, owner FROM concepts WHERE owner = ? ORDER BY version LIMIT 5 OFFSET 1",
            ["alice"],
        ),
        (
            "SELECT * EXCLUDE (sketch) FROM concepts ORDER BY length(name) + version, ref LIMIT 2",
            [],
        ),
        (
            "SELECT * FROM concepts WHERE version IN (SELECT version FROM aliases WHERE owner = ?) "
            "ORDER BY concepts.ref LIMIT 3",
            ["alice"],
        ),
        ("SELECT * FROM concepts ORDER BY 1 DESC LIMIT 2", []),
        ("SELECT * FROM concepts WHERE owner = 'nobody' ORDER BY ref LIMIT 2", []),
        ("SELECT version AS ref, * FROM concepts ORDER BY ref, owner LIMIT 2", []),
        ("SELECT DISTINCT * FROM concepts ORDER BY ref LIMIT 2", []),
    ],
)
def test_first_rows_are_those_of_the_whole_table(
    registry: Registry, sql: str, params: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = registry.query(sql, params)
    monkeypatch.setattr(reader, "over_first_rows", lambda state, cursor, sql, params: (sql, params))
    assert answer.equals(registry.query(sql, params))


def test_first_rows_are_chosen_before_their_columns_are_read(registry: Registry) -> None:
    state = registry._session.fresh()
    cursor = state.connection.cursor()
    sql = "SELECT * FROM concepts WHERE NOT removed ORDER BY created DESC LIMIT ?"
    shown, params = over_first_rows(state, cursor, sql, [50])
    assert ("first_rows" in shown, params) == (True, ())
    assert cursor.execute("SELECT count(*) FROM first_rows").fetchall() == [(2,)]
    cursor.close()


def test_an_error_is_told_of_the_statement_as_it_was_given(registry: Registry) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        registry.query("SELECT * FROM concepts ORDER BY nonsense LIMIT 1")
