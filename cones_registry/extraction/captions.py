"""Captions: what a picture shows, and how two of them are said in one breath."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from cones_registry.digest import quote
from cones_registry.errors import UsageError

Half = Literal["left", "right", "top", "bottom"]
OPPOSITE: dict[str, Half] = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SLOT = "{}"
"""Stands for the subject: the placeholder token and its class noun."""
DEFAULT_TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a close-up photo of a {}",
    "a good photo of the {}",
    "a cropped photo of the {}",
)
"""Captions of pictures that come without one, after CLIP's and textual inversion's templates."""
MAX_CAPTION = 1000  # characters; no text encoder reads as many

_PLACE = re.compile(r"\b(?:at|on|to|in)(?: the)? (left|right|top|bottom)\b(?! of\b)", re.IGNORECASE)
_OPENING = re.compile(
    r"^(?:an? |the )?(?:\w+ )?(?:photo|picture|image|rendering) of (?=\S)", re.IGNORECASE
)


@dataclass(frozen=True)
class Caption:
    """One caption in parts.

    phrase: what is said of the thing, ``"at left a {}"``; ``{}`` is the subject's place in it.
    rest: words that belong to the whole picture and stand last, ``"on white"``; may be empty.
    half: the half of the picture in which all of the thing lies, None if unknown.
    """

    phrase: str
    rest: str = ""
    half: Half | None = None

    @classmethod
    def parse(cls, text: str) -> Caption:
        """Read ``"phrase"`` or ``"phrase|rest"``; the half is read off "at left", "on the right" …

        A phrase that names several halves is in none. Raises UsageError for an empty phrase or
        one that is too long.
        """
        if len(text) > MAX_CAPTION:
            raise UsageError(
                f"caption {quote(text)} has {len(text)} characters; at most {MAX_CAPTION} are read"
            )
        phrase, _, rest = (" ".join(part.split()) for part in text.partition("|"))
        if not phrase:
            raise UsageError(
                f"caption {quote(text)} says nothing of the thing shown. Expected 'phrase' or "
                "'phrase|rest', such as 'at left a {}|on white'"
            )
        halves = {place.lower() for place in _PLACE.findall(phrase)}
        half = OPPOSITE[OPPOSITE[halves.pop()]] if len(halves) == 1 else None
        return cls(phrase, rest, half)

    @property
    def names_subject(self) -> bool:
        """Whether the subject's place ``{}`` is in it."""
        return SLOT in self.phrase or SLOT in self.rest

    def filled(self, name: str) -> Caption:
        """The caption with ``name`` where the subject stands."""
        return replace(
            self, phrase=self.phrase.replace(SLOT, name), rest=self.rest.replace(SLOT, name)
        )

    def text(self, name: str = "") -> str:
        """The caption in words, with ``name`` where the subject stands."""
        return _fill(self.phrase, self.rest, name)


def can_join(one: Caption, other: Caption) -> bool:
    """Whether pictures of these captions make one picture when joined.

    Both must say the same of the whole picture; their things must lie in opposite halves, or
    both be without a place (two ordinary photos, to be shown side by side).
    """
    if one.rest != other.rest:
        return False
    if one.half is None or other.half is None:
        return one.half is other.half
    return OPPOSITE[one.half] == other.half


def joined_text(first: Caption, second: Caption, name: str) -> str:
    """The caption of two pictures joined, in this order.

    "at right a blue square and at left a sks circle on white"; pictures without places:
    "a photo of a sks dog next to a cat".
    """
    if first.half is None:
        second_phrase = _OPENING.sub("", second.phrase)
        return _fill(f"{first.phrase} next to {second_phrase}", first.rest, name)
    return _fill(f"{first.phrase} and {second.phrase}", first.rest, name)


def _fill(phrase: str, rest: str, name: str) -> str:
    return f"{phrase} {rest}".strip().replace(SLOT, name)
