"""One pass of θ · ∂L/∂θ at the base model's own weights."""

from __future__ import annotations

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
        theta = loss.weights.values
        score = torch.zeros_like(theta)
        curve = Curve(self.steps, on_step)
        for number in range(1, self.steps + 1):
            gradient, value = loss.gradient(theta)
            score += theta * gradient / self.steps  # θ · ∂L/∂θ
            curve.add(number, value)
        scores = as_scores(loss.weights.split(score))
        mask = target.select(loss.weights.table, scores)
        return Learnt(mask, scores, tuple(curve.history), {})
