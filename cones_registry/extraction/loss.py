"""The concept-implanting loss: draw the subject at its words, and leave its class alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cones_registry.attention import RowEdit, project_rows, serve
from cones_registry.errors import ConesError
from cones_registry.extraction.conditioning import added_conditions, picture_size
from cones_registry.extraction.examples import Deck

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction.examples import ExampleBank
    from cones_registry.extraction.noise import NoiseSchedule
    from cones_registry.extraction.weights import FlatWeights


class DivergedError(ConesError, ArithmeticError):
    """Learning ran into a loss or a gradient that is not a finite number."""


@dataclass(frozen=True)
class LossSettings:
    """What the loss weighs.

    scope: "subject" (θ is learnt at the subject's rows) or "prompt" (at every row).
    collage_share: share of each batch in which the subject is in company, where collages exist.
    prior_weight: of the class pictures' loss; 0 leaves it out.
    towards_noise: 0 draws timesteps evenly, more draws more of them from the noisy end.
    """

    scope: str
    collage_share: float
    prior_weight: float
    towards_noise: float


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


def denoising_losses(
    base: BaseModel, schedule: NoiseSchedule, draw: Draw, edits: Sequence[RowEdit]
) -> torch.Tensor:
    """Weighted squared error of each example's denoising: float32 [B], differentiable."""
    unet, device = base.denoiser, base.device
    clean = draw.bank.latents[draw.examples.to(device)]
    noise = draw.noise.to(device)
    which = draw.prompts.to(device)
    embeddings = draw.bank.texts.embeddings[which]
    added = added_conditions(base, draw.bank.texts, which, picture_size(base))
    rows = project_rows(unet, embeddings, edits, added_cond_kwargs=added)
    predicted = serve(unet, rows)(
        schedule.noisy(clean, noise, draw.timesteps).to(base.dtype),
        draw.timesteps.to(device),
        encoder_hidden_states=embeddings,
        added_cond_kwargs=added,
    ).sample
    target = schedule.target(clean, noise, draw.timesteps)
    errors: torch.Tensor = (predicted.float() - target).square().mean((1, 2, 3))
    return errors * schedule.weights(draw.timesteps).to(device)


class ConceptImplantingLoss:
    """L(θ) on batches drawn by seed: subject denoising + prior preservation.

    counts: pictures of each kind.
    θ (a vector [N] of all K/V weights) is used at the subject's rows (scope ``subject``) or at
    every row (scope ``prompt``); the rest of the model stays as it is.
    Source: Cones, arXiv 2303.05125, the concept-implanting loss; prior preservation as in
    DreamBooth, arXiv 2208.12242.
    """

    def __init__(
        self,
        base: BaseModel,
        weights: FlatWeights,
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
        self._base, self._schedule, self.settings = base, schedule, settings
        self.weights = weights
        self._subject = subject
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

    def __call__(self, flat: torch.Tensor) -> torch.Tensor:
        """The loss of the next batch with ``flat`` [N] for θ: a scalar, differentiable in it."""
        dealt = [deck.deal(count, self._generator) for deck, count in self._decks if count]
        loss = self._mean(flat, self._subject, torch.cat(dealt))
        if self._prior is not None:
            numbers = self._prior_deck.deal(self._prior_count, self._generator)
            loss = loss + self.settings.prior_weight * self._mean(flat, self._prior, numbers)
        return loss

    def gradient(self, flat: torch.Tensor) -> tuple[torch.Tensor, float]:
        """∂L/∂θ at ``flat`` [N] on the next batch, float32 [N], and the loss.

        Raises DivergedError if the loss is not finite.
        """
        leaf = flat.detach().requires_grad_()
        loss = self(leaf)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value}: learning left the range of numbers. Use a smaller step "
                "(rho, learning_rate), or load the base model with dtype='float32'"
            )
        (gradient,) = torch.autograd.grad(loss, leaf)
        if not bool(torch.isfinite(gradient).all()):
            raise DivergedError(
                f"the loss is {value} but its gradient is not finite. Load the base model with "
                "dtype='float32'"
            )
        return gradient, value

    def _mean(self, flat: torch.Tensor, bank: ExampleBank, numbers: torch.Tensor) -> torch.Tensor:
        timesteps = self._schedule.stratified(
            len(numbers), self._generator, towards_noise=self.settings.towards_noise
        )
        draw = random_draw(bank, numbers, timesteps, self._generator)
        rows = draw.rows() if self.settings.scope == "subject" else None
        edit = self.weights.edit(flat, rows)
        return denoising_losses(self._base, self._schedule, draw, [edit]).mean()


def random_draw(
    bank: ExampleBank, examples: torch.Tensor, timesteps: torch.Tensor, generator: torch.Generator
) -> Draw:
    """True prompts and noise for given examples and timesteps, from a CPU generator."""
    prompts = bank.prompts_for(examples, generator)
    noise = torch.randn(len(examples), *bank.latents.shape[1:], generator=generator)
    return Draw(bank, examples, prompts, noise, timesteps)
