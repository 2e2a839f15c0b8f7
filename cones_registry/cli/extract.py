"""`cones extract`: a concept from photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cones_registry.errors import UsageError

from .output import share, size
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.manifest import Scope


@verb()
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@click.option("--token", required=True, help="The word that will name the subject, as sks.")
@click.option("--class-noun", required=True, help="What the subject is one of, as dog.")
@click.option("--base", "source", required=True, metavar="MODEL", help="Folder, hub id or `demo`.")
@click.option(
    "--push", "ref", metavar="REF", help="Keep the concept in the registry as [OWNER/]NAME."
)
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the mask to a file."
)
@click.option("--method", default="gates", show_default=True, help="Or cones, or first-order.")
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
@click.option("--tag", "tags", multiple=True, help="For search; repeatable.")
@click.option("--note", default="", help="Free text kept with the concept.")
@click.option("--device", default="auto", show_default=True)
def command(
    session: Session,
    images: tuple[Path, ...],
    token: str,
    class_noun: str,
    source: str,
    ref: str | None,
    out: Path | None,
    method: str,
    scope: Scope,
    density: float | None,
    tau: float | None,
    steps: int | None,
    seed: int,
    prompts: tuple[str, ...],
    companions: Path | None,
    tags: tuple[str, ...],
    note: str,
    device: str,
) -> None:
    """Learn a concept from IMAGEs, a folder or files, and keep its mask.

    Three to five pictures are enough. A text file beside a picture (dog1.txt for dog1.png) is its
    caption, with {} where the subject is named.

    \b
    cones extract photos/ --token sks --class-noun dog --base demo --push alice/dog
    """
    if ref is None and out is None:
        raise UsageError("the mask would be lost: keep it with --push REF, or in a file with --out")
    # What can be refused is refused before minutes are spent on learning.
    registry = session.open() if ref is not None else None
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction import Extractor

    base = BaseModel.load(source, device=device)
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
    if out is not None:
        from cones_registry.codec import save_file

        record = {
            "base": base.fingerprint,
            "scope": extraction.scope,
            "token": extraction.token,
            "class_noun": extraction.class_noun,
            "tags": list(tags),
            "note": note,
            "provenance": extraction.provenance.to_json(),
        }
        save_file(extraction.mask, out, footer=record)
        output.line(str(out))
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
        )
        output.line(concept.ref)
        output.message(f"pushed {concept.ref}, {size(concept.blob_bytes)}")
