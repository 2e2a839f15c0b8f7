"""Training examples: pictures with every way to say what they show, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from cones_registry.extraction.captions import Caption, can_join, joined_text
from cones_registry.extraction.conditioning import (
    Texts,
    encode_pictures,
    encode_texts,
    fitted,
)
from cones_registry.extraction.images import Picture

if TYPE_CHECKING:
    from cones_registry.attention import RowChoice
    from cones_registry.base_model import BaseModel


@dataclass(frozen=True)
class Example:
    """A square RGB picture of the model's size and the captions that are true of it."""

    image: Image.Image
    prompts: tuple[str, ...]


class ExampleBank:
    """Examples of one kind in the form the denoiser reads.

    latents: float32 [E, C, h, w], or packed [E, n, 4 C], on the model's device. prompts: the P
    distinct ones.
    """

    def __init__(
        self,
        base: BaseModel,
        latents: torch.Tensor,
        prompts: Sequence[Sequence[str]],
        *,
        token: str | None = None,
        class_noun: str = "",
        rows: RowChoice = "phrase",
        size: int | None = None,
    ) -> None:
        distinct = sorted({prompt for each in prompts for prompt in each})
        number = {prompt: position for position, prompt in enumerate(distinct)}
        self.prompts = tuple(distinct)
        self.texts: Texts = encode_texts(
            base, distinct, token=token, class_noun=class_noun, rows=rows, size=size
        )
        call = self.texts.call
        self.latents = (latents if call is None else call.packed(latents)).to(base.device)
        self._choices = [torch.tensor([number[prompt] for prompt in each]) for each in prompts]

    @classmethod
    def of(
        cls,
        base: BaseModel,
        examples: Sequence[Example],
        *,
        token: str | None = None,
        class_noun: str = "",
        rows: RowChoice = "phrase",
    ) -> ExampleBank:
        """Encode pictures and captions; the rest as ``encode_texts``."""
        latents = encode_pictures(base, [example.image for example in examples])
        prompts = [example.prompts for example in examples]
        return cls(
            base,
            latents,
            prompts,
            token=token,
            class_noun=class_noun,
            rows=rows,
            size=examples[0].image.width if examples else None,
        )

    def __len__(self) -> int:
        return len(self._choices)

    def prompts_for(self, examples: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A true prompt for each example number, chosen by chance: int64 [B] -> int64 [B]."""
        found = [
            choices[int(torch.randint(len(choices), (1,), generator=generator))]
            for choices in (self._choices[int(each)] for each in examples)
        ]
        return torch.stack(found)


class Deck:
    """Example numbers ``start … stop − 1`` dealt in shuffled rounds: each comes equally often."""

    def __init__(self, start: int, stop: int) -> None:
        self._range = start, stop
        self._cards = torch.empty(0, dtype=torch.int64)

    def deal(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """int64 [count]."""
        start, stop = self._range
        while len(self._cards) < count:
            shuffled = start + torch.randperm(stop - start, generator=generator)
            self._cards = torch.cat([self._cards, shuffled])
        dealt, self._cards = self._cards[:count], self._cards[count:]
        return dealt


def plain_examples(
    pictures: Sequence[Picture], templates: Sequence[Caption], name: str, size: int, *, flip: bool
) -> list[Example]:
    """One example a picture, with its own caption or else all templates.

    flip: also mirrored, where no half is spoken of.
    """
    found = []
    for picture in pictures:
        captions = [picture.caption] if picture.caption else list(templates)
        prompts = tuple(caption.text(name) for caption in captions)
        image = fitted(picture.image, size)
        found.append(Example(image, prompts))
        if flip and all(caption.half is None for caption in captions):
            found.append(Example(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), prompts))
    return found


def collages(
    pictures: Sequence[Picture],
    companions: Sequence[Picture],
    templates: Sequence[Caption],
    name: str,
    size: int,
    *,
    limit: int,
    generator: torch.Generator,
) -> list[Example]:
    """The subject beside other things: pictures joined in pixel space, captions in both orders.

    A picture whose thing lies in one half is cut there and completed by the other half of a
    companion whose thing lies in that; ordinary photos are scaled and set side by side. Only
    pictures that say the same of the whole are joined. At most ``limit``, chosen by chance.
    """
    pairs = [
        (picture, caption, companion, companion.caption)
        for picture in pictures
        for caption in ([picture.caption] if picture.caption else templates[:1])
        for companion in companions
        if companion.caption is not None and can_join(caption, companion.caption)
    ]
    order = torch.randperm(len(pairs), generator=generator)[:limit].tolist()
    found = []
    for number in order:
        picture, caption, companion, other = pairs[number]
        # The subject stands on either side of an ordinary photo's companion by turns.
        image = join(picture.image, companion.image, caption, size, swap=bool(number % 2))
        # Named second twice as often as first: where it stands alone it is named first.
        second = joined_text(other, caption, name)
        found.append(Example(image, (joined_text(caption, other, name), second, second)))
    return found


def join(
    image: Image.Image, other: Image.Image, caption: Caption, size: int, *, swap: bool = False
) -> Image.Image:
    """One picture of two, RGB ``size`` × ``size``.

    caption: of ``image``; its half is taken from ``image`` and the rest from ``other``. Without a
    half both are scaled to half the width, ``other`` on the right (``swap``: on the left).
    """
    if caption.half is None:
        return _side_by_side(other, image, size) if swap else _side_by_side(image, other, size)
    middle = size // 2
    boxes = {
        "left": (0, 0, middle, size),
        "right": (middle, 0, size, size),
        "top": (0, 0, size, middle),
        "bottom": (0, middle, size, size),
    }
    box = boxes[caption.half]
    joined = fitted(other, size)
    joined.paste(fitted(image, size).crop(box), box[:2])
    return joined


def _side_by_side(left: Image.Image, right: Image.Image, size: int) -> Image.Image:
    """Both at half the width, halfway up; above and below, their own edges drawn out."""
    joined = Image.new("RGB", (size, size))
    width = size // 2
    for position, image in ((0, left), (width, right)):
        own = size - width if position else width
        small = fitted(image, own)
        top = (size - own) // 2
        joined.paste(small.crop((0, 0, own, 1)).resize((own, max(top, 1))), (position, 0))
        edge = small.crop((0, own - 1, own, own)).resize((own, size - own - top or 1))
        joined.paste(edge, (position, min(top + own, size - 1)))
        joined.paste(small, (position, top))
    return joined
