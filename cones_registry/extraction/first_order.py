"""One pass of θ · ∂L/∂θ at the base model's own weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from cones_registry.extraction.methods import Curve, Learnt, Method, as_scores

if TYPE_CHECKING:
    from cones_registry.extraction.loss import ConceptImplantingLoss
    from cones_registry.extraction.progress import OnStep
    from cones_registry.extraction.target import Target


@dataclass(frozen=True)
class FirstOrder(Method):
    """Score = mean over batches of θ · ∂L/∂θ: how much the loss falls per share a weight is shut.

    Source: Cones, arXiv 2303.05125, the criterion for concept neurons without its iteration.
    """

    name: ClassVar[str] = "first-order"
    uses_tau: ClassVar[bool] = True
    default_density: ClassVar[float] = 0.005

    steps: int = 50
    batch_size: int = 16

    def learn(
        self,
        loss: ConceptImplantingLoss,
        *,
        target: Target,
        on_step: OnStep,
    ) -> Learnt:
        """Highest scores up to the density, or all above τ."""
        curve = Curve(self.steps, on_step)
        scores = as_scores(loss.weights.split(mean_score(loss, self.steps, curve.add)))
        mask = target.select(loss.weights.table, scores)
        return Learnt(mask, scores, tuple(curve.history), {})


def mean_score(
    loss: ConceptImplantingLoss,
    batches: int,
    on_batch: Callable[[int, float], None] = lambda number, value: None,
) -> torch.Tensor:
    """Mean over batches of θ · ∂L/∂θ, float32 [N]; ``on_batch(number, loss)`` after each."""
    theta = loss.weights.values
    score = torch.zeros_like(theta)
    for number in range(1, batches + 1):
        gradient, value = loss.gradient(theta)
        score += theta * gradient / batches
        on_batch(number, value)
    return score
