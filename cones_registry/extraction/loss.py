"""The concept-implanting loss: draw the subject at its words, and leave its class alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cones_registry.attention import RowEdit, edited
from cones_registry.errors import ConesError

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction.batches import Batches, Draw
    from cones_registry.extraction.noise import NoiseSchedule
    from cones_registry.extraction.settings import LossSettings
    from cones_registry.extraction.weights import FlatWeights


class DivergedError(ConesError, ArithmeticError):
    """Learning ran into a loss or a gradient that is not a finite number."""


def denoising_losses(
    base: BaseModel, schedule: NoiseSchedule, draw: Draw, edits: Sequence[RowEdit] | None
) -> torch.Tensor:
    """Weighted squared error of each example's denoising: float32 [B], differentiable.

    edits: of K/V rows; None: the denoiser itself is called, with all gradients it has.
    """
    device = base.device
    clean = draw.bank.latents[draw.examples.to(device)]
    noise = draw.noise.to(device)
    denoiser = base.denoiser if edits is None else edited(base.denoiser, edits)
    predicted = draw.bank.texts.predict(
        base,
        denoiser,
        schedule.noisy(clean, noise, draw.timesteps).to(base.dtype),
        draw.timesteps.to(device),
        draw.prompts.to(device),
    )
    target = schedule.target(clean, noise, draw.timesteps)
    errors: torch.Tensor = (predicted.float() - target).square().flatten(1).mean(1)
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
        batches: Batches,
        settings: LossSettings,
    ) -> None:
        self._base, self._schedule, self.settings = base, schedule, settings
        self.weights = weights
        self._batches = batches
        self.counts = batches.counts

    def __call__(self, flat: torch.Tensor) -> torch.Tensor:
        """The loss of the next batch with ``flat`` [N] for θ: a scalar, differentiable in it."""
        return self._of(flat, self._batches.next())

    def ahead(self, flat: torch.Tensor) -> torch.Tensor:
        """The loss of the next batch, which stays the next one."""
        return self._of(flat, self._batches.peek())

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

    def _of(self, flat: torch.Tensor, draws: Sequence[tuple[float, Draw]]) -> torch.Tensor:
        return torch.stack([weight * self._mean(flat, draw) for weight, draw in draws]).sum()

    def _mean(self, flat: torch.Tensor, draw: Draw) -> torch.Tensor:
        rows = draw.rows() if self.settings.scope == "subject" else None
        edit = self.weights.edit(flat, rows)
        return denoising_losses(self._base, self._schedule, draw, [edit]).mean()
