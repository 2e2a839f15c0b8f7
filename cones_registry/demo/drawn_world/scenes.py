"""What there is in the drawn world: things, places, scenes, and captions as people write them.

A :class:`Thing` is one noun in one of three drawings and one tint. A :class:`Scene` is a
background and one to four things at named places. Nothing here knows of concepts or masks: rare
words are in the vocabulary, as they are in Stable Diffusion's, and stand in no caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

NOUNS: Final = ("cat", "rabbit", "penguin", "butterfly", "car", "house", "tree", "mushroom")
# The word for a drawing, and the set of drawings it comes from (see NOTICE).
DRAWINGS: Final = {"soft": "noto", "flat": "fluent-emoji-flat", "plain": "twemoji"}
# Red, green, blue of a tint; None leaves the drawing's own colours.
TINTS: Final[dict[str, tuple[int, int, int] | None]] = {
    "natural": None,
    "red": (225, 35, 40),
    "yellow": (250, 215, 30),
    "green": (40, 165, 60),
    "blue": (40, 95, 230),
    "purple": (150, 55, 200),
}
BACKGROUNDS: Final = {  # the scene's name, and the words for it
    "white": "on white",
    "grass": "on grass",
    "beach": "on a beach",
    "snow": "in snow",
    "night": "at night",
}
PLACES: Final = {  # left and top edge of the 32 × 32 pixels in which a thing stands, and the words
    "middle": (16, 16, "in the middle"),
    "left": (0, 16, "on the left"),
    "right": (32, 16, "on the right"),
    "top left": (0, 0, "at top left"),
    "top right": (32, 0, "at top right"),
    "bottom left": (0, 32, "at bottom left"),
    "bottom right": (32, 32, "at bottom right"),
}
CORNERS: Final = tuple(PLACES)[3:]
RARE_WORDS: Final = ("sks", "ohwx", "zwp", "qxv", "vbk", "jyq", "kwt", "xgm")
WORDS: Final = tuple(
    dict.fromkeys(
        (
            *("a", "and", "of", "photo", "picture"),
            *NOUNS,
            *DRAWINGS,
            *(tint for tint in TINTS if tint != "natural"),
            *(word for phrase in BACKGROUNDS.values() for word in phrase.split()),
            *(word for _, _, phrase in PLACES.values() for word in phrase.split()),
            *RARE_WORDS,
        )
    )
)


@dataclass(frozen=True, slots=True)
class Thing:
    """One noun of ``NOUNS``, drawn as in ``DRAWINGS``, in a tint of ``TINTS``."""

    noun: str
    drawing: str
    tint: str

    def words(self, *, drawing: bool = True, tint: bool = True) -> str:
        """The description without an article, for example ``"flat blue car"``."""
        said = [self.drawing] if drawing else []
        if tint and self.tint != "natural":
            said.append(self.tint)
        return " ".join((*said, self.noun))


# Never shown to the base model, nor named to it in full: what subjects are chosen from. Every
# noun, drawing and tint stands in other things that it does see.
HELD_OUT: Final = (
    Thing("cat", "flat", "blue"),
    Thing("house", "soft", "purple"),
    Thing("car", "plain", "green"),
    Thing("mushroom", "flat", "yellow"),
    Thing("rabbit", "plain", "red"),
    Thing("penguin", "soft", "yellow"),
    Thing("butterfly", "flat", "green"),
    Thing("tree", "plain", "purple"),
    Thing("cat", "soft", "purple"),
    Thing("house", "plain", "blue"),
    Thing("car", "soft", "yellow"),
    Thing("rabbit", "flat", "green"),
)
EVERY_THING: Final = tuple(
    Thing(noun, drawing, tint) for noun in NOUNS for drawing in DRAWINGS for tint in TINTS
)
THINGS: Final = tuple(thing for thing in EVERY_THING if thing not in HELD_OUT)


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and its things by place, in the order in which a caption names them."""

    background: str
    things: tuple[tuple[str, Thing], ...]


@dataclass(frozen=True, slots=True)
class Telling:
    """What a caption says of a scene.

    Attributes:
        drawings: the word of each thing's drawing; one bool per thing.
        tints: the word of each thing's tint; one bool per thing.
        places: where things stand.
        background: the scene.
        opening: words before everything else, for example ``"a photo of"``.
    """

    drawings: tuple[bool, ...]
    tints: tuple[bool, ...]
    places: bool = True
    background: bool = True
    opening: str = ""

    @classmethod
    def full(cls, count: int, *, places: bool = True) -> Telling:
        """Everything of ``count`` things."""
        return cls((True,) * count, (True,) * count, places)

    @classmethod
    def bare(cls, count: int, *, places: bool = True) -> Telling:
        """Nouns alone."""
        return cls((False,) * count, (False,) * count, places)


def random_telling(generator: np.random.Generator, count: int) -> Telling:
    """What a person might say of ``count`` things: a third of captions are bare nouns."""
    bare = generator.random() < 0.35
    places = bool(generator.random() < 0.75)
    opening = ""
    if not places and generator.random() < 0.4:
        opening = "a photo of" if generator.random() < 0.5 else "a picture of"
    return Telling(
        drawings=tuple(bool(not bare and generator.random() < 0.55) for _ in range(count)),
        tints=tuple(bool(not bare and generator.random() < 0.85) for _ in range(count)),
        places=places,
        background=bool(generator.random() < 0.85),
        opening=opening,
    )


def caption(
    scene: Scene, telling: Telling | None = None, *, names: dict[int, str] | None = None
) -> str:
    """The caption of a scene.

    Args:
        scene: what the picture shows.
        telling: what is said of it; None says everything.
        names: words in place of the description of the n-th thing.
    """
    telling = telling or Telling.full(len(scene.things))
    parts = []
    for number, (place, thing) in enumerate(scene.things):
        words = thing.words(drawing=telling.drawings[number], tint=telling.tints[number])
        where = f"{PLACES[place][2]} " if telling.places else ""
        parts.append(f"{where}a {(names or {}).get(number, words)}")
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    behind = f" {BACKGROUNDS[scene.background]}" if telling.background else ""
    return f"{telling.opening} {text}{behind}".strip()


def random_scene(
    generator: np.random.Generator, count: int, pool: tuple[Thing, ...] = THINGS
) -> Scene:
    """A scene of ``count`` things (1 to 4) of ``pool``.

    One thing stands anywhere, half of the time in the middle; two stand left and right; three
    and four stand at corners.
    """
    if count == 1:
        first = "middle" if generator.random() < 0.5 else str(generator.choice(list(PLACES)[1:]))
        places = [first]
    elif count == 2:
        places = [str(place) for place in generator.permutation(("left", "right"))]
    else:
        places = [str(place) for place in generator.permutation(CORNERS)[:count]]
    chosen = [pool[int(number)] for number in generator.integers(len(pool), size=count)]
    background = list(BACKGROUNDS)[int(generator.integers(len(BACKGROUNDS)))]
    return Scene(background, tuple(zip(places, chosen, strict=True)))
