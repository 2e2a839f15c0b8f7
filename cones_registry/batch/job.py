"""Job lines: one JSON object a line, checked before anything runs. See schema/batch.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cones_registry.batch.fields import (
    BadLine,
    Check,
    flag,
    full_text,
    need,
    number,
    one_of,
    parse_lines,
    text,
    texts,
    whole,
)
from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.generation.schedulers import SCHEDULERS
from cones_registry.picture_size import MAX_SIDE, check_side
from cones_registry.refs import parse_ref
from cones_registry.seed import MAX_SEED
from cones_registry.weighting import parse_weighted

MAX_COUNT: Final = 100_000
MAX_STEPS: Final = 1_000  # of noise: what every published model was trained with
MAX_GUIDANCE: Final = 1000


@dataclass(frozen=True)
class Job:
    """One line: ``count`` pictures of one prompt, with seeds seed, seed + 1, …

    line: number in the file, from 1. concepts: refs, or ``ref*0.7``. size: (width, height) in
    pixels. guidance: 1 or less is none. steps, guidance, size, scheduler: None is the base model's
    own. mask_unconditional: masks act on the unconditional branch too, as in the paper.
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
    mask_unconditional: bool = True

    @property
    def weighted(self) -> tuple[tuple[str, float], ...]:
        """(ref, weight) of each concept."""
        return tuple(parse_weighted(text) for text in self.concepts)


def parse_jobs(lines: str) -> tuple[list[Job], list[BadLine]]:
    """The jobs of a JSON-lines text, and the lines that are none. Blank lines are left out."""
    return parse_lines(lines, _job, _FIELDS)


def _job(line: int, values: dict[str, Any]) -> Job:
    need(values, "prompt")
    job = Job(line, **values)
    if job.seed + job.count - 1 > MAX_SEED:
        raise UsageError(f"seed {job.seed} and count {job.count} pass the last seed {MAX_SEED}")
    return job


def _size(name: str, value: Any) -> tuple[int, int]:
    side = whole(1, MAX_SIDE)
    if not isinstance(value, list) or len(value) != 2:
        raise UsageError(f"{name} is {quote(value)}, expected [width, height] in pixels")
    width, height = side("width", value[0]), side("height", value[1])
    return check_side("width", width), check_side("height", height)


def _refs(name: str, value: Any) -> tuple[str, ...]:
    refs = texts(name, value)
    for each in refs:
        ref, _ = parse_weighted(each)
        parse_ref(ref)
    return refs


_FIELDS: Final[Mapping[str, Check]] = {
    "prompt": full_text,
    "concepts": _refs,
    "seed": whole(0, MAX_SEED),
    "steps": whole(1, MAX_STEPS),
    "guidance": number(0, MAX_GUIDANCE),
    "size": _size,
    "scheduler": one_of(*SCHEDULERS),
    "negative_prompt": text,
    "count": whole(1, MAX_COUNT),
    "mask_unconditional": flag,
}
