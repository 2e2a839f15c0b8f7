"""What a run did: progress on the way, a report at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    done, total: pictures, those of earlier runs counted in. failed: of this run.
    rate: pictures a second in this run; seconds_left: at this rate, None before the first.
    """

    done: int
    total: int
    failed: int
    rate: float
    seconds_left: float | None


@dataclass(frozen=True)
class Failure:
    """A picture that was not made, or (number None) a line that was skipped, and why."""

    line: int
    number: int | None
    reason: str


@dataclass(frozen=True)
class Note:
    """Something about a line whose pictures were made all the same."""

    line: int
    text: str


@dataclass(frozen=True)
class BatchReport:
    """What a run did.

    total: pictures the job file asks for. made: by this run; kept: there before it.
    failures: what is missing and why. seconds: of this run. notes: what is worth knowing of lines
        that were drawn by this run.
    """

    total: int
    made: int
    kept: int
    failures: tuple[Failure, ...]
    seconds: float
    notes: tuple[Note, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether every picture is there and no line was skipped."""
        return not self.failures

    @property
    def rate(self) -> float:
        """Pictures a second in this run."""
        return self.made / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key an attribute, and ``succeeded`` and ``rate``."""
        return asdict(self) | {"succeeded": self.succeeded, "rate": self.rate}
