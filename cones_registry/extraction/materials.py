"""Materials: everything the caller gave, read and checked, before anything is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from cones_registry.attention import names_token
from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.extraction.captions import DEFAULT_TEMPLATES, Caption
from cones_registry.extraction.companions import COMPANION_FOLDER, Companion, read_companions
from cones_registry.extraction.conditioning import check_token
from cones_registry.extraction.examples import Example, collages, plain_examples
from cones_registry.extraction.images import Picture, Sources, read_pictures

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction.settings import ExtractionSettings

Companions: TypeAlias = Sequence[Companion] | str | Path


@dataclass(frozen=True)
class Materials:
    """Pictures of the subject, of other things, and the words for them.

    pictures: of the subject; skipped: files of the folder that could not be read, and why.
    companions: of other things. templates: captions of pictures without one.
    """

    token: str
    class_noun: str
    pictures: tuple[Picture, ...]
    skipped: tuple[str, ...]
    companions: tuple[Picture, ...]
    templates: tuple[Caption, ...]

    @classmethod
    def gather(
        cls,
        base: BaseModel,
        images: Sources,
        *,
        token: str,
        class_noun: str,
        prompts: Sequence[str] | None,
        companions: Companions | None,
    ) -> Materials:
        """Read and check; see ``Extractor.extract`` for arguments and errors."""
        if not class_noun.strip():
            raise UsageError(
                "no class noun. Say in a word what the subject is one of, such as 'dog'"
            )
        check_token(base, token)
        templates = _templates(prompts)
        read = read_pictures(images)
        for picture in read.pictures:
            if picture.caption is not None and not picture.caption.names_subject:
                raise UsageError(
                    f"the caption of {picture.name} has no place for the subject: "
                    f"{quote(picture.caption.text())}. Put {{}} where {token!r} and its noun go"
                )
        others = _companions(companions, images, token)
        noun = " ".join(class_noun.split())
        return cls(token, noun, read.pictures, read.skipped, others, templates)

    @property
    def name(self) -> str:
        """The subject in a prompt: token and class noun."""
        return f"{self.token} {self.class_noun}"

    @property
    def captions(self) -> tuple[Caption, ...]:
        """The captions the subject is learnt with."""
        own = tuple(picture.caption for picture in self.pictures if picture.caption)
        bare = len(own) < len(self.pictures)
        return (*own, *self.templates) if bare else own

    def alone(self, size: int, settings: ExtractionSettings) -> list[Example]:
        """The subject's pictures as they are, ``size`` pixels on a side."""
        return plain_examples(self.pictures, self.templates, self.name, size, flip=settings.flip)

    def company(self, size: int, settings: ExtractionSettings, seed: int) -> list[Example]:
        """The subject beside companions."""
        return collages(
            self.pictures,
            self.companions,
            self.templates,
            self.name,
            size,
            limit=settings.collage_limit,
            generator=torch.Generator("cpu").manual_seed(seed),
        )

    def class_prompts(self, count: int) -> list[str]:
        """The subject's captions without its token, each about equally often."""
        texts = sorted({caption.text(self.class_noun) for caption in self.captions})
        return [texts[number % len(texts)] for number in range(count)]

    def to_json(self) -> dict[str, Any]:
        """For the provenance: all words, and digests of companions."""
        return {
            "captions": [
                picture.caption.text("{}") if picture.caption else None for picture in self.pictures
            ],
            "templates": [template.text("{}") for template in self.templates],
            "companions": [
                {"digest": each.digest, "caption": each.caption.text() if each.caption else ""}
                for each in self.companions
            ],
            "skipped": list(self.skipped),
        }


def _templates(prompts: Sequence[str] | None) -> tuple[Caption, ...]:
    texts = [prompts] if isinstance(prompts, str) else prompts or DEFAULT_TEMPLATES
    templates = tuple(Caption.parse(text) for text in texts)
    for template in templates:
        if not template.names_subject:
            raise UsageError(
                f"prompt {quote(template.text())} has no place for the subject. "
                "Put {} there, as in 'a photo of a {}'"
            )
    return templates


def _companions(companions: Companions | None, images: Sources, token: str) -> tuple[Picture, ...]:
    if companions is None and isinstance(images, str | Path):
        folder = Path(images).expanduser() / COMPANION_FOLDER
        companions = folder if folder.is_dir() else None
    if isinstance(companions, str | Path):
        companions = read_companions(companions)
    pictures = tuple(companion.picture() for companion in companions or ())
    for picture in pictures:
        if picture.caption and names_token(picture.caption.text(), token):
            raise UsageError(
                f"companion caption {quote(picture.caption.text())} names {token!r}; a companion "
                "shows something else"
            )
    return pictures
