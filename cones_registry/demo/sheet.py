"""The contact sheet: references, the base model alone, each subject, and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 96  # pixels a picture is shown at
GAP = 4
LABEL = 18
PAPER = (255, 255, 255)
INK = (40, 40, 40)


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of pictures under one heading each; ``groups``: (heading, pictures)."""

    title: str
    groups: tuple[tuple[str, tuple[Image.Image, ...]], ...]


def contact_sheet(strips: Sequence[Strip]) -> Image.Image:
    """One picture of all strips, each group of pictures under its heading."""
    font = ImageFont.load_default(size=12)
    width = max(
        sum(len(pictures) * (CELL + GAP) + 3 * GAP for _, pictures in strip.groups)
        for strip in strips
    )
    height = len(strips) * (CELL + 2 * LABEL + 2 * GAP)
    sheet = Image.new("RGB", (width + GAP, height + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for strip in strips:
        pen.text((GAP, top), strip.title, INK, font)
        left = GAP
        for heading, pictures in strip.groups:
            pen.text((left, top + LABEL), heading, INK, font)
            for picture in pictures:
                enlarged = picture.resize((CELL, CELL), Image.Resampling.NEAREST)
                sheet.paste(enlarged, (left, top + 2 * LABEL))
                left += CELL + GAP
            left += 3 * GAP
        top += CELL + 2 * LABEL + 2 * GAP
    return sheet
