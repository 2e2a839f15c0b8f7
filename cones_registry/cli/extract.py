"""`cones extract`: a concept from photos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cones_registry.errors import ConesError, NotFoundError, StoreUnavailableError, UsageError
from cones_registry.quantities import share, size
from cones_registry.seed import MAX_SEED

from .concepts import warn_of_duplicates
from .runs import (
    EngineChoice,
    learn_lines,
    read_lines,
    run_options,
    show_report,
)
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction import Extraction
    from cones_registry.extraction.settings import Projections
    from cones_registry.record import Scope

_OF_A_RUN = ("keep_going", "engine_name", "address", "workers", "cpus", "gpus")
_OF_BOTH = ("source", "out", "subjects", "devices", "dtype")


@verb(reads=True)
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--class-noun", help="What the subject is one of, as dog.")
@click.option("--token", help="The word the subject is learnt by, as sks; else one is chosen.")
@click.option("--base", "source", required=True, metavar="MODEL", help="Folder, hub id or `demo`.")
@click.option(
    "--push", "ref", metavar="REF", help="Keep the concept in the registry as [OWNER/]NAME."
)
@click.option(
    "-o",
    "--out",
    metavar="FILE|URL",
    help="Write the mask to a file; with --batch, the run's folder.",
)
@click.option(
    "--batch",
    "subjects",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Learn and push every line of a file of subjects, instead of IMAGEs.",
)
@click.option(
    "--method", default="gates", show_default=True, help="Or quick-gates, cones, first-order."
)
@click.option(
    "--scope",
    type=click.Choice(["subject", "prompt"]),
    default="subject",
    show_default=True,
    help="Where the mask acts: on the subject's own words, or on the whole prompt as in the paper.",
)
@click.option(
    "--density", type=click.FloatRange(0, 1, min_open=True), help="Share of neurons to shut."
)
@click.option("--tau", type=float, help="Threshold on the score, instead of --density.")
@click.option("--steps", type=click.IntRange(min=1), help="Instead of the method's own number.")
@click.option("--seed", type=click.IntRange(min=0, max=MAX_SEED), default=0, show_default="0")
@click.option(
    "--prompt", "prompts", multiple=True, help="A caption with {} for the subject; repeatable."
)
@click.option(
    "--companions",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of pictures of other things, with captions, to be shown beside the subject.",
)
@click.option(
    "--keep-scores",
    is_flag=True,
    help="Keep how the neurons rank, so the mask can be cut later; takes about half as much again.",
)
@click.option(
    "--projections",
    type=click.Choice(["kv", "k", "v"]),
    default="kv",
    show_default=True,
    help="Shut neurons in keys and values, or in one of them.",
)
@click.option(
    "--size",
    "side",
    type=click.IntRange(min=8),
    help="Pixels on a side to learn at; the base model's own size if not given.",
)
@click.option("--dry-run", is_flag=True, help="Only say what memory learning would take.")
@click.option(
    "--previews",
    type=click.IntRange(min=0, max=4),
    default=1,
    show_default=True,
    help="Pictures of the concept, drawn and kept with it by --push; 0 for none.",
)
@click.option("--tag", "tags", multiple=True, help="For search; repeatable.")
@click.option("--note", default="", help="Free text kept with the concept.")
@run_options
def command(
    session: Session,
    images: tuple[Path, ...],
    token: str | None,
    class_noun: str | None,
    source: str,
    ref: str | None,
    out: str | None,
    subjects: Path | None,
    method: str,
    scope: Scope,
    density: float | None,
    tau: float | None,
    steps: int | None,
    seed: int,
    prompts: tuple[str, ...],
    companions: Path | None,
    keep_scores: bool,
    projections: Projections,
    side: int | None,
    dry_run: bool,
    previews: int,
    tags: tuple[str, ...],
    note: str,
    keep_going: bool,
    **engine: Any,
) -> None:
    """Learn a concept from IMAGEs, a folder or files, and keep its mask.

    Three to five pictures are enough. A text file beside a picture (dog1.txt for dog1.png) is its
    caption, with {} where the subject is named.

    \b
    cones extract photos/ --class-noun dog --base demo --push alice/dog
    cones extract --batch subjects.jsonl --base demo --out run

    A file of subjects has one JSON object a line: name, images, token, class_noun and, as above,
    method, scope, density, tau, steps, seed, prompts, companions, keep_scores, size, projections,
    tags, note. A run that was stopped is started again with the same command and learns only what
    is missing.
    """
    given = _given()
    if subjects is not None:
        if others := [
            option for name, option in given.items() if name not in (*_OF_A_RUN, *_OF_BOTH)
        ]:
            raise UsageError(
                f"{', '.join(others)} and --batch: each line of {subjects} says this for itself. "
                "Write it there, or learn one concept without --batch"
            )
        _run(session, subjects, out, source, keep_going, EngineChoice(**engine))
        return
    if not images or not class_noun:
        raise UsageError(
            "a concept needs pictures and a word for what they show:"
            " cones extract photos/ --class-noun dog --base demo --push alice/dog"
        )
    if ref is None and out is None and not dry_run:
        raise UsageError("the mask would be lost: keep it with --push REF, or in a file with --out")
    choice = EngineChoice(**engine)
    others = [given[name] for name in _OF_A_RUN if name in given]
    if others or len(choice.devices) > 1:
        raise UsageError(
            f"{', '.join(others) or 'several --device'} without --batch: one concept is learnt in "
            "this process, on one device. To learn many, put them in a file: --batch FILE"
        )
    # What can be refused is refused before minutes are spent on learning.
    if out is not None:
        _require_place(out)
    registry = None
    taken: tuple[str, ...] = ()
    if ref is not None:
        from cones_registry.registry.drafts import pushable

        pushable(ref)
        registry = session.open()
        if token is None:  # one of its own, as long as there are, so that tokens tell them apart
            sql = "select distinct token from concepts where token is not null"
            taken = tuple(registry.query(sql).column("token").to_pylist())
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction import ExtractionSettings, Extractor

    base = BaseModel.load(source, device=choice.device, dtype=choice.dtype)
    settings = ExtractionSettings(size=side, projections=projections)
    if dry_run:
        needed = Extractor(base).memory(
            images[0] if len(images) == 1 else images,
            token=token,
            class_noun=class_noun,
            method=method,
            scope=scope,
            prompts=prompts or None,
            companions=companions,
            settings=settings,
        )
        session.output.line(str(needed))
        needed.require()
        return
    extraction = Extractor(base).extract(
        images[0] if len(images) == 1 else images,
        token=token,
        avoid_tokens=taken,
        class_noun=class_noun,
        method=method,
        scope=scope,
        density=density,
        tau=tau,
        steps=steps,
        seed=seed,
        prompts=prompts or None,
        companions=companions,
        settings=settings,
    )
    output = session.output
    output.message(
        f"{len(extraction.mask):,} of {extraction.mask.table.neuron_count:,} neurons"
        f" ({share(extraction.density)})"
    )
    scores = extraction.scores if keep_scores else None
    if registry is not None and ref is not None:
        concept = registry.push(
            ref,
            extraction,
            tags=tags,
            note=note,
            scores=scores,
            previews=_previews(session, base, ref, extraction, previews),
        )
        output.line(concept.ref)
        output.message(f"pushed {concept.ref}, {size(concept.blob_bytes)}")
        warn_of_duplicates(session, registry, concept, extraction.mask)
    if out is not None:
        from cones_registry.codec import save_file
        from cones_registry.ranking import ranks_of

        record = extraction.record(base.fingerprint, tags=tags, note=note)
        ranks = None if scores is None else ranks_of(extraction.mask, scores)
        save_file(extraction.mask, out, footer=record, ranks=ranks)
        output.line(out)


def _previews(
    session: Session, base: BaseModel, ref: str, extraction: Extraction, count: int
) -> tuple[bytes, ...]:
    """``count`` pictures of the concept, fewer where some fail: it is kept all the same."""
    if count == 0:
        return ()
    from cones_registry.generation.concept_preview import Learnt, draw_previews

    learnt = Learnt(
        ref,
        extraction.mask,
        extraction.scope,
        extraction.token,
        extraction.class_noun,
        extraction.provenance,
    )
    try:
        drawn = draw_previews(base, learnt, count)
    except ConesError as error:
        session.output.message(f"no preview is kept: {error}")
        return ()
    if len(drawn) < count:
        session.output.message(
            f"{count - len(drawn)} of {count} previews failed and are not kept: the base model "
            "gave no picture (cones doctor --base)"
        )
    return drawn


def _given() -> dict[str, str]:
    """Parameters that stand on the command line: name -> how it is written there."""
    context = click.get_current_context()
    return {
        parameter.name: parameter.human_readable_name
        if isinstance(parameter, click.Argument)
        else max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name
        and parameter.expose_value
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def _require_place(out: str) -> None:
    """Raise what writing a mask file to ``out`` would, before anything is learnt for it."""
    if "://" in out:
        raise UsageError(
            f"cannot write a mask to {out}: --out is a file here, and with --batch a folder or "
            "URL. Keep the mask in a registry with --push REF"
        )
    file, folder = Path(out), Path(out).parent
    if file.is_dir():
        raise StoreUnavailableError(f"cannot write {out!r}: it is a folder. Name a file in it")
    if not folder.exists():
        raise NotFoundError(f"no folder {str(folder)!r}. Create it first")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "not to be written to" if folder.is_dir() else "a file"
        raise StoreUnavailableError(
            f"cannot write {out!r}: {str(folder)!r} is {what}. Write to another folder (--out)"
        )


def _run(
    session: Session,
    subjects: Path,
    out: str | None,
    source: str,
    keep_going: bool,
    choice: EngineChoice,
) -> None:
    """Learn every line of a file of subjects."""
    if out is None:
        raise UsageError("say with --out in which folder the run keeps what it has learnt")
    lines = read_lines(subjects)
    report = learn_lines(session, lines, out, session.open(), source, choice, keep_going)
    show_report(session, report, noun="concept", out=out)
