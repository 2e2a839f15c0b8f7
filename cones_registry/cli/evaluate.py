"""`cones evaluate`: plan, generate, score and table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cones_registry.errors import ConflictError, NotFoundError, UsageError
from cones_registry.quantities import counted

from .runs import (
    EngineChoice,
    learn_lines,
    opened_compositions,
    run_options,
    show_report,
    shown_progress,
)
from .session import Session
from .verb import shared_options, verb

if TYPE_CHECKING:
    from cones_registry.evaluation.plan import EvaluationPlan
    from cones_registry.evaluation.rows import Row
    from cones_registry.evaluation.scoring import Measure
    from cones_registry.registry import Registry

_PATH = click.Path(path_type=Path)
PRESET_NAMES = ("paper", "customconcept101", "clip", "demo")
FORM_NAMES = ("markdown", "json", "latex")
SECONDS_PER_PICTURE = 0.15
"""Of the demo base on one slow core; see tools/results/table.md."""
SECONDS_PER_TRAINING = 60.0


@click.group(params=shared_options(registry=False, reads=False))
def command() -> None:
    """Measure how well pictures show their subjects and follow their prompts.

    A plan (schema/evaluation.md) names subjects, prompts, seeds and rows: concepts, rivals trained
    for comparison, the base model alone, real pictures. `plan` counts, `generate` draws, `score`
    measures any folder of pictures, `table` puts rows side by side. `benchmark` does all of it for
    a published list of subjects or for your own photos.
    """


@verb(registry=False, reads=True)
@click.argument("file", metavar="PLAN", type=_PATH)
@click.option(
    "--seconds-per-picture",
    type=click.FloatRange(min=0, min_open=True),
    default=SECONDS_PER_PICTURE,
    show_default=True,
    help="Of the base model on this machine.",
)
@click.option(
    "--seconds-per-training",
    type=click.FloatRange(min=0),
    default=SECONDS_PER_TRAINING,
    show_default=True,
    help="Of a rival, for each subject.",
)
def plan(
    session: Session, file: Path, seconds_per_picture: float, seconds_per_training: float
) -> None:
    """Say what PLAN draws and about how long it takes; loads no model."""
    _say_plan(session, _plan(file), seconds_per_picture, seconds_per_training)


def _say_plan(
    session: Session,
    chosen: EvaluationPlan,
    seconds_per_picture: float = SECONDS_PER_PICTURE,
    seconds_per_training: float = SECONDS_PER_TRAINING,
) -> None:
    seconds = chosen.estimate(seconds_per_picture, seconds_per_training)
    counts = chosen.counts()
    if session.output.as_json:
        session.output.document(
            {
                "subjects": sorted(chosen.subjects),
                "prompts": len(chosen.items),
                "pictures_per_row": {str(count): n for count, n in counts.items()},
                "rows": [row.name for row in chosen.rows],
                "pictures": sum(counts.values()) * sum(r.pictures is None for r in chosen.rows),
                "estimated_seconds": seconds,
            }
        )
        return
    session.output.table(
        ("subjects in a picture", "pictures a row"), [(n, counts[n]) for n in counts]
    )
    session.output.line("")
    session.output.table(("row", "drawn by"), [(row.name, row.kind) for row in chosen.rows])
    session.output.message(
        f"{counted(len(chosen.subjects), 'subject')}, {counted(len(chosen.items), 'prompt')}, "
        f"about {seconds / 60:,.0f} minutes at {seconds_per_picture:g} s a picture"
    )


@verb()
@click.argument("file", metavar="PLAN", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder; each row gets one of its own.")
@click.option("--base", required=True, metavar="MODEL", help="Folder, hub id or `demo`.")
@click.option("--row", "names", multiple=True, help="Only these rows; repeatable.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@run_options
def generate(
    session: Session,
    file: Path,
    out: Path,
    base: str,
    names: tuple[str, ...],
    batch_size: int,
    keep_going: bool,
    **engine: Any,
) -> None:
    """Draw the rows of PLAN; started again, only what is missing.

    Rivals are trained on the way, on the subjects' own pictures. Ends with exit code 1 when
    pictures are missing.
    """
    chosen = _plan(file)
    rows = [chosen.row(name) for name in names] if names else list(chosen.rows)
    registry = None
    if any(row.concepts is not None for row in rows):
        registry = session.open(read_only=True)
    choice = EngineChoice(**engine)
    _draw(session, chosen, rows, out, base, registry, choice, batch_size, keep_going=keep_going)


def _draw(
    session: Session,
    chosen: EvaluationPlan,
    rows: Sequence[Row],
    out: Path,
    base: str,
    registry: Registry | None,
    choice: EngineChoice,
    batch_size: int,
    *,
    keep_going: bool = False,
) -> None:
    from cones_registry.evaluation.drawing import RowSettings, draw_row

    compositions = opened_compositions(registry)
    missing = 0
    for row in rows:
        with shown_progress(session, row.name, "picture") as on_progress:
            gallery, failures = draw_row(
                chosen,
                row,
                out / row.folder,
                RowSettings(base, choice.device, choice.dtype, batch_size),
                engine=partial(choice.make, session=session),
                compositions=compositions,
                registry=registry.url if registry else None,
                keep_going=keep_going,
                on_progress=on_progress,
            )
        for failure in failures:
            session.output.message(f"{row.name}, prompt {failure.line}: {failure.reason}")
        missing += len(failures)
        session.output.line(str(out / row.folder))
        session.output.message(f"{row.name}: {counted(len(gallery.samples), 'picture')}")
    if missing:
        raise click.exceptions.Exit(1)


@verb(registry=False, reads=True)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=_PATH)
@click.option(
    "--preset", "preset_name", type=click.Choice(PRESET_NAMES), default="clip", show_default=True
)
@click.option("--clip", type=_PATH, help="Folder of a CLIP model as transformers keeps it.")
@click.option("--dino", type=_PATH, help="Folder of a DINO model, for a second image alignment.")
@click.option(
    "--references",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="Real pictures of a subject, for folders that do not say; repeatable.",
)
@click.option("--method", help="Name of the row in tables; else the gallery's or the folder's.")
@click.option("--device", default="auto", show_default=True)
def score(
    session: Session,
    folders: tuple[Path, ...],
    preset_name: str,
    clip: Path | None,
    dino: Path | None,
    references: tuple[str, ...],
    method: str | None,
    device: str,
) -> None:
    """Score the pictures of each FOLDER into its scores.json; needs no plan and no base model.

    FOLDER is what `cones evaluate generate` wrote, or samples/ with prompts.json (picture's name
    without suffix -> prompt, as CustomConcept101 has it), or pictures that carry their recipe.
    """
    measure = _measure(preset_name, clip, dino, device)
    given = dict(_reference(text) for text in references)
    _score(session, folders, measure, given, method)


def _score(
    session: Session,
    folders: Sequence[Path],
    measure: Measure,
    given: Mapping[str, Path] | None = None,
    method: str | None = None,
) -> None:
    from cones_registry.evaluation.gallery import read_gallery
    from cones_registry.evaluation.scores import KEY
    from cones_registry.evaluation.scoring import score_gallery

    documents = []
    for folder in folders:
        gallery = read_gallery(folder, references=given or {}, method=method)
        with session.output.progress(gallery.method) as update:
            scores = score_gallery(gallery, measure, on_progress=update)
        scores.write(folder / KEY)
        documents.append({"file": str(folder / KEY), "pictures": len(scores.pictures)})
        if not session.output.as_json:
            session.output.line(str(folder / KEY))
    if session.output.as_json:
        session.output.document(documents)


@verb(registry=False, reads=True)
@click.argument("files", nargs=-1, required=True, metavar="SCORES...", type=_PATH)
@click.option(
    "--format", "form", type=click.Choice(FORM_NAMES), default="markdown", show_default=True
)
@click.option("--title", help="Of the table. It may claim to be the paper's only where it is.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout."
)
def table(
    session: Session, files: tuple[Path, ...], form: str, title: str | None, out: Path | None
) -> None:
    """Put the SCORES of several methods side by side: scores.json files or their folders."""
    from cones_registry.evaluation.fields import write_text
    from cones_registry.evaluation.report import FORMS
    from cones_registry.evaluation.scores import read_scores
    from cones_registry.evaluation.table import make_table

    made = make_table([read_scores(file) for file in files], title=title)
    if session.output.as_json:
        session.output.document(json.loads(FORMS["json"](made)))
        return
    text = FORMS[form](made)
    if out is None:
        session.output.line(text.rstrip("\n"))
        return
    write_text(out, text)
    session.output.message(f"written to {out}")


@verb(registry=False)
@click.argument("source", metavar="LIST|FOLDER", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder of the run; started again, goes on.")
@click.option("--base", required=True, metavar="MODEL", help="Folder, hub id or `demo`.")
@click.option("--clip", type=_PATH, help="Folder of a CLIP model as transformers keeps it.")
@click.option("--dino", type=_PATH, help="Folder of a DINO model, for a second image alignment.")
@click.option(
    "--preset",
    "preset_name",
    type=click.Choice(PRESET_NAMES),
    default="customconcept101",
    show_default=True,
)
@click.option("--rival", "rivals", multiple=True, help="A baseline to train beside; repeatable.")
@click.option(
    "--sets",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="At most so many sets of each number of subjects; 0 is all.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=4, show_default=True)
@click.option(
    "--learning-steps", type=click.IntRange(min=1), help="Instead of the method's own number."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--dry-run", is_flag=True, help="Only write the plan and say what it takes.")
def benchmark(
    session: Session,
    source: Path,
    out: Path,
    base: str,
    clip: Path | None,
    dino: Path | None,
    preset_name: str,
    rivals: tuple[str, ...],
    sets: int,
    seeds: int,
    learning_steps: int | None,
    batch_size: int,
    device: str,
    dry_run: bool,
) -> None:
    """Learn, draw, score and tabulate subjects alone, in pairs, threes and fours.

    LIST is a list as CustomConcept101 publishes it (dataset.json, dataset_multiconcept.json; MC++
    has the same form), with its pictures and prompts beside it. FOLDER holds a folder of photos
    for each subject, NOUN-NAME, as dog-rex.

    \b
    cones evaluate benchmark dataset_multiconcept.json --base ./sd15 --clip ./clip --out run
    cones evaluate benchmark photos/ --base ./sd15 --clip ./clip --dino ./dino --out run

    Concepts are kept in a registry in the run's folder. A run that was stopped goes on with the
    same command.
    """
    from cones_registry.evaluation.benchmark import learning_lines, read_benchmark
    from cones_registry.evaluation.fields import make_folder, read_object, write_object, write_text
    from cones_registry.evaluation.report import FORMS
    from cones_registry.evaluation.scores import read_scores
    from cones_registry.evaluation.table import make_table

    measure = None if dry_run else _measure(preset_name, clip, dino, device)
    content = read_benchmark(source, sets=sets).plan(seeds=seeds, rivals=rivals)
    make_folder(out)
    file = out / "plan.json"
    if file.exists() and read_object(file) != content:
        raise ConflictError(
            f"{out} holds a run of another plan. Give the options it was begun with, or draw to "
            "another folder (--out)"
        )
    write_object(file, content)
    chosen = _plan(file)
    _say_plan(session, chosen)
    if measure is None:
        return
    registry = _own_registry(out)
    choice = EngineChoice("local", (device,), "auto", None, 1, 1.0, 0.0)
    lines = learning_lines(chosen, steps=learning_steps)
    learnt = str(out / "learning")
    report = learn_lines(session, lines, learnt, registry, base, choice)
    if not report.succeeded:
        show_report(session, report, noun="concept", out=learnt)
    _draw(session, chosen, chosen.rows, out, base, registry, choice, batch_size)
    folders = [out / row.folder for row in chosen.rows]
    _score(session, folders, measure)
    made = make_table([read_scores(folder) for folder in folders])
    for form, suffix in (("markdown", "md"), ("json", "json"), ("latex", "tex")):
        write_text(out / f"table.{suffix}", FORMS[form](made))
    session.output.line(str(out / "table.md"))
    session.output.message(FORMS["markdown"](made))


def _own_registry(out: Path) -> Registry:
    """The registry in a run's folder, made where there is none."""
    from cones_registry.registry import Registry

    folder = out / "registry"
    return Registry.open(folder) if folder.exists() else Registry.create(folder)


