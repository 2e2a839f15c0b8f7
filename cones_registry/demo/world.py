"""A synthetic world small enough that a base model learns to follow its captions.

A :class:`Scene` is a background and one to four :class:`Thing` objects at named places; it
renders to a 32 x 32 picture and reads as a caption in a closed vocabulary. The place stands
before the noun, so a causal text encoder has said all about a thing when it reaches its noun.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SIZE = 32  # pixels on a side
SUPERSAMPLE = 4  # samples per pixel on each axis, for smooth edges

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
    "pink": (250, 185, 200),
}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (25, 150, 50),
    "blue": (35, 70, 225),
    "yellow": (250, 215, 30),
    "purple": (135, 40, 160),
    "cyan": (40, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "cross")
TEXTURES = ("plain", "dotted", "striped")
PLACES: dict[str, tuple[float, float]] = {  # centre (x, y) in pixels, y downwards
    "left": (7.0, 16.0),
    "right": (25.0, 16.0),
    "top": (16.0, 7.0),
    "bottom": (16.0, 25.0),
    "middle": (16.0, 16.0),  # only for a thing that stands alone
}
OUTER_PLACES = ("left", "right", "top", "bottom")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
PLACEHOLDERS = ("sks", "ohwx", "zwp", "qxv", "vbk", "jyq", "kwt", "xgm")  # mean nothing
WORDS = (
    *("a", "photo", "of", "at", "and", "on"),
    *PLACES,
    *BACKGROUNDS,
    *COLOURS,
    *SHAPES,
    *("dotted", "striped"),
    *PLACEHOLDERS,
)

JITTER = 0.75  # pixels; how far a thing may stand from the centre of its place
RADIUS = (5.25, 6.0)  # pixels


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: a shape in a colour, with dots or a stripe of a second colour, or plain."""

    shape: str
    colour: str
    texture: str = "plain"
    second: str | None = None  # colour of the dot or stripe; None when plain

    def words(self) -> str:
        """The description without article, for example ``"blue dotted red circle"``."""
        ornament = () if self.second is None else (self.second, self.texture)
        return " ".join((*ornament, self.colour, self.shape))


# Never shown to the base model, nor named to it in full: the demo's four subjects.
HELD_OUT = (
    Thing("circle", "blue", "dotted", "yellow"),
    Thing("square", "purple", "striped", "cyan"),
    Thing("triangle", "green", "dotted", "red"),
    Thing("cross", "yellow", "striped", "purple"),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and its things by place, in the order in which the caption names them."""

    background: str
    things: tuple[tuple[str, Thing], ...]

    def caption(self, *, names: dict[int, str] | None = None, background: bool = True) -> str:
        """The caption; ``names`` replaces the description of the n-th thing by other words."""
        parts = [
            f"at {place} a {(names or {}).get(number, thing.words())}"
            for number, (place, thing) in enumerate(self.things)
        ]
        return " and ".join(parts) + (f" on {self.background}" if background else "")


def things() -> list[Thing]:
    """Every thing of the world the base model may see: all but the held-out ones."""
    found = []
    for shape in SHAPES:
        for colour in COLOURS:
            found.append(Thing(shape, colour))
            found += [
                Thing(shape, colour, texture, second)
                for texture in TEXTURES[1:]
                for second in COLOURS
                if second != colour
            ]
    return [thing for thing in found if thing not in HELD_OUT]


def random_scene(generator: np.random.Generator, count: int, pool: list[Thing]) -> Scene:
    """A scene of ``count`` things (1 to 4); two stand at opposite places."""
    if count == 1:
        places = [str(generator.choice(list(PLACES)))]
    elif count == 2:
        first = str(generator.choice(OUTER_PLACES))
        places = [first, OPPOSITE[first]]
    else:
        places = [str(place) for place in generator.permutation(OUTER_PLACES)[:count]]
    chosen = [_balanced(generator, pool) for _ in places]
    return Scene(str(generator.choice(list(BACKGROUNDS))), tuple(zip(places, chosen, strict=True)))


def _balanced(generator: np.random.Generator, pool: list[Thing]) -> Thing:
    """A thing of the pool; every other one plain, so that plain things are not rare."""
    thing = pool[int(generator.integers(len(pool)))]
    if thing.second is not None and generator.random() < 0.45:
        thing = replace(thing, texture="plain", second=None)
    return thing


def render(scenes: list[Scene], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Render scenes to ``uint8 [n, 32, 32, 3]``; ``generator`` draws offsets and radii."""
    grid = (np.arange(SIZE * SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    pictures = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    for number, scene in enumerate(scenes):
        canvas = np.empty((len(grid), len(grid), 3), np.float32)
        canvas[:] = BACKGROUNDS[scene.background]
        for place, thing in scene.things:
            offset = generator.uniform(-JITTER, JITTER, 2)
            radius = float(generator.uniform(*RADIUS))
            centre_x, centre_y = np.asarray(PLACES[place]) + offset
            _draw(canvas, thing, grid - centre_x, grid - centre_y, radius)
        blocks = canvas.reshape(SIZE, SUPERSAMPLE, SIZE, SUPERSAMPLE, 3)
        pictures[number] = np.rint(blocks.mean((1, 3)))
    return pictures


def _draw(
    canvas: NDArray[np.float32],
    thing: Thing,
    across: NDArray[np.float64],
    down: NDArray[np.float64],
    radius: float,
) -> None:
    """Paint one thing; ``across`` and ``down`` are distances from its centre in pixels."""
    columns = np.flatnonzero(np.abs(across) <= radius + 1)
    rows = np.flatnonzero(np.abs(down) <= radius + 1)
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    x, y = across[None, window[1]] / radius, down[window[0], None] / radius
    inside = _inside(thing.shape, x, y)
    canvas[window][inside] = COLOURS[thing.colour]
    if thing.second is not None:
        ornament = x**2 + y**2 <= 0.5**2 if thing.texture == "dotted" else np.abs(y + 0 * x) <= 0.32
        canvas[window][inside & ornament] = COLOURS[thing.second]


def _inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points (in units of the radius) lie inside the shape."""
    if shape == "circle":
        return np.asarray(x**2 + y**2 <= 1)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) <= 0.86)
    if shape == "triangle":  # base below, tip above
        return np.asarray((y <= 0.8) & (np.abs(x) <= (y + 1) * 0.56))
    if shape == "cross":
        wide, tall = np.abs(x) + 0 * y, np.abs(y) + 0 * x
        return np.asarray((np.minimum(wide, tall) <= 0.36) & (np.maximum(wide, tall) <= 1))
    raise ValueError(f"shape {shape!r} is none of {', '.join(SHAPES)}")
