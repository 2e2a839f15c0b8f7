"""Job lines: one JSON object a line, checked before anything runs. See schema/batch.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cones_registry.digest import quote, sha256_bytes
from cones_registry.errors import ConesError, UsageError
from cones_registry.manifest import parse_ref

MAX_COUNT: Final = 100_000
MAX_STEPS: Final = 10_000
MAX_SIDE: Final = 16_384
MAX_SEED: Final = 2**63 - 1
MAX_GUIDANCE: Final = 1000


@dataclass(frozen=True)
class Job:
    """One line: ``count`` pictures of one prompt, with seeds seed, seed + 1, …

    line: number in the file, from 1. concepts: refs. size: (width, height) in pixels.
    guidance: 1 or less is none. steps, guidance, size, scheduler: None is the base model's own.
    """

    line: int
    prompt: str
    concepts: tuple[str, ...] = ()
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None
    negative_prompt: str = ""
    count: int = 1


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be run, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class BadJobsError(UsageError):
    """Some job lines cannot be run; ``lines`` says which and why. Nothing has run."""

    def __init__(self, lines: Sequence[BadLine]) -> None:
        self.lines = tuple(lines)
        shown = "\n".join(f"  {line}" for line in lines)
        super().__init__(
            f"{len(lines)} of the job lines cannot be run:\n{shown}\n"
            "Nothing was drawn. Correct them, or skip them with --keep-going"
        )


def parse_jobs(text: str) -> tuple[list[Job], list[BadLine]]:
    """The jobs of a JSON-lines text, and the lines that are none. Blank lines are left out."""
    jobs: list[Job] = []
    bad: list[BadLine] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            jobs.append(_parse(number, line))
        except ConesError as error:
            bad.append(BadLine(number, str(error)))
    return jobs, bad


def jobs_digest(text: str) -> str:
    """Identity of a job file: of what its lines say, not of their spelling."""
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                content: Any = json.loads(line)
            except ValueError:
                content = line
            lines.append([number, content])
    return sha256_bytes(json.dumps(lines, sort_keys=True).encode())


def _parse(number: int, line: str) -> Job:
    try:
        content = json.loads(line, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError('not a JSON object; expected {"prompt": "…", …}')
    unknown = sorted(set(content) - set(_FIELDS))
    if unknown:
        raise UsageError(f"unknown field {quote(unknown[0])}. Expected {', '.join(_FIELDS)}")
    if "prompt" not in content:
        raise UsageError('no prompt; expected {"prompt": "…", …}')
    values = {name: _FIELDS[name](name, value) for name, value in content.items()}
    job = Job(number, **values)
    if job.seed + job.count - 1 > MAX_SEED:
        raise UsageError(f"seed {job.seed} and count {job.count} pass the last seed {MAX_SEED}")
    return job


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a field is given twice")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {quote(value)}, expected text")
    return value


def _prompt(name: str, value: Any) -> str:
    if not _text(name, value).strip():
        raise UsageError(f"{name} is empty")
    return str(value)


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"{name} is {quote(value)}, expected a whole number {low} … {high}")
        return value

    return check


def _guidance(name: str, value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value < MAX_GUIDANCE)
    ):
        raise UsageError(f"{name} is {quote(value)}, expected a number from 0 below {MAX_GUIDANCE}")
    return float(value)


def _size(name: str, value: Any) -> tuple[int, int]:
    side = _whole(8, MAX_SIDE)
    if not isinstance(value, list) or len(value) != 2:
        raise UsageError(f"{name} is {quote(value)}, expected [width, height] in pixels")
    return side("width", value[0]), side("height", value[1])


def _refs(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UsageError(f"{name} is {quote(value)}, expected a list of refs")
    for ref in value:
        parse_ref(_text("a ref", ref))
    if len(set(value)) != len(value):
        raise UsageError(f"{name} names a concept twice")
    return tuple(value)


def _scheduler(name: str, value: Any) -> str:
    from cones_registry.generation.schedulers import SCHEDULERS

    if _text(name, value) not in SCHEDULERS:
        raise UsageError(f"{name} is {quote(value)}, expected one of {', '.join(SCHEDULERS)}")
    return str(value)


_FIELDS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "prompt": _prompt,
    "concepts": _refs,
    "seed": _whole(0, MAX_SEED),
    "steps": _whole(1, MAX_STEPS),
    "guidance": _guidance,
    "size": _size,
    "scheduler": _scheduler,
    "negative_prompt": _text,
    "count": _whole(1, MAX_COUNT),
}