for _verb in (benchmark, plan, generate, score, table):
    command.add_command(_verb)


def _plan(file: Path) -> EvaluationPlan:
    from cones_registry.evaluation.plan import read_plan

    return read_plan(file)


def _reference(text: str) -> tuple[str, Path]:
    """``NAME=FOLDER``, or a folder whose own name is the subject's."""
    name, equals, folder = text.partition("=")
    try:
        path = Path(folder if equals else name).expanduser()
    except RuntimeError as error:  # ~ of somebody who is not known here
        raise NotFoundError(f"no folder {folder or name}: {error}") from error
    if not path.is_dir():
        raise NotFoundError(f"no folder {path} of reference pictures")
    return (name if equals else path.name), path


def _measure(preset_name: str, clip: Path | None, dino: Path | None, device: str) -> Measure:
    """The preset's embedders."""
    from cones_registry.evaluation.transformer import DinoEmbedder

    second = None if dino is None else DinoEmbedder(dino, device=device)
    if preset_name == "demo":
        if clip is not None:
            raise UsageError("preset 'demo' measures with the demo world's own encoder, not --clip")
        from cones_registry.demo.embedders import demo_measure

        return replace(demo_measure(), dino=second)
    if clip is None:
        raise UsageError(
            f"preset {preset_name!r} needs a CLIP model: --clip FOLDER (its folder as transformers "
            "keeps it, such as a download of openai/clip-vit-large-patch14)"
        )
    from cones_registry.evaluation.presets import preset, require_backbone
    from cones_registry.evaluation.scoring import Measure
    from cones_registry.evaluation.transformer import ClipEmbedder

    embedder = ClipEmbedder(clip, device=device)
    chosen = preset(preset_name)
    require_backbone(chosen, embedder.backbone, str(clip))
    return Measure(chosen, embedder, second)
