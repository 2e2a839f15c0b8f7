"""`cones attention`: where a prompt's subject is attended to, with its mask and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cones_registry.errors import UsageError

from .picture_file import make_room, write
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
SIDE = 256  # pixels; smaller pictures are shown enlarged, or their outlines would cover them
GAP = 8


@verb()
@click.argument("ref")
@click.option("--prompt", required=True, help="What to draw; it names the concept, or its token.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("attention.png"),
    show_default=True,
    help="Above the pictures with outlines, below the maps; left without the mask, right with it.",
)
@click.option("--base", "source", metavar="MODEL", help="Folder, hub id or `demo`; else its own.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Else the base model's.")
@click.option("--guidance", type=float, default=None, help="Else the base model's.")
@click.option(
    "--level",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Where the outline runs: 0 is the map's lowest value, 1 its highest.",
)
@click.option("--device", default="auto", show_default=True)
def command(
    session: Session,
    ref: str,
    prompt: str,
    out: Path,
    source: str | None,
    seed: int,
    steps: int | None,
    guidance: float | None,
    level: float,
    device: str,
) -> None:
    """Show what the words of concept REF attend to while PROMPT is drawn.

    \b
    cones attention alice/circle --prompt "a photo of <alice/circle> on grass" -o map.png
    """
    make_room(out, SUFFIXES)
    registry = session.open(read_only=True)
    concept = registry.get(ref)
    if not concept.token:
        raise UsageError(
            f"{concept.ref} has no token, so its words in a prompt cannot be told. Push it with "
            "the token it was learnt with"
        )
    source = source or registry.base(concept.base).source
    if source is None:
        raise UsageError(
            "which base model? Name its folder, its hub id or `demo` with --base; the concept was "
            f"made for {concept.base}"
        )
    from PIL.Image import registered_extensions

    from cones_registry.attention import find_phrases, record_maps, subject_rows
    from cones_registry.attention.outlines import heated, outlined
    from cones_registry.base_model import BaseModel
    from cones_registry.generation import Generator, Request, read_request

    request = read_request(Request(prompt, seed=seed), registry)
    named = request.reading.prompt.places if request.reading else ()
    phrases = tuple(place.phrase for place in named if place.ref == concept.ref)
    if not phrases:  # the prompt has the concept's own words
        phrases = find_phrases(request.text, token=concept.token, class_noun=concept.class_noun)
        given = Request(prompt, composition=registry.resolve(concept.ref), seed=seed)
        request = read_request(given, registry)
    base = BaseModel.load(source, device=device)
    rows = subject_rows(base, request.text, phrases)
    requests = [replace(request, composition=None), request]
    with record_maps(base.denoiser) as maps:
        pictures = Generator(base).generate(requests, steps=steps, guidance_scale=guidance)
    columns = []
    for entry, picture in zip((-2, -1), pictures, strict=True):
        shown = enlarged(picture)
        heat = maps.of(rows, entry, shape=(shown.height, shown.width))
        columns.append((outlined(shown, heat, level=level), heated(heat)))
    file = BytesIO()
    beside(columns).save(file, registered_extensions()[out.suffix.lower()])
    write(out, file.getvalue())
    session.output.line(str(out))


def enlarged(picture: Image) -> Image:
    """The picture, at least SIDE pixels on its shorter side, without smoothing."""
    from PIL.Image import Resampling

    times = max(1, -(-SIDE // min(picture.size)))
    return picture.resize((picture.width * times, picture.height * times), Resampling.NEAREST)


def beside(columns: Sequence[tuple[Image, ...]]) -> Image:
    """One picture of columns of pictures of one size."""
    from PIL import Image as Images

    from cones_registry.attention.outlines import PAPER

    width, height = columns[0][0].size
    across, down = len(columns), len(columns[0])
    size = (across * (width + GAP) - GAP, down * (height + GAP) - GAP)
    sheet = Images.new("RGB", size, PAPER)
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(pictures):
            sheet.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return sheet
