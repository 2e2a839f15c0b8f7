"""The paper's claims on the demo base, part by part; called by `tools/reproduce`.

Part `table` is here: subjects are rendered, learnt by every method, drawn alone and together, and
scored by the demo world's own embedders. Everything is kept in --work, so a run that was stopped
goes on where it was; two processes may share a folder if they are given different --row. The other
parts are the scripts `measure_*.py` beside this one. tools/results/README.md says which part is
about which claim.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from filelock import FileLock
from measured import RESULTS
from reproduction_claims import write_claims
from reproduction_plan import (
    OURS,
    QUICK_STEPS,
    RIVALS,
    SETS,
    TUNED_ROWS,
    WORLD_ROW,
    chosen_subjects,
    groups,
    tuned_name,
    write_plan,
    write_subjects,
    write_world_row,
)
from reproduction_report import write_report

from cones_registry import BaseModel, Extractor, Registry
from cones_registry.batch import Compositions, LocalEngine
from cones_registry.demo.embedders import demo_measure
from cones_registry.demo.learn import learn
from cones_registry.errors import NotFoundError
from cones_registry.evaluation.drawing import RowSettings, draw_row
from cones_registry.evaluation.gallery import read_gallery
from cones_registry.evaluation.plan import read_plan
from cones_registry.evaluation.scores import KEY as SCORES
from cones_registry.evaluation.scoring import score_gallery
from cones_registry.extraction import (
    ExtractionSettings,
    SubjectImages,
    TuneSettings,
    read_companions,
)

TOOLS = Path(__file__).parent
SCRIPTS = {
    script.stem.removeprefix("measure_").replace("_", "-"): script
    for script in sorted(TOOLS.glob("measure_*.py"))
}
OWNER = "demo"
TUNED_FROM = "gates/subject"
STAGES = ("learn", "draw", "score", "report")


def say(text: str) -> None:
    """A line on stderr with the time."""
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


class Clock:
    """Seconds of processor time by stage and row, kept in a file of this process."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "times" / f"{time.time_ns()}.json"
        self._spent: dict[str, float] = {}

    def __call__(self, what: str, work: Callable[[], None]) -> None:
        """Do it and note what it took."""
        before = time.process_time()
        try:
            work()
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.process_time() - before
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._spent))


def open_registry(folder: Path) -> Registry:
    """The run's registry, made on first use."""
    url = str(folder / "registry")
    with FileLock(folder / "registry.lock"):  # another process may be at the same point
        try:
            return Registry.open(url, default_owner=OWNER)
        except NotFoundError:
            return Registry.create(url, default_owner=OWNER)


def learn_row(row: str, base: BaseModel, folder: Path, *, quick: bool) -> None:
    """Learn what the row needs and the registry lacks."""
    options = {}
    if quick:
        options = {
            "steps": QUICK_STEPS,
            "settings": ExtractionSettings(prior_steps=2, prior_count=4),
        }
    method, scope = OURS[row]
    registry = open_registry(folder)
    extractor = Extractor(base, cache_folder=folder / "cache")
    for subject in chosen_subjects(quick=quick):
        name = f"{subject.name}-{row.replace('/', '-')}"
        try:
            registry.get(name)
            continue
        except NotFoundError:
            pass
        say(f"learning {name}")
        at = subject.at(folder)
        extraction = learn(
            extractor,
            at,
            read_companions(at.folder / "companions"),
            scope=scope,
            method=method,
            progress=None,
            **options,
        )
        registry.push(name, extraction, tags=("reproduction", subject.noun))


