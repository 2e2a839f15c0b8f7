"""Human filters mean what a person would think, and never reach SQL as text."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cones_registry.errors import UsageError
from cones_registry.filters import order_by, parse_age, parse_size, where

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "sql", "value"),
    [
        ("size>1MB", "blob_bytes > ?", 1e6),
        ("size >= 2 KiB", "blob_bytes >= ?", 2048),
        ("density<1%", "density < ?", 0.01),
        ("density<0.01", "density < ?", 0.01),
        ("neurons>20k", "neuron_count > ?", 20_000),
        ("version!=1", "version IS DISTINCT FROM ?", 1),
        ("owner=alice", "owner = ?", "alice"),
        ("token!=sks", "token IS DISTINCT FROM ?", "sks"),
        ("note~red dog", "contains(lower(note), lower(?))", "red dog"),
        ("tag=animal", "list_contains(tags, ?)", "animal"),
        ("tag!=animal", "NOT list_contains(tags, ?)", "animal"),
        ("created>30d", "created < ?", datetime(2026, 3, 1, 12)),
        ("created<12h", "created > ?", datetime(2026, 3, 31)),
        ("created>=2026-01-31", "created >= ?", datetime(2026, 1, 31)),
        ("created!=2026-01-31", "created IS DISTINCT FROM ?", datetime(2026, 1, 31)),
        ("created>2026-01-31T02:00+02:00", "created > ?", datetime(2026, 1, 31)),
    ],
)
def test_a_filter_is_one_condition_with_its_value_apart(text: str, sql: str, value: object) -> None:
    condition = where([text], now=NOW)
    assert condition.sql == sql
    assert condition.values == (value,)


def test_filters_hold_together_and_none_holds_always() -> None:
    assert where([]).sql == "true"
    both = where(["owner=alice", "size<1kB"])
    assert both.sql == "owner = ? AND blob_bytes < ?"
    assert both.values == ("alice", 1000)


def test_sql_in_a_value_stays_a_value() -> None:
    condition = where(["owner=x' OR 1=1 --"])
    assert condition.sql == "owner = ?"
    assert condition.values == ("x' OR 1=1 --",)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("sise>1MB", "Did you mean 'size'?"),
        ("size>1parsec", "'1parsec' is no number with one of the units"),
        ("size>big", "'big' is no number"),
        ("created>soon", "neither an age"),
        ("tag>x", "a tag is there"),
        ("size~1", "needs a text field"),
        ("size", "Expected FIELD OPERATOR VALUE"),
        ("", "Expected FIELD OPERATOR VALUE"),
        ("size>1e400", "'1e400' is too large"),
        ("neurons>" + "9" * 400, "is too large"),
        ("created<3000y", "before the year 1"),
        ("created>99999999999d", "before the year 1"),
        ("created>1e400s", "before the year 1"),
        ("created>0001-01-01T00:00+23:00", "years 1 to 9999"),
        ("created<9999-12-31T23:00-23:00", "years 1 to 9999"),
    ],
)
def test_a_filter_that_cannot_be_read_says_what_was_expected(text: str, reply: str) -> None:
    with pytest.raises(UsageError, match="(?s)" + reply.replace("?", r"\?")):
        where([text], now=NOW)


def test_numbers_fall_and_words_rise_unless_told_otherwise() -> None:
    assert order_by("size").startswith("blob_bytes DESC,")
    assert order_by("size:asc").startswith("blob_bytes ASC,")
    assert order_by("owner").startswith("owner ASC,")
    for wrong in ("tag", "size:up", "colour"):
        with pytest.raises(UsageError):
            order_by(wrong)


def test_sizes_are_read_as_they_are_written() -> None:
    assert [parse_size(text) for text in ("0", "1.5GB", "200 MiB", "4k")] == [
        0,
        1_500_000_000,
        200 * 2**20,
        4000,
    ]
    for wrong in ("a lot", "1e400", "1e19", "9223373TB"):
        with pytest.raises(UsageError, match=wrong):
            parse_size(wrong)


def test_ages_are_read_as_they_are_written() -> None:
    assert [parse_age(text) for text in ("0", "90", "12h", "7d")] == [0, 90, 43_200, 604_800]
    for wrong in ("soon", "1e400"):
        with pytest.raises(UsageError, match=wrong):
            parse_age(wrong)
