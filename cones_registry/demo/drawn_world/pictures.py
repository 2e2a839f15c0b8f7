"""Painting a scene of the drawn world: a tinted drawing per thing, before a drawn background.

The drawings are ``drawings.png``, made once by ``tools/make_drawings.py`` from open sets that
NOTICE names. A thing stands exactly at its place; what varies from picture to picture is the
background: the horizon, the hills, the waves, the moon and the light.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cones_registry.demo.drawn_world.scenes import DRAWINGS, NOUNS, PLACES, TINTS, Scene, Thing

SIZE: Final = 64  # pixels on a side of a picture
SLOT: Final = 32  # pixels on a side of the place in which a thing stands
THING: Final = 28  # pixels on a side of a thing
SHEET: Final = Path(__file__).with_name("drawings.png")
CELL: Final = 2 * THING  # pixels on a side of a drawing in the sheet

_DOWN, _ACROSS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


@cache
def _sheet() -> NDArray[np.uint8]:
    """``uint8 [drawings · CELL, nouns · CELL, 4]``, red, green, blue and opacity."""
    with Image.open(SHEET) as image:
        return np.asarray(image.convert("RGBA"))


@cache
def sprite(thing: Thing) -> NDArray[np.float32]:
    """One thing, ``float32 [THING, THING, 4]`` in [0, 1]; colours are premultiplied by opacity."""
    row, column = list(DRAWINGS).index(thing.drawing), NOUNS.index(thing.noun)
    cell = _sheet()[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
    pixels = cell.astype(np.float32) / np.float32(255)
    colour = TINTS[thing.tint]
    if colour is not None:
        pixels[..., :3] = _tinted(pixels[..., :3], np.array(colour, np.float32) / np.float32(255))
    pixels[..., :3] *= pixels[..., 3:]
    return np.asarray(pixels.reshape(THING, 2, THING, 2, 4).mean((1, 3)), np.float32)


def _tinted(pixels: NDArray[np.float32], colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """The drawing in shades of one colour: dark where it was dark, pale where it was light."""
    light = (pixels @ np.array((0.35, 0.5, 0.15), np.float32))[..., None]
    dark, pale = 0.25 * colour, 0.35 * colour + 0.65
    shade = np.where(
        light < 0.6,
        dark + (colour - dark) * light / 0.6,
        colour + (pale - colour) * (light - 0.6) / 0.4,
    )
    return np.asarray(0.85 * shade + 0.15 * pixels, np.float32)


def render(scene: Scene, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Paint a scene, ``uint8 [SIZE, SIZE, 3]``; ``generator`` draws what varies behind it."""
    picture = _background(scene.background, generator)
    for place, thing in scene.things:
        left, top, _ = PLACES[place]
        margin = (SLOT - THING) // 2
        if scene.background != "white":
            picture *= 1 - _shadow(left + SLOT / 2, top + margin + 0.95 * THING)
        rows = slice(top + margin, top + margin + THING)
        columns = slice(left + margin, left + margin + THING)
        drawn = sprite(thing)
        picture[rows, columns] *= 1 - drawn[..., 3:]
        picture[rows, columns] += drawn[..., :3]
    return np.asarray(np.rint(picture.clip(0, 1) * 255), np.uint8)


def _shadow(across: float, down: float) -> NDArray[np.float32]:
    """What a shadow at a thing's foot takes of the light, ``float32 [SIZE, SIZE, 1]``."""
    distance = np.hypot((_ACROSS - across) / (0.42 * THING), (_DOWN - down) / (0.12 * THING))
    return np.asarray(0.35 * np.clip(1.2 - distance, 0, 1)[..., None], np.float32)


def _rgb(*values: int) -> NDArray[np.float32]:
    return np.array(values, np.float32) / np.float32(255)


def _between(
    first: NDArray[np.float32], last: NDArray[np.float32], part: NDArray[np.float32]
) -> NDArray[np.float32]:
    """From ``first`` to ``last`` as ``part`` goes from 0 to 1, for each pixel."""
    return np.asarray(first * (1 - part) + last * part, np.float32)


def _background(kind: str, generator: np.random.Generator) -> NDArray[np.float32]:
    """The scene without things, ``float32 [SIZE, SIZE, 3]`` in [0, 1]."""
    if kind == "white":
        return np.full((SIZE, SIZE, 3), 1 - 0.02 * generator.random(), np.float32)
    horizon = 24 + 6 * generator.random()
    turn = 2 + 3 * generator.random()
    hill = horizon + 2 * np.sin(_ACROSS / SIZE * turn + 2 * np.pi * generator.random())
    height = np.clip(_DOWN / horizon, 0, 1)[..., None]
    depth = np.clip((_DOWN - hill) / (SIZE - horizon), 0, 1)[..., None]
    ground = np.clip(_DOWN - hill + 0.5, 0, 1)[..., None]
    phase, pitch = 2 * np.pi * generator.random(), 0.5 + 0.2 * generator.random()
    ripple = 0.02 * np.sin(_ACROSS * pitch + phase + 0.8 * np.sin(_DOWN * 0.9))[..., None]
    light = (0.03 * generator.standard_normal(3)).astype(np.float32)
    if kind == "grass":
        above = _between(_rgb(110, 185, 245), _rgb(205, 235, 255), height)
        below = _between(_rgb(125, 195, 75), _rgb(70, 145, 45), depth) + ripple
    elif kind == "beach":
        sea = np.clip(_DOWN - (horizon - 9) + 0.5, 0, 1)[..., None]
        above = _between(_rgb(120, 205, 250), _rgb(225, 245, 255), height)
        above = above * (1 - sea) + (_rgb(25, 130, 190) + ripple) * sea
        below = _between(_rgb(245, 220, 160), _rgb(225, 190, 120), depth) + 0.5 * ripple
    elif kind == "snow":
        above = _between(_rgb(150, 165, 190), _rgb(205, 215, 228), height)
        below = _between(_rgb(240, 246, 252), _rgb(215, 228, 244), depth)
    elif kind == "night":
        above = _between(_rgb(12, 14, 50), _rgb(45, 45, 105), height)
        across, down = 10 + 44 * generator.random(), 6 + 4 * generator.random()
        moon = np.clip(5 - np.hypot(_ACROSS - across, _DOWN - down), 0, 1)[..., None]
        above = above * (1 - moon) + _rgb(250, 240, 190) * moon
        below = _between(_rgb(35, 55, 60), _rgb(15, 28, 38), depth)
    else:
        raise ValueError(f"background {kind!r} is none of white, grass, beach, snow, night")
    return np.asarray((above * (1 - ground) + below * ground + light).clip(0, 1), np.float32)
