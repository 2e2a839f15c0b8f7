"""Batches: which pictures, prompts, noise and timesteps a step of learning sees, by seed.

One implementation for concept neurons, for joint tuning and for the methods they are compared
with, so that "the same data" means just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from cones_registry.extraction.conditioning import picture_size
from cones_registry.extraction.examples import Deck, ExampleBank
from cones_registry.extraction.images import Picture
from cones_registry.extraction.prior import class_latents

if TYPE_CHECKING:
    from pathlib import Path

    from cones_registry.base_model import BaseModel
    from cones_registry.extraction.examples import Example
    from cones_registry.extraction.materials import Materials
    from cones_registry.extraction.noise import NoiseSchedule
    from cones_registry.extraction.settings import ExtractionSettings, LossSettings


@dataclass(frozen=True)
class Draw:
    """One batch: B examples with prompts, noise and timesteps.

    examples, prompts: int64 [B] into the bank. noise: float32 [B, C, h, w]. timesteps: int64 [B].
    """

    bank: ExampleBank
    examples: torch.Tensor
    prompts: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor

    def rows(self) -> torch.Tensor:
        """The subject's rows, bool [B, T]."""
        return self.bank.texts.rows[self.prompts]


class Batches:
    """Endless batches of subject pictures, and of class pictures where they count.

    subject: the bank of the subjects' pictures. counts: pictures of each kind.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        subject: ExampleBank,
        collage_count: int,
        prior: ExampleBank | None,
        settings: LossSettings,
        batch_size: int,
        seed: int,
    ) -> None:
        """subject: pictures of it alone, then ``collage_count`` of it in company.

        prior: class pictures, needed where ``settings.prior_weight`` > 0.
        """
        self._schedule, self._settings = schedule, settings
        self.subject = subject
        self._prior = prior if settings.prior_weight > 0 else None
        alone = len(subject) - collage_count
        joined = round(settings.collage_share * batch_size) if collage_count else 0
        self._decks = [(Deck(0, alone), batch_size - joined)]
        if joined:
            self._decks.append((Deck(alone, len(subject)), joined))
        self._prior_deck = Deck(0, len(prior) if prior is not None else 0)
        self._prior_count = max(batch_size // 2, 1)
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self.counts = {
            "alone_examples": alone,
            "collage_examples": collage_count,
            "prior_examples": len(prior) if prior is not None else 0,
        }

    @classmethod
    def gather(
        cls,
        base: BaseModel,
        schedule: NoiseSchedule,
        subjects: Sequence[Materials],
        *,
        settings: ExtractionSettings,
        weighed: LossSettings,
        batch_size: int,
        seed: int,
        cache_folder: Path,
        together: bool = False,
    ) -> Batches:
        """Encode the pictures of one subject or several; draw class pictures if they count.

        together: pictures of the other subjects are companions too.
        """
        size = settings.size or picture_size(base)
        alone: list[Example] = []
        company: list[Example] = []
        prompts: list[str] = []
        latents: list[torch.Tensor] = []
        for each in subjects:
            words = each
            if together:
                others = [other for other in subjects if other is not each]
                shown = [picture for other in others for picture in _as_companions(other)]
                words = replace(each, companions=(*each.companions, *shown))
            alone += each.alone(size, settings)
            company += words.company(size, settings, seed)
            if weighed.prior_weight > 0:
                own = each.class_prompts(settings.prior_count)
                prompts += own
                latents.append(
                    class_latents(
                        base,
                        own,
                        seed=seed,
                        steps=settings.prior_steps,
                        guidance_scale=settings.guidance_scale,
                        folder=cache_folder,
                        size=settings.size,
                    )
                )
        # Rows are found for one subject; who learns several finds each one's own.
        only = subjects[0] if len(subjects) == 1 else None
        token, noun = (only.token, only.class_noun) if only else (None, "")
        prior = None
        if latents:
            told = [[text] for text in prompts]
            prior = ExampleBank(
                base,
                torch.cat(latents),
                told,
                token=token,
                class_noun=noun,
                rows=settings.rows,
                size=size,
            )
        subject = ExampleBank.of(
            base, [*alone, *company], token=token, class_noun=noun, rows=settings.rows
        )
        return cls(
            schedule.shifted(subject.texts.mu),
            subject=subject,
            collage_count=len(company),
            prior=prior,
            settings=weighed,
            batch_size=batch_size,
            seed=seed,
        )

    def next(self) -> list[tuple[float, Draw]]:
        """The next batch: draws, each with the weight of its mean loss."""
        dealt = [deck.deal(count, self._generator) for deck, count in self._decks if count]
        found = [(1.0, self._draw(self.subject, torch.cat(dealt)))]
        if self._prior is not None:
            numbers = self._prior_deck.deal(self._prior_count, self._generator)
            found.append((self._settings.prior_weight, self._draw(self._prior, numbers)))
        return found

    def peek(self) -> list[tuple[float, Draw]]:
        """What ``next`` will give."""
        cards = [copy(deck) for deck, _ in self._decks], copy(self._prior_deck)
        state = self._generator.get_state()
        try:
            return self.next()
        finally:
            self._generator.set_state(state)
            self._decks = [(deck, n) for deck, (_, n) in zip(cards[0], self._decks, strict=True)]
            self._prior_deck = cards[1]

    def _draw(self, bank: ExampleBank, numbers: torch.Tensor) -> Draw:
        timesteps = self._schedule.stratified(
            len(numbers), self._generator, towards_noise=self._settings.towards_noise
        )
        return random_draw(bank, numbers, timesteps, self._generator)


def random_draw(
    bank: ExampleBank, examples: torch.Tensor, timesteps: torch.Tensor, generator: torch.Generator
) -> Draw:
    """True prompts and noise for given examples and timesteps, from a CPU generator."""
    prompts = bank.prompts_for(examples, generator)
    noise = torch.randn(len(examples), *bank.latents.shape[1:], generator=generator)
    return Draw(bank, examples, prompts, noise, timesteps)


def _as_companions(subject: Materials) -> list[Picture]:
    """Its pictures with captions that name it."""
    found = []
    for picture in subject.pictures:
        caption = picture.caption or subject.templates[0]
        found.append(replace(picture, caption=caption.filled(subject.name)))
    return found
