"""`cones push`: keep a mask file in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cones_registry.errors import UsageError
from cones_registry.quantities import size

from .concepts import warn_of_duplicates
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.record import Scope


@verb()
@click.argument("ref")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--base", "source", metavar="MODEL", help="Folder, hub id, `demo`, or a fingerprint (sha256:…)."
)
@click.option("--scope", type=click.Choice(["subject", "prompt"]), help="Where the mask acts.")
@click.option("--token", help="The word that names the subject in prompts.")
@click.option("--class-noun", help="What the subject is one of.")
@click.option(
    "--preview",
    "pictures",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    multiple=True,
    metavar="PICTURE",
    help="A picture of it, kept with it at up to 512 pixels a side; repeatable, four at most.",
)
@click.option("--tag", "tags", multiple=True, help="For search; repeatable.")
@click.option("--note", help="Free text kept with the concept.")
def command(
    session: Session,
    ref: str,
    file: Path,
    source: str | None,
    scope: Scope | None,
    token: str | None,
    class_noun: str | None,
    pictures: tuple[Path, ...],
    tags: tuple[str, ...],
    note: str | None,
) -> None:
    """Keep the mask in FILE as the next version of REF, [OWNER/]NAME.

    A file that `extract --out` or `pull` wrote says itself which base model it was made for, its
    scope, words and provenance; options say otherwise.
    """
    from cones_registry.codec import load_file, read_footer, read_ranks
    from cones_registry.record import Provenance

    if not file.exists() and Path(ref).is_file():
        raise UsageError(f"the ref comes first, then the file: cones push {file} {ref}")
    mask, data = load_file(file), file.read_bytes()
    kept: dict[str, Any] = read_footer(data).get("concept") or {}
    provenance = kept.get("provenance")
    registry = session.open()
    base = _base(source) if source else kept.get("base")
    if kept.get("base") not in (None, base, getattr(base, "fingerprint", None)):
        session.output.message(
            f"warning: {file} says it was made for base model {kept['base']}; on other weights "
            "its indices mean nothing"
        )
    scope = scope or kept.get("scope")
    if scope is None:
        raise UsageError(
            f"{file} does not say where its mask acts. Learnt for its own words: --scope subject "
            "--token WORD --class-noun NOUN; for every word of a prompt: --scope prompt"
        )
    concept = registry.push(
        ref,
        mask,
        base=base,
        scope=scope,
        token=token or kept.get("token"),
        class_noun=class_noun or kept.get("class_noun"),
        tags=tags or tuple(kept.get("tags", ())),
        note=kept.get("note", "") if note is None else note,
        provenance=None if provenance is None else Provenance.from_json(provenance),
        scores=read_ranks(data),
        previews=_previews(pictures),
    )
    session.output.line(concept.ref)
    session.output.message(
        f"pushed {concept.ref}: {concept.neuron_count:,} neurons, {size(concept.blob_bytes)}"
    )
    warn_of_duplicates(session, registry, concept, mask)


def _previews(pictures: tuple[Path, ...]) -> list[bytes]:
    if not pictures:
        return []
    from cones_registry.generation.concept_preview import preview_of_file

    return [preview_of_file(each.read_bytes(), str(each)) for each in pictures]


def _base(source: str) -> Any:
    """A fingerprint as it is; anything else is a model to load."""
    if source.startswith("sha256:"):
        return source
    from cones_registry.base_model import BaseModel

    return BaseModel.load(source)
