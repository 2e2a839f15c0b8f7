"""SubjectImages: one of several subjects that are learnt together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.extraction.images import Sources
from cones_registry.extraction.materials import Companions, Materials

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel


@dataclass(frozen=True)
class SubjectImages:
    """Pictures of one subject and its words; the arguments of ``Extractor.extract``.

    images: a folder, files or PIL images, with side-car captions. token, class_noun: "sks", "dog".
    companions: pictures of other things, or their folder. prompts: for pictures without a caption.
    """

    images: Sources
    token: str
    class_noun: str
    companions: Companions | None = None
    prompts: Sequence[str] | None = None

    def materials(self, base: BaseModel) -> Materials:
        """Everything read and checked; errors as ``Extractor.extract``."""
        return Materials.gather(
            base,
            self.images,
            token=self.token,
            class_noun=self.class_noun,
            prompts=self.prompts,
            companions=self.companions,
        )


def gather_all(base: BaseModel, subjects: Sequence[SubjectImages]) -> list[Materials]:
    """Materials of several subjects; UsageError for none, or for two with one token."""
    if not subjects:
        raise UsageError("no subject was given. Expected pictures of at least one")
    seen: set[str] = set()
    for subject in subjects:
        token = subject.token.casefold()
        if token in seen:
            raise UsageError(
                f"two subjects have the token {quote(subject.token)}, so one prompt cannot tell "
                "them apart. Give each its own"
            )
        seen.add(token)
    return [subject.materials(base) for subject in subjects]
