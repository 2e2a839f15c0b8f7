"""Held-out losses: what a mask does to the base model on pictures it was not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cones_registry.errors import UsageError
from cones_registry.extraction.batches import random_draw
from cones_registry.extraction.captions import DEFAULT_TEMPLATES, Caption
from cones_registry.extraction.companions import Companion
from cones_registry.extraction.conditioning import picture_size
from cones_registry.extraction.examples import Example, ExampleBank, plain_examples
from cones_registry.extraction.images import Sources, read_pictures
from cones_registry.extraction.loss import denoising_losses
from cones_registry.extraction.noise import NoiseSchedule
from cones_registry.extraction.weights import mask_edit

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.mask import ConceptMask
    from cones_registry.record import Scope


@dataclass(frozen=True)
class HeldOutLosses:
    """Denoising losses with the mask / without it, on the same pictures, noise and timesteps.

    Below 1 the mask draws these pictures better. None where no pictures were given.
    own: the subject's. class_: others of its class. other: anything else.
    """

    own: float | None
    class_: float | None
    other: float | None


def held_out_losses(
    base: BaseModel,
    mask: ConceptMask,
    *,
    scope: Scope,
    token: str,
    class_noun: str,
    own: Sources | None = None,
    class_pictures: Sequence[Companion] = (),
    other_pictures: Sequence[Companion] = (),
    draws: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    size: int | None = None,
) -> HeldOutLosses:
    """Relative denoising losses of the subject, of its class and of other pictures.

    own: pictures of the subject that were kept back, with side-car captions or default prompts.
    class_pictures, other_pictures: with captions that do not name the token.
    size: pixels on a side that the pictures are seen at; None: the model's own.
    draws: timesteps and noises for each picture, stratified over all noise levels.
    Raises UsageError if draws or batch_size is less than 1; see ``read_pictures`` for ``own``.
    """
    if draws < 1 or batch_size < 1:
        raise UsageError(f"draws={draws}, batch_size={batch_size}; expected at least 1 of each")
    size = size or picture_size(base)
    name = f"{token} {class_noun}"
    kinds: list[list[Example]] = [[], [], []]
    if own is not None:
        templates = [Caption.parse(text) for text in DEFAULT_TEMPLATES]
        kinds[0] = plain_examples(read_pictures(own).pictures, templates, name, size, flip=False)
    for examples, companions in zip(kinds[1:], (class_pictures, other_pictures), strict=True):
        read = [companion.picture() for companion in companions]
        examples.extend(plain_examples(read, [], name, size, flip=False))
    ratios = [
        _ratio(base, mask, scope, examples, token, class_noun, draws, batch_size, seed)
        for examples in kinds
    ]
    return HeldOutLosses(*ratios)


@torch.no_grad()
def _ratio(
    base: BaseModel,
    mask: ConceptMask,
    scope: Scope,
    examples: Sequence[Example],
    token: str,
    class_noun: str,
    draws: int,
    batch_size: int,
    seed: int,
) -> float | None:
    if not examples:
        return None
    bank = ExampleBank.of(base, examples, token=token, class_noun=class_noun)
    schedule = NoiseSchedule.of(base.pipeline.scheduler).shifted(bank.texts.mu)
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.arange(len(examples)).repeat_interleave(draws)
    levels = [schedule.stratified(draws, generator) for _ in examples]
    timesteps = torch.cat(levels)
    totals = [0.0, 0.0]
    for start in range(0, len(numbers), batch_size):
        part = slice(start, start + batch_size)
        draw = random_draw(bank, numbers[part], timesteps[part], generator)
        edit = mask_edit(mask, draw.rows() if scope == "subject" else None)
        for position, edits in enumerate(([], [edit])):
            totals[position] += float(denoising_losses(base, schedule, draw, edits).sum())
    return totals[1] / totals[0]
