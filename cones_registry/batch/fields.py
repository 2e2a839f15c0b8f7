"""Reading one JSON object a line, field by field, with reasons that say what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cones_registry.digest import quote, sha256_bytes
from cones_registry.errors import ConesError, UsageError

Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class BadJobsError(UsageError):
    """Some lines cannot be run; ``lines`` says which and why. Nothing has run."""

    def __init__(self, lines: Sequence[BadLine], total: int | None = None) -> None:
        """lines: the bad ones. total: of how many, if that is known."""
        self.lines = tuple(lines)
        shown = "\n".join(f"  {line}" for line in lines)
        of = "the" if total is None else f"{total:,}"
        super().__init__(
            f"{len(lines):,} of {of} lines cannot be run:\n{shown}\n"
            "Nothing was done. Correct them, or skip them with --keep-going"
        )


def parse_lines(
    text: str, parse: Callable[[int, dict[str, Any]], Any], fields: Mapping[str, Check]
) -> tuple[list[Any], list[BadLine]]:
    """What ``parse(number, values)`` makes of each line, and the lines that are none.

    fields: name -> what checks and converts its value. Blank lines are left out.
    """
    good: list[Any] = []
    bad: list[BadLine] = []
    for number, line in _numbered(text):
        try:
            content = _object(line)
            unknown = sorted(set(content) - set(fields))
            if unknown:
                raise UsageError(f"unknown field {quote(unknown[0])}. Expected {', '.join(fields)}")
            values = {name: fields[name](name, value) for name, value in content.items()}
            good.append(parse(number, values))
        except ConesError as error:
            bad.append(BadLine(number, str(error)))
    return good, bad


def lines_digest(text: str) -> str:
    """Identity of a file of lines: of what they say, not of their spelling."""
    lines: list[Any] = []
    for number, line in _numbered(text):
        try:
            content: Any = json.loads(line)
        except (ValueError, RecursionError):
            content = line
        lines.append([number, content])
    return sha256_bytes(json.dumps(lines, sort_keys=True).encode())


def need(values: Mapping[str, Any], *names: str) -> None:
    """Raise UsageError unless every name has a value."""
    for name in names:
        if name not in values:
            raise UsageError(f'no {name}; expected {{"{name}": …, …}}')


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. A line ends at a line feed and nowhere else:
    JSON text may hold U+2028 and the like, at which ``str.splitlines`` would cut it.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError("not a JSON object; expected {…}")
    return content


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a field is given twice")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def text(name: str, value: Any) -> str:
    """A check for text: of whole characters, which can be kept in a file."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is {quote(value)}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} holds half a character, {quote(value[error.start])}: expected text that can "
            "be written as UTF-8"
        ) from error
    return value


def full_text(name: str, value: Any) -> str:
    """A check for text that says something."""
    if not text(name, value).strip():
        raise UsageError(f"{name} is empty")
    return str(value)


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    """A check for a whole number from ``low`` to ``high``."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"{name} is {quote(value)}, expected a whole number {low} … {high}")
        return value

    return check


def number(low: float, below: float) -> Check:
    """A check for a number from ``low`` below ``below``."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{name} is {quote(value)}, expected a number")
        if not low <= value < below:
            raise UsageError(f"{name} is {quote(value)}, expected {low} or more, below {below}")
        return float(value)

    return check


def flag(name: str, value: Any) -> bool:
    """A check for true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {quote(value)}, expected true or false")
    return value


def one_of(*choices: str) -> Check:
    """A check for one of some words."""

    def check(name: str, value: Any) -> str:
        if text(name, value) not in choices:
            raise UsageError(f"{name} is {quote(value)}, expected one of {', '.join(choices)}")
        return str(value)

    return check


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A check for a list of texts, none twice."""
    if not isinstance(value, list):
        raise UsageError(f"{name} is {quote(value)}, expected a list")
    for each in value:
        text(f"one of {name}", each)
    if len(set(value)) != len(value):
        raise UsageError(f"{name} names one thing twice")
    return tuple(value)
