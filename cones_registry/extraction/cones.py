"""The paper's Algorithm 1: self-adaptive concept neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from cones_registry.errors import UsageError
from cones_registry.extraction.methods import Curve, Learnt, Method, as_scores

if TYPE_CHECKING:
    from cones_registry.extraction.loss import ConceptImplantingLoss
    from cones_registry.extraction.progress import OnStep
    from cones_registry.extraction.target import Target

_TOP = 0.999
_PILOT_STEPS = 8


@dataclass(frozen=True)
class Cones(Method):
    """K times: S ← S + θ ∘ ∂L/∂θ at the current θ, then θ ← θ − ρ θ ∘ θ ∘ ∂L/∂θ.

    Scores are S / K, so that τ does not depend on K.
    rho: ρ. None: scaled to the subject, so that a weight at the 99.9th percentile of
        |θ · ∂L/∂θ| shrinks by ``shrink`` a step, but no step promises to lower the loss by more
        than the share ``trust``.
    bounded: keep every θ between 0 and its own value in the base model. A mask can do no more than
        shut; and without a bound, weights that the rule makes grow do so ever faster, until the
        loss runs away. False is the paper's rule.
    Source: Cones, arXiv 2303.05125, Algorithm 1. It gives neither ρ nor τ for other models.
    """

    name: ClassVar[str] = "cones"
    uses_tau: ClassVar[bool] = True
    default_density: ClassVar[float] = 0.01

    steps: int = 100
    batch_size: int = 16
    rho: float | None = None
    shrink: float = 0.02
    trust: float = 0.02
    bounded: bool = True

    def learn(
        self,
        loss: ConceptImplantingLoss,
        *,
        target: Target,
        on_step: OnStep,
    ) -> Learnt:
        """Highest S / K up to the density, or all above τ."""
        theta = loss.weights.values.clone()
        rho = self.rho if self.rho is not None else self._scaled(loss)
        lowest, largest = theta.clamp(max=0), theta.clamp(min=0)
        total = torch.zeros_like(theta)  # S
        curve = Curve(self.steps, on_step)
        for number in range(1, self.steps + 1):
            gradient, value = loss.gradient(theta)
            score = theta * gradient  # θ ∘ ∂L/∂θ
            total += score
            theta -= rho * theta * score  # ρ θ ∘ θ ∘ ∂L/∂θ
            if self.bounded:
                theta = torch.minimum(torch.maximum(theta, lowest), largest)
            curve.add(number, value)
        scores = as_scores(loss.weights.split(total / self.steps))
        mask = target.select(loss.weights.table, scores)
        return Learnt(mask, scores, tuple(curve.history), {"rho": rho})

    def _scaled(self, loss: ConceptImplantingLoss) -> float:
        theta = loss.weights.values
        mean = torch.zeros_like(theta)
        square = level = 0.0
        for _ in range(_PILOT_STEPS):
            gradient, value = loss.gradient(theta)
            score = theta * gradient
            mean += score / _PILOT_STEPS
            square += float(score.square().sum()) / _PILOT_STEPS
            level += value / _PILOT_STEPS
        count = max(1, round((1 - _TOP) * mean.numel()))
        top = float(mean.abs().topk(count).values[-1])
        if top <= 0:
            raise UsageError(
                "the subject's pictures give no gradient at any K/V weight. Check that the "
                "captions name the token and that the base model reads its text"
            )
        # A step changes L by −ρ ‖θ ∘ ∂L/∂θ‖² to first order; past a small share of L that is no
        # longer so, and the loss climbs instead.
        return min(self.shrink / top, self.trust * level / square)
