"""Progress of an extraction: a callback, or a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cones_registry.progress_bar import progress_bar


@dataclass(frozen=True)
class Step:
    """Where a method stands.

    number: steps done. total: steps in all. loss: of the last batch.
    density: neurons shut so far / all; None for methods that select at the end.
    """

    number: int
    total: int
    loss: float
    density: float | None = None


OnStep: TypeAlias = Callable[[Step], None]
Progress: TypeAlias = OnStep | Literal["auto"] | bool | None


@contextmanager
def reporting(progress: Progress, title: str) -> Iterator[OnStep]:
    """What a method calls after each step.

    progress: a callback; "auto" or True for a bar, shown only where stderr is a terminal;
        None or False for silence.
    """
    if callable(progress):
        yield progress
        return
    if not progress:
        yield _silent
        return
    with progress_bar(title, sys.stderr) as update:

        def show(step: Step) -> None:
            density = "" if step.density is None else f"  density {step.density:.1%}"
            update(step.number, step.total, f"loss {step.loss:.4f}{density}")

        yield show


def _silent(_step: Step) -> None:
    """Nobody is watching."""
