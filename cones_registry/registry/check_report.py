"""What a check found: problems, harmless leftovers, and how much was looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cones_registry.errors import CorruptDataError, NotFoundError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "corrupt", "dangling", "size", "base", "unreserved", "lost", "ambiguous".
        where: key or ref.
        message: what is wrong with it.
    """

    kind: str
    where: str
    message: str


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        problems: what is wrong; empty when all is well.
        orphans: keys of blobs that no version refers to; harmless, `prune` removes them.
        gaps: reserved numbers without a version, as refs; harmless.
        versions, blobs, segments: how many were looked at.
        read_bytes: bytes whose digests were verified.
        rebuilt: versions and alias moves that `rebuild` put back into the catalogue.
        discarded: damaged log objects that `rebuild` removed.
    """

    problems: list[Problem] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    versions: int = 0
    blobs: int = 0
    segments: int = 0
    read_bytes: int = 0
    rebuilt: int = 0
    discarded: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "ok": self.ok,
            **self.__dict__,
            "problems": [dict(problem.__dict__) for problem in self.problems],
        }

    def note(self, kind: str, where: str, message: str) -> None:
        """Add a problem, once."""
        problem = Problem(kind, where, message)
        if problem not in self.problems:
            self.problems.append(problem)

    @contextlib.contextmanager
    def noting(self, where: str) -> Iterator[None]:
        """Make what the block finds damaged or missing a problem, and go on after it."""
        try:
            yield
        except CorruptDataError as error:
            self.note("corrupt", where, str(error))
        except NotFoundError as error:
            self.note("base" if where.startswith("base ") else "dangling", where, str(error))
