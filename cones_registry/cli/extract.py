"""`cones extract`: a concept from photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cones_registry.errors import UsageError

from .concepts import warn_of_duplicates
from .output import share, size
from .runs import EngineChoice, read_lines, run_options, show_report, shown_progress
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.manifest import Scope


@verb(reads=True)
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--token", help="The word that will name the subject, as sks.")
@click.option("--class-noun", help="What the subject is one of, as dog.")
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
@click.option("--seed", type=int, default=0, show_default=True)
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
    tags: tuple[str, ...],
    note: str,
    keep_going: bool,
    **engine: Any,
) -> None:
    """Learn a concept from IMAGEs, a folder or files, and keep its mask.

    Three to five pictures are enough. A text file beside a picture (dog1.txt for dog1.png) is its
    caption, with {} where the subject is named.

    \b
    cones extract photos/ --token sks --class-noun dog --base demo --push alice/dog
    cones extract --batch subjects.jsonl --base demo --out run

    A file of subjects has one JSON object a line: name, images, token, class_noun and, as above,
    method, scope, density, tau, steps, seed, prompts, companions, keep_scores, tags, note. A run
    that was stopped is started again with the same command and learns only what is missing.
    """
    if subjects is not None:
        _run(session, subjects, out, source, keep_going, EngineChoice(**engine))
        return
    if not images or not token or not class_noun:
        raise UsageError(
            "a concept needs pictures and words:"
            " cones extract photos/ --token sks --class-noun dog --base demo --push alice/dog"
        )
    if ref is None and out is None:
        raise UsageError("the mask would be lost: keep it with --push REF, or in a file with --out")
    # What can be refused is refused before minutes are spent on learning.
    registry = None
    if ref is not None:
        from cones_registry.registry.drafts import pushable

        pushable(ref)
        registry = session.open()
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction import Extractor

    choice = EngineChoice(**engine)
    base = BaseModel.load(source, device=choice.device, dtype=choice.dtype)
    extraction = Extractor(base).extract(
        images[0] if len(images) == 1 else images,
        token=token,
        class_noun=class_noun,
        method=method,
        scope=scope,
        density=density,
        tau=tau,
        steps=steps,
        seed=seed,
        prompts=prompts or None,
        companions=companions,
    )
    output = session.output
    output.message(
        f"{len(extraction.mask):,} of {extraction.mask.table.neuron_count:,} neurons"
        f" ({share(extraction.density)})"
    )
    scores = extraction.scores if keep_scores else None
    if out is not None:
        from cones_registry.codec import save_file
        from cones_registry.ranking import ranks_of

        record = {
            "base": base.fingerprint,
            "scope": extraction.scope,
            "token": extraction.token,
            "class_noun": extraction.class_noun,
            "tags": list(tags),
            "note": note,
            "provenance": extraction.provenance.to_json(),
        }
        ranks = None if scores is None else ranks_of(extraction.mask, scores)
        save_file(extraction.mask, out, footer=record, ranks=ranks)
        output.line(out)
    if registry is not None and ref is not None:
        concept = registry.push(
            ref,
            extraction.mask,
            base=base,
            scope=extraction.scope,
            token=extraction.token,
            class_noun=extraction.class_noun,
            provenance=extraction.provenance,
            tags=tags,
            note=note,
            scores=scores,
        )
        output.line(concept.ref)
        output.message(f"pushed {concept.ref}, {size(concept.blob_bytes)}")
        warn_of_duplicates(session, registry, concept, extraction.mask)


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
    registry = session.open()
    from cones_registry.batch import Compositions, run_learning

    with shown_progress(session, "learning", "concept") as on_progress:
        report = run_learning(
            lines,
            out,
            registry,
            engine=choice.make(Compositions(registry), session),
            base=source,
            device=choice.device,
            dtype=choice.dtype,
            keep_going=keep_going,
            on_progress=on_progress,
        )
    show_report(session, report, noun="concept", out=out)
