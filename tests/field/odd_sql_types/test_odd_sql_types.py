"""What Python has no like of in the answer of a query is DuckDB's own text of it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cones_registry.cli import cones
from cones_registry.cli.session import Session
from cones_registry.registry import Registry

ODD = {
    "'infinity'::timestamp": "infinity",
    "'-infinity'::date": "-infinity",
    "'0044-03-15 (BC)'::date": "0044-03-15 (BC)",
    "'20001-01-01'::date": "20001-01-01",
    "'1970-01-01 00:00:00.123456789'::timestamp_ns": "1970-01-01 00:00:00.123456789",
    "interval 3 months": "3 months",
    "interval '1 day 02:03:04'": "1 day 02:03:04",
    "'10:00:00+02'::timetz": "10:00:00+02",
    "timestamptz '2026-01-02 03:04:05+00'": "2026-01-02 03:04:05+00",
    "union_value(whole := 1)": "1",
    "map {'a': 1}": "{a=1}",
    "'101'::bit": "101",
    "340282366920938463463374607431768211455::uhugeint": "340282366920938463463374607431768211455",
    "12345678901234567890123456789012345678901234567890::bignum": (
        "12345678901234567890123456789012345678901234567890"
    ),
    "[interval 1 day]": "[1 day]",
    "{'when': date '2020-01-02'}": "{'when': 2020-01-02}",
    "'a'::enum('a', 'b')": "a",
    "'00000000-0000-0000-0000-000000000001'::uuid": "00000000-0000-0000-0000-000000000001",
    "time '10:00:00.5'": "10:00:00.5",
    "time_ns '10:00:00.000000005'": "10:00:00.000000005",
    "timestamptz '200001-01-01 00:00:00+00'": "200001-01-01 00:00:00+00",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("registry"))
    Registry.create(place).close()
    return place


def ask(url: str, sql: str, form: str) -> str:
    result = CliRunner().invoke(
        cones, ["-r", url, "query", sql, "--format", form], obj=Session(registry_url=url)
    )
    assert result.exception is None, result.output
    return result.stdout


def test_every_odd_type_is_its_own_text_in_every_form(url: str) -> None:
    sql = "select " + ", ".join(f"{value} as c{n}" for n, value in enumerate(ODD))
    (row,) = json.loads(ask(url, sql, "json"))
    assert list(row.values()) == list(ODD.values())
    assert "0044-03-15 (BC)" in ask(url, sql, "csv")
    assert "1970-01-01 00:00:00.123456789" in ask(url, sql, "table")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("sum(1)", 1),
        ("170141183460469231731687303715884105727::hugeint", 2**127 - 1),
        ("[sum(1)]", [1]),
        ("null", None),
        ("[1, null]", [1, None]),
        ("{'a': 1}", {"a": 1}),
        ("1.25", 1.25),
        ("12345678901234567890.123456789::decimal(38, 9)", "12345678901234567890.123456789"),
        ("{'a': {'b': [null, 'nan'::float]}}", {"a": {"b": [None, None]}}),
        ("'nan'::float", None),
        ("true", True),
        ("'\\xAA'::blob", "qg=="),
    ],
)
def test_numbers_and_lists_stay_what_they_are(url: str, value: str, expected: object) -> None:
    (row,) = json.loads(ask(url, f"select {value} as it", "json"))
    assert row == {"it": expected}


def test_names_that_are_twice_and_the_order_of_rows_are_kept(url: str) -> None:
    sql = (
        "with t as (select range as n, interval 1 day as n from range(200000))\n"
        "select * from t order by 1 desc -- newest first"
    )
    rows = json.loads(ask(url, sql, "json"))
    assert rows[0] == {"n": 199999, "n_1": "1 day"}
    assert [row["n"] for row in rows] == list(range(199999, -1, -1))


def test_a_query_with_a_parameter_has_odd_types_too(url: str) -> None:
    result = CliRunner().invoke(
        cones,
        ["-r", url, "query", "select ?::interval as it; -- it", "2 hours", "--format", "json"],
        obj=Session(registry_url=url),
    )
    assert result.exception is None, f"{result.exception!r} {result.output}"
    assert json.loads(result.stdout) == [{"it": "02:00:00"}]


def test_python_has_the_values_themselves_unless_it_asks_for_text(tmp_path: Path) -> None:
    with Registry.create(str(tmp_path / "r")) as registry:
        plain = registry.query("select date '2020-01-02' as day")
        text = registry.query("select date '2020-01-02' as day", as_text=True)
    assert str(plain.schema.field("day").type) == "date32[day]"
    assert text.to_pylist() == [{"day": "2020-01-02"}]
