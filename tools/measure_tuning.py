"""What joint tuning adds for two, three and four subjects: `python tools/measure_tuning.py`.

The demo's four subjects are learnt one by one; then the factors of each set's masks are tuned on
all its subjects together. Judged before and after on the same prompts and seeds. `--write` keeps
the table in tools/results/tuning.{md,json}.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import torch
from measured import RESULTS, conditions, keep
from PIL import Image

from cones_registry import BaseModel, Composition, ConceptMask, Extractor, Generator, encode
from cones_registry.demo.judge import Judge
from cones_registry.demo.learn import companions, learn
from cones_registry.demo.measure import Trial, draw, group_trials, score
from cones_registry.demo.sheet import Strip, contact_sheet
from cones_registry.demo.subjects import SUBJECTS, Subject
from cones_registry.errors import ConflictError, NotFoundError
from cones_registry.extraction import Companion, SubjectImages, TuneSettings, Tuning
from cones_registry.record import Scope
from cones_registry.registry import Registry

SETS = ((0, 1), (2, 3), (0, 1, 2), (1, 2, 3), (0, 1, 2, 3))
SHOWN = 6  # pictures of each kind on the sheet


class Bench:
    """One base model, a registry of the four subjects' concepts, and the judge."""

    def __init__(self, source: str, work: Path, steps: int) -> None:
        self.base, self.judge, self.steps = BaseModel.load(source), Judge.load(), steps
        self.generator, self.extractor = Generator(self.base), Extractor(self.base)
        try:
            self.registry = Registry.create(work / "registry")
        except ConflictError:
            self.registry = Registry.open(work / "registry")
        self._companions: dict[str, tuple[Companion, ...]] = {}

    def companions(self, subject: Subject) -> tuple[Companion, ...]:
        """Drawn once."""
        if subject.name not in self._companions:
            self._companions[subject.name] = companions(self.base, subject)
        return self._companions[subject.name]

    def concept(self, subject: Subject, scope: Scope) -> str:
        """Ref of the subject's concept, learnt unless it is there."""
        name = f"{subject.name}-{scope}"
        try:
            concept = self.registry.get(name)
            if concept.base == self.base.fingerprint:
                return concept.ref
        except NotFoundError:
            pass
        beside = self.companions(subject)
        found = learn(self.extractor, subject, beside, scope=scope, steps=self.steps)
        return self.registry.push(
            name,
            found.mask,
            base=self.base,
            scope=scope,
            token=subject.token,
            class_noun=subject.noun,
            provenance=found.provenance,
        ).ref

    def learning_steps(self) -> dict[str, int]:
        """Scope -> steps its concepts were learnt in, as they say."""
        return {
            concept.scope: int(concept.provenance.parameters["steps"])
            for concept in self.registry.find()
            if concept.provenance is not None
        }

    def tune(
        self, chosen: Sequence[Subject], scope: Scope, settings: TuneSettings
    ) -> tuple[Composition, Tuning, float]:
        """A composition, what joint tuning made of it, and the seconds that took."""
        refs = {self.concept(subject, scope): subject for subject in chosen}
        composition = self.registry.resolve(*refs)
        images = {
            ref: SubjectImages(s.folder, s.token, s.noun, self.companions(s))
            for ref, s in refs.items()
        }
        began = time.monotonic()
        tuned = self.extractor.tune(composition, images, tuning=settings, progress=None)
        return composition, tuned, time.monotonic() - began

    def score(
        self, trials: Sequence[Trial], **parts: object
    ) -> tuple[dict[str, float], list[Image.Image]]:
        """Shares, and the pictures they were counted on."""
        pictures = draw(self.generator, trials, **parts)
        return score(self.judge, trials, pictures), pictures


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--scope", "scopes", multiple=True, default=("subject", "prompt"))
@click.option("--set", "only", multiple=True, help="As 0,1: subjects of one set; repeatable.")
@click.option("--count", default=24, show_default=True, help="Pictures behind every share.")
@click.option("--steps", default=300, show_default=True, help="Of learning each subject.")
@click.option("--tune-steps", default=None, type=int, help="Of tuning; else the default's.")
@click.option("--rate", default=None, type=float, help="Learning rate of tuning.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Registry and rows.")
@click.option("--learn-only", is_flag=True)
@click.option("--write", is_flag=True)
def main(
    source: str,
    scopes: tuple[Scope, ...],
    only: tuple[str, ...],
    count: int,
    steps: int,
    tune_steps: int | None,
    rate: float | None,
    work: Path,
    learn_only: bool,
    write: bool,
) -> None:
    """Measure, note every row in WORK, print."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    log = work / "rows.jsonl"
    bench = Bench(source, work, steps)
    settings = (
        TuneSettings(steps=tune_steps)
        if rate is None
        else TuneSettings(tune_steps, learning_rate=rate)
    )
    sets = [tuple(int(at) for at in text.split(",")) for text in only] or SETS
    for scope in scopes:
        for chosen in sets:
            members = [SUBJECTS[at] for at in chosen]
            if learn_only:
                for subject in members:
                    click.echo(bench.concept(subject, scope), err=True)
                continue
            rows, strips = _measure(bench, members, scope, settings, count)
            with log.open("a") as file:
                for row in rows:
                    click.echo(json.dumps(row), err=True)
                    file.write(json.dumps(row) + "\n")
            contact_sheet(strips).save(work / f"{scope}-{'-'.join(s.name for s in members)}.png")
    if not log.exists():
        return
    found = [json.loads(line) for line in log.read_text().splitlines()]
    rows = list({(r["scope"], tuple(r["subjects"]), r["masks"]): r for r in found}.values())
    table = _table(rows)
    click.echo(table)
    if write:
        record = {
            **conditions(bench.base),
            "pictures": count,
            "learning_steps": bench.learning_steps(),
            "learning_rate": settings.learning_rate,
            "rows": rows,
        }
        keep("tuning", record, _page(record, table))
        _stacked(sorted(work.glob("subject-*.png"), key=lambda file: len(file.stem))).save(
            RESULTS / "tuning.png", optimize=True
        )


def _measure(
    bench: Bench, members: Sequence[Subject], scope: Scope, settings: TuneSettings, count: int
) -> tuple[list[dict[str, object]], list[Strip]]:
    composition, tuned, seconds = bench.tune(members, scope, settings)
    trials = group_trials(members, count)
    rows, strips = [], []
    kinds: Mapping[str, tuple[object, Callable[[], list[ConceptMask]]]] = {
        "as learnt": (composition, lambda: [part.mask for part in composition.parts]),
        "tuned": (tuned, lambda: [part.mask for part in tuned.parts]),
    }
    for kind, (parts, masks) in kinds.items():
        shares, pictures = bench.score(trials, composition=parts)
        rows.append(
            {
                "scope": scope,
                "subjects": [subject.name for subject in members],
                "masks": kind,
                **shares,
                "bytes": sum(len(encode(mask)) for mask in masks()),
                "seconds": round(seconds, 1) if kind == "tuned" else None,
                "steps": tuned.parts[0].provenance.parameters["steps"] if kind == "tuned" else None,
                "learning_rate": settings.learning_rate,
            }
        )
        title = f"{scope}: {' + '.join(s.phrase for s in members)}, {kind}"
        strips.append(Strip(title, (("", tuple(pictures[:SHOWN])),)))
    return rows, strips


def _stacked(files: Sequence[Path]) -> Image.Image:
    """Contact sheets one above the other."""
    sheets = [Image.open(file) for file in files]
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| scope | subjects | masks | shape | colour | texture | each right | all right "
        "| place, background | bytes | steps | s |",
        "|" + "---|" * 12,
    ]
    for row in sorted(rows, key=lambda r: (r["scope"], len(r["subjects"]), r["subjects"])):  # type: ignore[arg-type]
        mark = "**" if row["masks"] == "tuned" else ""
        lines.append(
            f"| {row['scope']} | {', '.join(row['subjects'])} | {row['masks']} "  # type: ignore[arg-type]
            f"| {row['shape']:.2f} | {row['colour']:.2f} | {row['texture']:.2f} "
            f"| {mark}{row['thing']:.2f}{mark} | {mark}{row['all']:.2f}{mark} "
            f"| {row['place']:.2f}, {row['background']:.2f} | {row['bytes']:,} "
            f"| {row['steps'] or ''} | {row['seconds'] or ''} |"
        )
    for scope in dict.fromkeys(row["scope"] for row in rows):
        for size in (2, 3, 4):
            gains = []
            for kind in ("as learnt", "tuned"):
                chosen = [
                    r["thing"]
                    for r in rows
                    if (r["scope"], r["masks"], len(r["subjects"])) == (scope, kind, size)  # type: ignore[arg-type]
                ]
                gains.append(statistics.fmean(chosen) if chosen else None)  # type: ignore[type-var]
            if None not in gains:
                lines.append(
                    f"| {scope} | **mean of sets of {size}** | | | | | "
                    f"{gains[0]:.2f} → {gains[1]:.2f} | | | | | |"
                )
    return "\n".join(lines)


def _page(record: dict[str, object], table: str) -> str:
    steps: dict[str, int] = record["learning_steps"]  # type: ignore[assignment]
    learnt = ", ".join(f"{count} steps in scope {scope}" for scope, count in steps.items())
    return (
        "# Joint tuning\n\n"
        "`python tools/measure_tuning.py --work FOLDER --write`: masks of the demo's subjects, "
        f"learnt one by one (gates, {learnt}), as they are and after `Extractor.tune` on all "
        "subjects of the set (40 steps a subject, learning rate "
        f"{record['learning_rate']}). Shares over {record['pictures']} pictures a row with all "
        "subjects of the set, the same prompts and seeds before and after, read by the judge: "
        "`each right`: subjects right in shape, both colours, texture and place; `all right`: "
        "pictures in which every subject is. Scope `subject`: each mask keeps to its own token "
        "rows and gets factors of its own; scope `prompt` (the paper's union): the merged mask "
        "does. Bytes: all masks of the row, factors in float16. Seconds under the load of a shared "
        "machine.\n\n"
        f"Base {record['fingerprint']}; {record['machine']}; torch {record['torch']}; one seed.\n\n"
        f"{table}\n\n"
        "![Sets of subjects in scope subject, as learnt and tuned](tuning.png)\n"
    )


if __name__ == "__main__":
    main()
