"""Learnt binary gates: which weights to shut, found by descent on the loss itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from cones_registry.extraction.first_order import mean_score
from cones_registry.extraction.methods import Curve, Learnt, Method, as_scores

if TYPE_CHECKING:
    from cones_registry.extraction.loss import ConceptImplantingLoss
    from cones_registry.extraction.progress import OnStep
    from cones_registry.extraction.target import Target


FLOOR = 4.0
"""How far below 0 a latent may sink: room to rank shut gates, not so much that none comes back."""
OPEN = 0.5
"""A gate is open where s is above it."""


@dataclass(frozen=True)
class Gates(Method):
    """A latent s ≤ 1 for every weight, 1 at first; the model runs on θ ∘ gate.

    A gate is shut where s is at most ½ and among the lowest, as many as the target density
    allows. The gradient goes straight through the step, ∂L/∂s = θ ∘ ∂L/∂(θ ∘ gate); s moves
    against its running mean, in units of its root mean square over all weights, by
    ``learning_rate`` falling to ``last_rate``; then back to open by κ · rate. The unit is one for
    all weights, unlike Adam's: a weight that hardly matters then hardly moves, and no density is
    spent on it (measured: the same loss at a third to half of the density).

    Scores are ½ − s averaged over the last fifth of the steps: the mask is of the highest, and of
    none that the average leaves open.
    pull: κ. first_beta, second_beta: decays of the running mean and of the mean square.
    warm_start: batches of a first pass at the base model's own weights; s then starts at
        1 − ½ · score / (lowest score the density allows), ``FirstOrder``'s choice on the edge.
    Source: straight-through estimation, arXiv 1308.3432; masks learnt over frozen weights, arXiv
    1801.06519.
    """

    name: ClassVar[str] = "gates"
    uses_tau: ClassVar[bool] = False
    default_density: ClassVar[float] = 0.1

    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 1.0
    last_rate: float = 0.1
    first_beta: float = 0.95
    second_beta: float = 0.99
    pull: float = 0.01
    warm_start: int = 0

    def learn(
        self,
        loss: ConceptImplantingLoss,
        *,
        target: Target,
        on_step: OnStep,
    ) -> Learnt:
        """Gates shut up to the target density; fewer where shutting more does not help."""
        density = self.default_density if target.density is None else target.density
        theta = loss.weights.values
        allowed = max(1, round(density * theta.numel()))
        state = _State(self._first_latent(loss, allowed))
        late = torch.zeros_like(theta)
        late_steps = 0
        threshold = OPEN
        curve = Curve(self.steps, on_step)
        for number in range(1, self.steps + 1):
            rate = self.rate(number)
            gradient, value = loss.gradient(theta * (state.latent > threshold))
            state.step(theta * gradient, number, rate, (self.first_beta, self.second_beta))
            state.latent.add_(self.pull * rate).clamp_(-FLOOR, 1)
            threshold = min(OPEN, float(state.latent.kthvalue(allowed).values))
            if number > 0.8 * self.steps:
                late += OPEN - state.latent
                late_steps += 1
            shut = int((state.latent <= threshold).sum())
            curve.add(number, value, shut / theta.numel())
        scores = as_scores(loss.weights.split(late / late_steps))
        return Learnt(target.select(loss.weights.table, scores), scores, tuple(curve.history), {})

    def _first_latent(self, loss: ConceptImplantingLoss, allowed: int) -> torch.Tensor:
        """Where s starts, float32 [N]."""
        theta = loss.weights.values
        if not self.warm_start:
            return torch.ones_like(theta)
        score = mean_score(loss, self.warm_start)
        # The highest score that is left open; the lowest of all where every weight may be shut.
        edge = float(score.kthvalue(max(1, theta.numel() - allowed)).values)
        return (1 - 0.5 * score / max(edge, 1e-30)).clamp_(0, 1)

    def rate(self, number: int) -> float:
        """Learning rate of step ``number``: falls by a cosine."""
        part = (number - 1) / max(self.steps - 1, 1)
        wave = 0.5 * (1 + math.cos(math.pi * part))
        return self.last_rate + (self.learning_rate - self.last_rate) * wave


@dataclass(frozen=True)
class QuickGates(Gates):
    """``Gates`` from a first pass: a third of the gradients, masks nearly as good.

    Measured in tools/results/steps.md: subjects right alone .84 for .89, in pairs .81 for .83.
    """

    name: ClassVar[str] = "quick-gates"

    steps: int = 100
    warm_start: int = 16


class _State:
    """s (``latent``) and the running mean of its gradient, float32 [N]; their common unit."""

    def __init__(self, latent: torch.Tensor) -> None:
        self.latent = latent
        self._mean = torch.zeros_like(latent)
        self._square = 0.0  # running mean of g², averaged over all weights

    def step(
        self, gradient: torch.Tensor, number: int, rate: float, betas: tuple[float, float]
    ) -> None:
        """Move s against the mean gradient."""
        first, second = betas
        self._mean.mul_(first).add_(gradient, alpha=1 - first)
        self._square = second * self._square + (1 - second) * float(gradient.square().mean())
        unit = math.sqrt(self._square / (1 - second**number)) * (1 - first**number)
        self.latent.sub_(self._mean, alpha=rate / max(unit, 1e-30))
