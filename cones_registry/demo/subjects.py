"""The demo's four subjects: things the base model has never seen, each with five pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cones_registry.demo.world import HELD_OUT, Thing

FOLDER = Path(__file__).with_name("subject_pictures")


@dataclass(frozen=True, slots=True)
class Subject:
    """A held-out thing, the name it gets in the registry and its placeholder word."""

    name: str
    token: str
    thing: Thing

    @property
    def noun(self) -> str:
        """The class noun: the word of the base model for what the subject is."""
        return self.thing.shape

    @property
    def folder(self) -> Path:
        """Its reference pictures with their caption files."""
        return FOLDER / self.name

    @property
    def phrase(self) -> str:
        """How a prompt names it: placeholder and class noun."""
        return f"{self.token} {self.noun}"


SUBJECTS = (
    Subject("buoy", "sks", HELD_OUT[0]),
    Subject("crate", "ohwx", HELD_OUT[1]),
    Subject("tent", "zwp", HELD_OUT[2]),
    Subject("flag", "qxv", HELD_OUT[3]),
)
