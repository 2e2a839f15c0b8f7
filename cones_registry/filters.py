"""Human filters for lists: `size>1MB`, `created>30d`, `owner=alice`, `tag=animal` to SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any

from cones_registry.errors import UsageError

_FILTER = re.compile(r"\s*(\w+)\s*(>=|<=|!=|>|<|=|~)\s*(.*?)\s*", re.DOTALL)
_NUMBER_AND_UNIT = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)", re.IGNORECASE)
_BYTES = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SHARES = {"": 1.0, "%": 0.01}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_557_600}
# What the catalogue and a quota can count, SQL's BIGINT.
_MOST_BYTES = 2**63 - 1
_MIRRORED = {">": "<", "<": ">", ">=": "<=", "<=": ">="}


@dataclass(frozen=True)
class Condition:
    """A piece of SQL over the table `concepts`, and the values of its question marks."""

    sql: str
    values: tuple[Any, ...]


def where(filters: Sequence[str], *, now: datetime | None = None) -> Condition:
    """All `filters` as one condition; `true` when there is none.

    Args:
        filters: FIELD OPERATOR VALUE each. Operators: = != > < >= <= and ~ (contains).
        now: what ages are counted from; the present otherwise.

    Raises:
        UsageError: a filter that cannot be read, an unknown field, a unit that does not fit.
    """
    conditions = [_condition(text, now or datetime.now(UTC)) for text in filters]
    return Condition(
        " AND ".join(each.sql for each in conditions) or "true",
        tuple(value for each in conditions for value in each.values),
    )


def order_by(text: str) -> str:
    """`size` or `size:asc`, `size:desc` as the text behind ORDER BY; numbers fall by default."""
    name, _, direction = text.partition(":")
    field = _field(name)
    if field.kind == "tag" or direction not in ("", "asc", "desc"):
        raise UsageError(
            f"cannot sort by '{text}'. Expected one of {', '.join(SORTABLE)},"
            " with :asc or :desc behind it"
        )
    falls = direction == "desc" or (not direction and field.kind != "text")
    # The ref makes the order the same every time.
    return f"{field.column} {'DESC' if falls else 'ASC'}, owner, name, version DESC"


def parse_size(text: str) -> int:
    """`1.5GB`, `200 MiB` or `4096` in bytes; UsageError for anything else."""
    size = int(_VALUES["bytes"](text, text.strip()))
    if size > _MOST_BYTES:
        raise UsageError(f"'{_shown(text)}' is too large; expected at most {_MOST_BYTES:,} bytes")
    return size


def parse_age(text: str) -> float:
    """`30d`, `12h` or `90` (seconds) in seconds; UsageError for anything else."""
    return float(_quantity({"": 1, **_SECONDS})(text, text.strip()))


@dataclass(frozen=True)
class _Field:
    column: str
    kind: str


_FIELDS = {
    "ref": _Field("ref", "text"),
    "owner": _Field("owner", "text"),
    "name": _Field("name", "text"),
    "version": _Field("version", "count"),
    "size": _Field("blob_bytes", "bytes"),
    "density": _Field("density", "share"),
    "neurons": _Field("neuron_count", "count"),
    "created": _Field("created", "time"),
    "tag": _Field("tags", "tag"),
    "note": _Field("note", "text"),
    "scope": _Field("scope", "text"),
    "method": _Field("method", "text"),
    "precision": _Field("precision", "text"),
    "layout": _Field("layout", "text"),
    "token": _Field("token", "text"),
    "noun": _Field("class_noun", "text"),
    "base": _Field("base", "text"),
    "digest": _Field("mask_digest", "text"),
}
SORTABLE = tuple(name for name, field in _FIELDS.items() if field.kind != "tag")


def _field(name: str) -> _Field:
    if name in _FIELDS:
        return _FIELDS[name]
    near = get_close_matches(name, _FIELDS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UsageError(f"there is no field '{name}'.{hint} Fields: {', '.join(_FIELDS)}")


def _condition(text: str, now: datetime) -> Condition:
    match = _FILTER.fullmatch(text)
    if match is None:
        raise UsageError(
            f"cannot read the filter '{text}'. Expected FIELD OPERATOR VALUE,"
            " as 'size>1MB', 'created>30d' or 'owner=alice'"
        )
    name, operator, value = match.groups()
    field = _field(name)
    if field.kind == "tag":
        return _tag(text, operator, value)
    if operator == "~":
        if field.kind != "text":
            raise UsageError(f"'{text}': ~ means contains and needs a text field, not '{name}'")
        return Condition(f"contains(lower({field.column}), lower(?))", (value,))
    if field.kind == "time":
        return _time(text, operator, value, now)
    return _compare(field.column, operator, _VALUES[field.kind](text, value))


def _compare(column: str, operator: str, value: object) -> Condition:
    """A comparison; what has no token at all has not the token of `token!=sks` either."""
    sign = "IS DISTINCT FROM" if operator == "!=" else operator
    return Condition(f"{column} {sign} ?", (value,))


def _tag(text: str, operator: str, value: str) -> Condition:
    if operator not in ("=", "!="):
        raise UsageError(f"'{text}': a tag is there (tag={value}) or is not (tag!={value})")
    return Condition(f"{'NOT ' * (operator == '!=')}list_contains(tags, ?)", (value,))


def _time(text: str, operator: str, value: str, now: datetime) -> Condition:
    """`created>30d`: more than 30 days ago. `created>2026-01-31`: after that moment."""
    match = _NUMBER_AND_UNIT.fullmatch(value)
    if match is not None and match[2].lower() in _SECONDS:
        # An age that is larger is a moment that is earlier.
        operator = _MIRRORED.get(operator, operator)
        try:
            moment = now - timedelta(seconds=float(match[1]) * _SECONDS[match[2].lower()])
        except OverflowError:
            raise UsageError(
                f"'{_shown(text)}': so long ago is before the year 1. Give a shorter age, as 30d"
            ) from None
    else:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise UsageError(
                f"'{text}': '{value}' is neither an age (30d; units {', '.join(_SECONDS)})"
                " nor a date (2026-01-31)"
            ) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(
            f"'{text}': '{value}' in UTC is outside of the years 1 to 9999. Give another date"
        ) from None
    return _compare("created", operator, moment.replace(tzinfo=None))


def _quantity(units: dict[str, Any]) -> Callable[[str, str], float]:
    def read(text: str, value: str) -> float:
        match = _NUMBER_AND_UNIT.fullmatch(value)
        if match is None or match[2].lower() not in units:
            known = ", ".join(unit for unit in units if unit)
            raise UsageError(f"'{text}': '{value}' is no number with one of the units {known}")
        number = float(match[1]) * float(units[match[2].lower()])
        if not math.isfinite(number):
            raise UsageError(
                f"'{_shown(text)}': '{_shown(value)}' is too large. Give a number below 1e300"
            )
        return number

    return read


def _shown(text: str) -> str:
    """`text`, cut where it is longer than a line."""
    return text if len(text) <= 60 else f"{text[:60]}…"


_VALUES: dict[str, Callable[[str, str], Any]] = {
    "bytes": _quantity(_BYTES),
    "count": _quantity(_COUNTS),
    "share": _quantity(_SHARES),
    "text": lambda text, value: value,
}