def learn_tuned_row(row: str, base: BaseModel, folder: Path, *, quick: bool) -> None:
    """Tune every group's masks jointly, those of the default row."""
    learn_row(TUNED_FROM, base, folder, quick=quick)
    registry = open_registry(folder)
    extractor = Extractor(base, cache_folder=folder / "cache")
    for group in groups(SETS[:1] if quick else SETS):
        precision = TUNED_ROWS[row]
        name = tuned_name(group, precision)
        if registry.find(name=f"{name}-{group[-1].token}"):
            continue
        say(f"tuning {name}")
        images = {
            registry.get(f"{at.name}-{TUNED_FROM.replace('/', '-')}").ref: SubjectImages(
                at.folder, at.token, at.noun, read_companions(at.folder / "companions")
            )
            for at in (subject.at(folder) for subject in group)
        }
        tuning = extractor.tune(
            registry.resolve(*images),
            images,
            tuning=TuneSettings(steps=QUICK_STEPS if quick else None, precision=precision),
            progress=None,
        )
        registry.push_many(tuning.pushes(name))


def table(
    work: Path, source: str, rows: tuple[str, ...], stages: tuple[str, ...], *, quick: bool
) -> None:
    """The table: every row learnt, drawn and scored, then the report of all that is there."""
    base = BaseModel.load(source, device="cpu")
    # What was made with another base model is of no use for this one.
    folder = (
        work / f"{'quick' if quick else 'table'}-{base.fingerprint.removeprefix('sha256:')[:12]}"
    )
    clock = Clock(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "plan.lock"):
        clock("subjects", lambda: write_subjects(base, folder, quick=quick))
        plan = read_plan(write_plan(folder, quick=quick))
    named = [plan.row(name) for name in rows if name != WORLD_ROW]
    chosen = named if rows else plan.rows
    measure = demo_measure()
    for row in chosen:
        place = folder / "rows" / row.folder
        if "learn" in stages and row.name in OURS:
            clock(
                f"learn {row.name}", lambda row=row: learn_row(row.name, base, folder, quick=quick)
            )
        if "learn" in stages and row.name in TUNED_ROWS:
            clock(
                f"learn {row.name}",
                lambda row=row: learn_tuned_row(row.name, base, folder, quick=quick),
            )
        if "draw" in stages:
            say(f"drawing {row.name}")
            registry = open_registry(folder)
            compositions = Compositions(registry)

            def draw(row=row, place=place, registry=registry, compositions=compositions) -> None:
                draw_row(
                    plan,
                    row,
                    place,
                    RowSettings(source, "cpu", batch_size=20),
                    engine=LocalEngine,
                    compositions=compositions,
                    registry=registry.url,
                    on_progress=lambda p: (
                        say(f"  {row.name}: {p.done} of {p.total}") if row.name in RIVALS else None
                    ),
                )

            clock(f"draw {row.name}", draw)
            compositions.close()
        if "score" in stages and (place / "gallery.json").exists():
            score_gallery(read_gallery(place), measure).write(place / SCORES)
    if not rows or WORLD_ROW in rows:
        place = folder / "rows" / WORLD_ROW
        if "draw" in stages:
            write_world_row(plan, place)
        if "score" in stages:
            score_gallery(read_gallery(place), measure).write(place / SCORES)
    if "report" in stages:
        write_report(plan, folder, base, folder if quick else RESULTS)


@click.command()
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["table", *SCRIPTS]),
    default=("table", *SCRIPTS),
    help="Only these; repeatable.",
)
@click.option(
    "--row", "rows", multiple=True, help="Only these rows of the table, in this order; "
    "repeatable. The report is made of all rows that are there."
)  # fmt: skip
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), default=STAGES)
@click.option("--base", "source", default="demo", show_default=True)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/reproduction"),
    show_default=True,
    help="Where everything is kept until the report.",
)
@click.option("--quick", is_flag=True, help="See that it runs: next to no learning, one seed.")
def main(
    parts: tuple[str, ...],
    rows: tuple[str, ...],
    stages: tuple[str, ...],
    source: str,
    work: Path,
    quick: bool,
) -> None:
    """Measure, and write tools/results."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part == "table":
            table(work, source, rows, stages, quick=quick)
        elif not quick:
            say(f"part {part}")
            command = [sys.executable, str(SCRIPTS[part]), "--write"]
            if '"--work"' in SCRIPTS[part].read_text("utf-8"):
                command += ["--work", str(work / part)]
            subprocess.run(command, check=True)
    if not quick:
        write_claims()


if __name__ == "__main__":
    main()
