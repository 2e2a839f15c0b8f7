"""One worker: a base model that draws chunks. The same on every engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cones_registry.base_model import BaseModel
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.plan import Chunk, Picture
from cones_registry.errors import ConesError
from cones_registry.generation import (
    FailedPicturesError,
    Generator,
    Request,
    encode_picture,
    recipe_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_ENCODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Outcome:
    """A picture's file content, or why there is none.

    note: what is worth knowing of a picture that was made.
    """

    picture: Picture
    data: bytes | None
    error: str | None = None
    note: str | None = None


class Worker:
    """Draws chunks with one base model. Not shared between threads."""

    def __init__(self, base: BaseModel, compositions: Compositions, *, format: str = "png") -> None:
        self.base = base
        self._compositions = compositions
        self._generator = Generator(base)
        self._format = format

    def draw(self, chunk: Chunk, wanted: frozenset[str]) -> list[Outcome]:
        """Draw a whole chunk; outcomes of the pictures named in ``wanted``.

        All are drawn, since the last bits of a picture depend on the size of its batch. A picture
        that cannot be drawn does not stop the others: they are drawn one by one then.
        """
        requests: dict[str, Request] = {}
        errors: dict[str, str] = {}
        notes: dict[str, str] = {}
        for picture in chunk.pictures:
            try:
                request = self._request(picture)
                unread = self._unread(request)
                if unread:
                    notes[picture.name] = unread
                self._generator.stream([request], **_arguments(chunk))  # checks; draws nothing yet
            except ConesError as error:
                errors[picture.name] = str(error)
            else:
                requests[picture.name] = request
        accepted = [picture for picture in chunk.pictures if picture.name in requests]
        drawn = self._draw(accepted, requests, chunk, errors)
        return [
            Outcome(
                picture, drawn.get(picture.name), errors.get(picture.name), notes.get(picture.name)
            )
            for picture in chunk.pictures
            if picture.name in wanted
        ]

    def _draw(
        self,
        pictures: list[Picture],
        requests: Mapping[str, Request],
        chunk: Chunk,
        errors: dict[str, str],
    ) -> dict[str, bytes]:
        images: Sequence[Image | None]
        try:
            images = self._generator.generate(
                [requests[picture.name] for picture in pictures], **_arguments(chunk)
            )
        except FailedPicturesError as error:  # the others are there
            images = error.pictures
            errors.update({pictures[n].name: reason for n, reason in error.reasons.items()})
        except (
            Exception
        ) as error:  # a picture's failure is its outcome, whatever the library raised
            if len(pictures) == 1:
                errors[pictures[0].name] = f"{type(error).__name__}: {error}"
                return {}
            alone: dict[str, bytes] = {}
            for picture in pictures:
                alone.update(self._draw([picture], requests, chunk, errors))
            return alone

        def encoded(picture: Picture, image: Image) -> bytes:
            recipe = self._recipe(picture, requests[picture.name], chunk)
            return encode_picture(image, recipe, format=self._format)

        pairs = zip(pictures, images, strict=True)
        made = [(picture, image) for picture, image in pairs if image is not None]
        with ThreadPoolExecutor(_ENCODERS) as pool:  # compressing lets other threads run
            files = pool.map(lambda pair: encoded(*pair), made)
            return dict(zip((picture.name for picture, _ in made), files, strict=True))

    def _unread(self, request: Request) -> str:
        """What the text encoder does not read of the prompts, as a sentence; empty if nothing."""
        ends = (
            ("prompt", self._generator.unread(request)),
            ("negative prompt", self._generator.unread(request, negative=True)),
        )
        return "; ".join(
            f"the text encoder does not read the end of the {name}: {end!r}"
            for name, end in ends
            if end
        )

    def _request(self, picture: Picture) -> Request:
        return Request(
            picture.prompt,
            composition=self._compositions.get(picture.concepts, picture.named),
            seed=picture.seed,
            negative_prompt=picture.negative_prompt,
            reading=picture.reading,
        )

    def _recipe(self, picture: Picture, request: Request, chunk: Chunk) -> dict[str, Any]:
        settings = chunk.settings
        return recipe_of(
            request,
            self.base,
            steps=settings.steps,
            guidance_scale=settings.guidance,
            size=settings.size,
            scheduler=settings.scheduler,
            mask_unconditional=settings.mask_unconditional,
            concepts=picture.chosen,
        )


def _arguments(chunk: Chunk) -> dict[str, Any]:
    width, height = chunk.settings.size or (None, None)
    return {
        "steps": chunk.settings.steps,
        "guidance_scale": chunk.settings.guidance,
        "width": width,
        "height": height,
        "scheduler": chunk.settings.scheduler,
        "mask_unconditional": chunk.settings.mask_unconditional,
    }
