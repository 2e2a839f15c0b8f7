"""`cones show`: everything about one concept, or the recipe of one picture."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .concepts import show_record
from .output import Output
from .session import Session
from .verb import verb

PICTURES = (".png", ".webp")


@verb(reads=True)
@click.argument("ref", metavar="REF|PICTURE")
def command(session: Session, ref: str) -> None:
    """Show everything kept about the concept REF, or how PICTURE was made.

    PICTURE is a PNG or WebP file of `cones generate` or `cones batch`, here or at a URL: its recipe
    is inside it.
    """
    if Path(ref).suffix.lower() in PICTURES:
        _show_recipe(session.output, _recipe(ref, session))
        return
    show_record(session.output, session.open(read_only=True).get(ref))


def _recipe(picture: str, session: Session) -> dict[str, Any]:
    from cones_registry.generation.recipe import read_recipe

    if "://" not in picture:
        return read_recipe(picture)
    from cones_registry.store import open_store

    folder, _, name = picture.rpartition("/")
    return read_recipe(open_store(folder, **session.storage_options).get(name))


def _show_recipe(output: Output, recipe: Mapping[str, Any]) -> None:
    """The recipe for a person: one line a field, and the command that draws the picture again."""
    if output.as_json:
        output.document(recipe)
        return
    size = recipe.get("size")
    output.fields(
        {
            "prompt": recipe.get("prompt"),
            "negative prompt": recipe.get("negative_prompt"),
            "concepts": "\n".join(_concept(each) for each in recipe.get("concepts") or ()),
            "seed": recipe.get("seed"),
            "steps": recipe.get("steps"),
            "guidance": recipe.get("guidance"),
            "size": size and f"{size[0]} × {size[1]}",
            "scheduler": recipe.get("scheduler"),
            "unconditional branch": "masked" if _masks_unconditional(recipe) else "plain",
            "base": f"{recipe.get('base')} in {recipe.get('dtype')}",
            "composition": recipe.get("composition"),
            "versions": ", ".join(f"{k}={v}" for k, v in (recipe.get("versions") or {}).items()),
            "again": _again(recipe),
        }
    )


def _concept(concept: Mapping[str, Any]) -> str:
    words = " ".join(concept[key] for key in ("token", "class_noun") if concept.get(key))
    where = f"at {words!r}" if concept.get("scope") == "subject" else "in the whole prompt"
    return f"{concept.get('ref')} {where}, mask {concept.get('mask_digest')}"


def _masks_unconditional(recipe: Mapping[str, Any]) -> bool:
    """Recipes of before there was a choice do not say so: masks acted on both branches."""
    return recipe.get("mask_unconditional") is not False


def _again(recipe: Mapping[str, Any]) -> str:
    """The `cones generate` that draws the picture again."""
    words = ["cones", "generate", str(recipe.get("prompt", ""))]
    for concept in recipe.get("concepts") or ():
        words += ["-c", str(concept.get("ref"))]
    for option in ("seed", "steps", "guidance", "scheduler"):
        # A class name is the base model's own scheduler, which is taken anyway.
        value = recipe.get(option)
        if value is not None and not (option == "scheduler" and str(value)[:1].isupper()):
            words += [f"--{option}", str(value)]
    if not _masks_unconditional(recipe):
        words.append("--plain-unconditional")
    if recipe.get("size"):
        words += ["--size", *map(str, recipe["size"])]
    if recipe.get("negative_prompt"):
        words += ["--negative", str(recipe["negative_prompt"])]
    if not recipe.get("concepts"):
        words += ["--base", "MODEL"]
    return shlex.join(words)
