"""Long runs over a file of lines: their options, engines, progress and reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cones_registry.errors import NotFoundError, UsageError
from cones_registry.quantities import counted

from .session import Session

if TYPE_CHECKING:
    from cones_registry.batch import BatchReport, Compositions, Engine
    from cones_registry.batch import Progress as RunProgress
    from cones_registry.registry import Registry

SHOWN_FAILURES = 30
_OPTIONS = (
    click.option(
        "--device",
        "devices",
        multiple=True,
        help="cuda:0, cpu …; else what there is. One local worker for each; repeatable.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of the base model; auto is as stored on a GPU, float32 on the CPU.",
    ),
    click.option(
        "--engine",
        "engine_name",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="This process, or actors on a Ray cluster (extra `ray`).",
    ),
    click.option(
        "--address", help="Of the Ray cluster; auto finds a running one, else one is started."
    ),
    click.option(
        "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Ray actors."
    ),
    click.option("--cpus", type=float, default=1.0, show_default=True, help="Of each Ray actor."),
    click.option("--gpus", type=float, default=0.0, show_default=True, help="Of each Ray actor."),
    click.option(
        "--keep-going", is_flag=True, help="Skip lines that cannot be run, and report them."
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --device, --dtype, --engine and its options, and --keep-going to a verb."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs, as the options say."""

    engine_name: str
    devices: tuple[str, ...]
    dtype: str
    address: str | None
    workers: int
    cpus: float
    gpus: float

    @property
    def device(self) -> str:
        """The device of a worker that is not told one of its own."""
        return self.devices[0] if self.devices else "auto"

    def make(self, compositions: Compositions, session: Session | None = None) -> Engine:
        """The engine; Ray's workers open the registry as ``session`` does.

        Raises MissingExtraError for Ray without ray, UsageError for options of the other engine.
        """
        if self.engine_name == "ray":
            if len(self.devices) > 1:
                raise UsageError(
                    "every Ray worker has the same --device: give one, and their number in "
                    "--workers (with --gpus 1 each gets a GPU of its own)"
                )
            from cones_registry.batch.ray_engine import RayEngine

            return RayEngine(
                address=self.address,
                workers=self.workers,
                cpus=self.cpus,
                gpus=self.gpus,
                storage_options=session.storage_options if session is not None else None,
            )
        if self.workers > 1 or self.address is not None:
            raise UsageError(
                "--workers and --address are of the Ray engine: add --engine ray. "
                "The local one has a worker for each --device"
            )
        from cones_registry.batch import LocalEngine

        return LocalEngine(compositions, self.devices or None)


def opened_compositions(registry: Registry | None) -> Compositions:
    """The concepts of a run; fetching them ahead stops when the command ends, however it ends."""
    from cones_registry.batch import Compositions

    return click.get_current_context().with_resource(Compositions(registry))


def read_lines(path: Path) -> str:
    """The text of a file of lines; `-` is stdin."""
    try:
        if str(path) == "-":  # as bytes: what the terminal is set to says nothing of a file
            return sys.stdin.buffer.read().decode("utf-8-sig")
        return path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}. Name a file of JSON lines, or - for stdin") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: {error}. Expected one JSON object a line"
        ) from error


@contextmanager
def shown_progress(
    session: Session, title: str, noun: str
) -> Iterator[Callable[[RunProgress], None]]:
    """What a run reports to: a bar with its rate, on a terminal."""
    with session.output.progress(title) as update:

        def on_progress(progress: RunProgress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            update(progress.done, progress.total, f"{progress.rate:.2f} {noun}s a second{failed}")

        try:
            yield on_progress
        except KeyboardInterrupt:
            session.output.message("what is done is kept; the same command goes on from here")
            raise


def learn_lines(
    session: Session,
    lines: str,
    out: str,
    registry: Registry,
    base: str,
    choice: EngineChoice,
    keep_going: bool = False,
) -> BatchReport:
    """Learn and push every line of a file of subjects; what ``out`` holds is not learnt again."""
    from cones_registry.batch import run_learning

    with shown_progress(session, "learning", "concept") as on_progress:
        return run_learning(
            lines,
            out,
            registry,
            engine=choice.make(opened_compositions(registry), session),
            base=base,
            device=choice.device,
            dtype=choice.dtype,
            keep_going=keep_going,
            on_progress=on_progress,
        )


def show_report(session: Session, report: BatchReport, *, noun: str, out: str) -> None:
    """What was made and what is missing with its reason; exit code 1 unless all is there."""
    output = session.output
    if output.as_json:
        output.document(report.to_json())
    for failure in report.failures[:SHOWN_FAILURES]:
        which = "" if failure.number is None else f", {noun} {failure.number}"
        output.message(f"line {failure.line}{which}: {failure.reason}")
    if len(report.failures) > SHOWN_FAILURES:
        output.message(f"… and {len(report.failures) - SHOWN_FAILURES:,} more: {out}/report.json")
    for note in report.notes[:SHOWN_FAILURES]:
        output.message(f"line {note.line}: {note.text}")
    failed = report.total - report.made - report.kept
    skipped = len(report.failures) - failed  # lines that are none ask for nothing
    facts = [f"{report.made:,} of {counted(report.total, noun)} made"]
    facts += [f"{report.kept:,} were there"] if report.kept else []
    facts += [f"{failed:,} failed"] if failed else []
    facts += [f"{counted(skipped, 'line')} skipped"] if skipped else []
    rate = f" ({report.rate:.2f} a second)" if report.made else ""
    output.message(f"{', '.join(facts)} in {report.seconds:.0f} s{rate}: {out}")
    if not report.succeeded:
        raise click.exceptions.Exit(1)
