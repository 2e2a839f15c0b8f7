"""Rasterise the drawn world's drawings from open sets: ``drawings.png``, once.

    npm install @iconify-json/noto @iconify-json/fluent-emoji-flat @iconify-json/twemoji
    pip install resvg-py
    python tools/make_drawings.py node_modules/@iconify-json

Columns are nouns, rows are sets, each cell is a drawing with a transparent background. Neither
package is needed by anything else: the sheet is what the package ships, with
``cones_registry/demo/drawn_world/NOTICE`` beside it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click
import resvg_py
from PIL import Image

from cones_registry.demo.drawn_world.pictures import CELL, SHEET
from cones_registry.demo.drawn_world.scenes import DRAWINGS, NOUNS

RASTER = 512  # pixels on a side, before a drawing is cut to its outline and made small
ICONS = {
    "cat": "cat-face",
    "rabbit": "rabbit-face",
    "car": "automobile",
    "tree": "evergreen-tree",
}  # a noun's name in the sets, where it differs


@click.command()
@click.argument("sets", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(sets: Path) -> None:
    """SETS is the folder with a folder for each set."""
    sheet = Image.new("RGBA", (CELL * len(NOUNS), CELL * len(DRAWINGS)))
    for row, name in enumerate(DRAWINGS.values()):
        icons = json.loads((sets / name / "icons.json").read_text(encoding="utf-8"))
        for column, noun in enumerate(NOUNS):
            drawing = rasterise(icons, ICONS.get(noun, noun))
            sheet.paste(drawing, (column * CELL, row * CELL))
    sheet.save(SHEET, optimize=True)
    click.echo(f"{SHEET}: {SHEET.stat().st_size} bytes", err=True)


def rasterise(icons: dict[str, Any], name: str) -> Image.Image:
    """One drawing, ``CELL`` pixels on a side, standing at the bottom in the middle."""
    icon = icons["icons"][icons.get("aliases", {}).get(name, {}).get("parent", name)]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    text = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{RASTER}" height="{RASTER}" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">'
        f"{icon['body']}</svg>"
    )
    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text)))) as opened:
        image = opened.convert("RGBA")
    image = image.crop(image.getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, side - image.height))
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
