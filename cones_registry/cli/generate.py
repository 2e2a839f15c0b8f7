"""`cones generate`: pictures of a prompt with any concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from cones_registry.errors import ConflictError, UsageError
from cones_registry.picture_size import check_side

from .picture_file import make_room, write
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from PIL.Image import Image

    from cones_registry.generation import Request
    from cones_registry.registry import Registry
    from cones_registry.resolver import Composition

SUFFIXES = (".png", ".webp")


@verb()
@click.argument("prompt")
@click.option(
    "-c",
    "--concept",
    "refs",
    multiple=True,
    metavar="REF",
    help="A concept to draw, or REF*0.7; repeatable.",
)
@click.option(
    "--tuned", is_flag=True, help="Take the masks that were tuned jointly for exactly these."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("picture.png"),
    show_default=True,
    help="Where the picture goes; with --count, picture-1.png and so on.",
)
@click.option(
    "--base", "source", metavar="MODEL", help="Folder, hub id or `demo`; else the concepts'."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Pictures, each with the next seed.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=None,
    help="Denoising steps; else the base model's own.",
)
@click.option(
    "--guidance",
    type=float,
    default=None,
    help="Classifier-free guidance, 1 is none; else the base model's.",
)
@click.option("--negative", default="", metavar="PROMPT", help="What to move away from.")
@click.option(
    "--size",
    type=(int, int),
    default=None,
    metavar="WIDTH HEIGHT",
    help="In pixels, multiples of 8.",
)
@click.option("--scheduler", help="As dpm, ddim, euler; else the base model's own.")
@click.option(
    "--mask-unconditional/--plain-unconditional",
    default=True,
    show_default=True,
    help="Whether masks act on guidance's unconditional branch too, as in the paper.",
)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto is as stored on a GPU, float32 on the CPU.",
)
def command(
    session: Session,
    prompt: str,
    refs: tuple[str, ...],
    tuned: bool,
    out: Path,
    source: str | None,
    seed: int,
    count: int,
    steps: int | None,
    guidance: float | None,
    negative: str,
    size: tuple[int, int] | None,
    scheduler: str | None,
    mask_unconditional: bool,
    device: str,
    dtype: str,
) -> None:
    """Draw PROMPT with the concepts that it names, on their unchanged base model.

    <owner/name> in the PROMPT stands for a concept: <alice/dog>, <alice/dog:prod>, <alice/dog*0.7>;
    \\< is a plain <. With --concept the PROMPT uses the words that it was learnt with instead
    (`cones show REF` tells them).

    \b
    cones generate "a photo of <alice/dog> next to <bob/cat:prod>" --seed 7 -o both.png
    cones generate "a photo of sks dog on grass" -c alice/dog
    """
    if size is not None:
        check_side("width", size[0])
        check_side("height", size[1])
    make_room(out, SUFFIXES)
    from cones_registry.generation import Request, read_request
    from cones_registry.generation.prompt import find_names

    names = [*find_names(prompt), *find_names(negative, what="negative prompt")]
    # A <word> without an owner is a concept's name only where there are concepts.
    certain = any(name.certain for name in names) or bool(names and session.registry_url)
    registry = session.open(read_only=True) if refs or certain else None
    if tuned and not (refs or names):
        raise UsageError(
            "--tuned goes with concepts: name those that were tuned together in the prompt, or "
            "give them with --concept"
        )
    composition = registry.resolve(*refs, tuned=tuned and not names) if registry and refs else None
    request = read_request(
        Request(prompt, composition=composition, seed=seed, negative_prompt=negative), registry
    )
    if tuned and names and registry:
        request = _tuned_together(request, refs, registry)
    composition = cast("Composition | None", request.composition)
    if source is None and registry and composition:
        source = registry.base(composition.base).source
    if source is None:
        raise UsageError(
            "which base model? Name its folder, its hub id or `demo` with --base"
            + (f"; the concepts were made for {composition.base}" if composition else "")
        )
    from cones_registry.base_model import BaseModel
    from cones_registry.generation import (
        FailedPicturesError,
        Generator,
        encode_picture,
        recipe_of,
    )

    base = BaseModel.load(source, device=device, dtype=dtype)
    requests = [replace(request, seed=seed + number) for number in range(count)]
    generator = Generator(base)
    settings: dict[str, Any] = {
        "steps": steps,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "mask_unconditional": mask_unconditional,
    }
    with session.output.progress("drawing") as update:

        def on_step(pipeline: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            update(step + 1, pipeline.num_timesteps)
            return tensors

        failed = None
        pictures: Sequence[Image | None]
        try:
            pictures = generator.generate(
                requests,
                width=size[0] if size else None,
                height=size[1] if size else None,
                on_step=on_step if generator.takes_on_step else None,
                **settings,
            )
        except FailedPicturesError as error:  # the others are written
            failed, pictures = error, error.pictures
    concepts = composition.members if composition else ()
    for number, (request, picture) in enumerate(zip(requests, pictures, strict=True), start=1):
        if picture is None:
            continue
        path = out if count == 1 else out.with_stem(f"{out.stem}-{number}")
        form = "webp" if path.suffix.lower() == ".webp" else "png"
        recipe = recipe_of(request, base, size=size, concepts=concepts, **settings)
        write(path, encode_picture(picture, recipe, format=form))
        session.output.line(str(path))
    if failed is not None:
        raise failed


def _tuned_together(request: Request, refs: tuple[str, ...], registry: Registry) -> Request:
    """The request with the masks that were tuned jointly for exactly its concepts, if there are.

    These are concepts of their own, which act at the same words: the prompt is the one as read.
    refs: concepts that are given beside those that the prompts name.
    """
    named = request.reading.refs if request.reading else ()
    try:
        together = registry.resolve(*dict.fromkeys([*refs, *named]), tuned=True)
    except ConflictError:  # of one token, so they cannot have been tuned together
        return request
    made_of = {member.ref for member in together.members}
    if request.composition is None or made_of <= set(getattr(request.composition, "refs", ())):
        return request
    return replace(
        request,
        prompt=request.text,
        negative_prompt=request.negative_text,
        composition=together,
        reading=None,
    )
