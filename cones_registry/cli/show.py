"""`cones show`: everything about one concept, or the recipe of one picture."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cones_registry.errors import ConesError, NotFoundError, UsageError

from .concepts import show_record
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.record import Concept
    from cones_registry.registry import Registry

    from .recipes import Recipe

PICTURES = (".png", ".webp")


@verb(reads=True)
@click.argument("ref", metavar="REF|PICTURE")
@click.option("--open", "opened", is_flag=True, help="Open the concept's previews for looking at.")
def command(session: Session, ref: str, opened: bool) -> None:
    """Show everything kept about the concept REF, or how PICTURE was made.

    PICTURE is a PNG or WebP file of `cones generate` or `cones batch`, here or at a URL: its recipe
    is inside it.
    """
    if Path(ref).suffix.lower() in PICTURES:
        if opened:
            raise UsageError(f"--open is for a concept's previews, and {ref} is a picture itself")
        from .recipes import Recipe

        _show_recipe(session, Recipe.parse(_recipe(ref, session)))
        return
    registry = session.open(read_only=True)
    concept = registry.get(ref)
    show_record(session.output, concept)
    if opened:
        _open_previews(session, registry, concept)


def _open_previews(session: Session, registry: Registry, concept: Concept) -> None:
    """Write the previews of a concept beside each other, and open them in the system's viewer."""
    if not concept.previews:
        raise NotFoundError(
            f"{concept.ref} has no preview. Push it with one: cones push REF FILE --preview PICTURE"
        )
    folder = Path(tempfile.mkdtemp(prefix="cones-previews-"))
    for number, digest in enumerate(concept.previews, start=1):
        file = folder / f"{concept.owner}-{concept.name}-{concept.version}-{number}.webp"
        file.write_bytes(registry.preview(digest))
        session.output.message(str(file))
        click.launch(str(file))


def _recipe(picture: str, session: Session) -> dict[str, Any]:
    from cones_registry.generation.recipe import read_recipe

    if "://" not in picture:
        return read_recipe(picture)
    from cones_registry.store import open_store

    folder, _, name = picture.rpartition("/")
    return read_recipe(open_store(folder, **session.storage_options).get(name))


def _show_recipe(session: Session, recipe: Recipe) -> None:
    """The recipe for a person: one line a field, and the command that draws the picture again."""
    if session.output.as_json:
        session.output.line(recipe.to_json())
        return
    obstacle = recipe.obstacle()
    if obstacle is not None:
        session.output.fields({**recipe.fields(), "not again": obstacle})
        return
    known = _source(session, recipe)
    # `generate` takes the base model of its concepts itself, where the registry knows it.
    source = None if known and recipe.concepts else known or "MODEL"
    note = None if known else "MODEL is the folder or the hub id of the base model above"
    session.output.fields({**recipe.fields(), "note": note, "again": recipe.again(source)})


def _source(session: Session, recipe: Recipe) -> str | None:
    """What loads the picture's base model, where a registry was named and knows."""
    if not session.registry_url or recipe.base is None:
        return None
    try:
        return session.open(read_only=True).base(recipe.base).source
    except ConesError:
        return None
