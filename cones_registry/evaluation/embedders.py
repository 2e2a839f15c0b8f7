"""What turns pictures and prompts into vectors: the protocols every embedder keeps to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cones_registry.evaluation.gallery import ShownSubject

Vectors: TypeAlias = NDArray[np.float32]


@runtime_checkable
class PictureEmbedder(Protocol):
    """Pictures to vectors."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What decides its numbers: backbone, digest of the weights, resize. Printed."""
        ...

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Unit vectors, float32 [n, d]."""
        ...


@runtime_checkable
class TextEmbedder(PictureEmbedder, Protocol):
    """Pictures and texts to vectors of one space."""

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, float32 [n, d]."""
        ...


@runtime_checkable
class PresenceReader(Protocol):
    """Says of each subject whether a picture shows it."""

    @property
    def meaning(self) -> str:
        """What its numbers are, in a few words. Printed."""
        ...

    def presence(
        self,
        pictures: Sequence[Image.Image],
        asked: Sequence[Sequence[ShownSubject]],
    ) -> list[list[float]]:
        """For each picture one number for each subject asked for."""
        ...


@runtime_checkable
class DetailReader(Protocol):
    """Says more of a picture than the table's columns, where the world is known."""

    def details(
        self, pictures: Sequence[Image.Image], described: Sequence[str]
    ) -> list[dict[str, float]]:
        """For each picture, named shares; described: the prompt with everything said in full."""
        ...


class WindowPresence:
    """Presence where no classifier exists: the best window's likeness to the references.

    A global vector of the whole picture hides a subject that is missing beside others (arXiv
    2603.26078), so each subject is looked for in the whole picture and in five overlapping windows
    of six tenths of the side; the number is the largest mean cosine to its reference pictures.
    """

    meaning = "largest mean cosine of a window to the subject's references"
    share = 0.6

    def __init__(self, embedder: PictureEmbedder, references: Mapping[str, Vectors]) -> None:
        """references: subject's name -> vectors of its reference pictures."""
        self._embedder, self._references = embedder, references

    def presence(
        self,
        pictures: Sequence[Image.Image],
        asked: Sequence[Sequence[ShownSubject]],
    ) -> list[list[float]]:
        """See the class."""
        windows = [window for picture in pictures for window in self._windows(picture)]
        vectors = self._embedder.pictures(windows).reshape(len(pictures), 6, -1)
        return [
            [
                float((found @ self._references[subject.name].T).mean(1).max())
                for subject in subjects
            ]
            for found, subjects in zip(vectors, asked, strict=True)
        ]

    def _windows(self, picture: Image.Image) -> list[Image.Image]:
        width, height = picture.size
        wide, tall = max(round(width * self.share), 1), max(round(height * self.share), 1)
        corners = [(left, top) for left in (0, width - wide) for top in (0, height - tall)] + [
            ((width - wide) // 2, (height - tall) // 2)
        ]
        cut = [picture.crop((x, y, x + wide, y + tall)) for x, y in corners]
        return [picture, *cut]
