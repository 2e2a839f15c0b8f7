"""Companions: pictures of other things, shown beside the subject so that it stands anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from cones_registry.errors import UsageError
from cones_registry.extraction.captions import Caption
from cones_registry.extraction.images import Picture, read_pictures
from cones_registry.extraction.stock import draw_pictures

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

COMPANION_FOLDER = "companions"
"""Subfolder of a folder of reference pictures whose pictures, with side-cars, are companions."""


@dataclass(frozen=True)
class Companion:
    """A picture of another thing and what it shows.

    image: a PIL image or a picture file.
    caption: as in a side-car file, without ``{}``: "at right a blue square|on white".
    Raises UsageError if the caption has a place for the subject.
    """

    image: Image.Image | str | Path
    caption: str

    def __post_init__(self) -> None:
        if Caption.parse(self.caption).names_subject:
            raise UsageError(
                f"companion caption {self.caption!r} has a place for the subject. A companion "
                "shows something else: say what, without {}"
            )

    def picture(self) -> Picture:
        """The picture, read, with its caption in parts."""
        read = read_pictures([self.image]).pictures[0]
        return Picture(read.image, read.name, read.digest, Caption.parse(self.caption))


def read_companions(folder: str | Path) -> tuple[Companion, ...]:
    """The pictures of a folder with their side-car captions.

    Raises what ``read_pictures`` raises, and UsageError for a picture without a caption file.
    """
    found = []
    for picture in read_pictures(Path(folder)).pictures:
        file = Path(folder).expanduser() / picture.name
        if picture.caption is None:
            raise UsageError(
                f"companion {file} has no caption. Say what it shows in {file.with_suffix('.txt')}"
            )
        text = "|".join(part for part in (picture.caption.phrase, picture.caption.rest) if part)
        found.append(Companion(picture.image, text))
    return tuple(found)


def base_companions(
    base: BaseModel,
    prompts: Sequence[str],
    seed: int = 0,
    *,
    steps: int = 30,
    guidance_scale: float = 2.0,
    batch_size: int = 8,
) -> tuple[Companion, ...]:
    """Draw one companion for each prompt with the base model and its stock pipeline.

    prompts: captions as in side-car files ("at right a blue square|on white"); the same one may
        come several times and is drawn anew each time.
    seed: of the first picture; the next has the next.
    """
    texts = [Caption.parse(prompt).text() for prompt in prompts]
    images = draw_pictures(
        base,
        texts,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
    )
    return tuple(map(Companion, images, prompts))
