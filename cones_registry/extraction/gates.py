"""Learnt binary gates: which weights to shut, found by descent on the loss itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from cones_registry.extraction.methods import Curve, Learnt, Method, as_scores
from cones_registry.extraction.target import highest

if TYPE_CHECKING:
    from cones_registry.extraction.loss import ConceptImplantingLoss
    from cones_registry.extraction.progress import OnStep
    from cones_registry.extraction.target import Target


@dataclass(frozen=True)
class Gates(Method):
    """A latent s ∈ [0, 1] for every weight, open (1) at first; the model runs on θ ∘ [s > ½].

    The gradient goes straight through the step, ∂L/∂s = θ ∘ ∂L/∂(θ ∘ gate); s moves by the
    direction of Adam at ``learning_rate`` falling to ``last_rate``, then by a pull κ · rate back
    to open, so that only weights whose shutting helps steadily stay shut. κ is moved, a step at a
    time, so that the density follows a path that ends at the target.

    Scores are 1 − s averaged over the last fifth of the steps.
    pull: the first κ. control: how fast κ answers to a density off its path.
    first_beta, second_beta: Adam's decays.
    Source: straight-through estimation, arXiv 1308.3432; masks over frozen weights, arXiv
    1801.06519.
    """

    name: ClassVar[str] = "gates"
    uses_tau: ClassVar[bool] = False
    default_density: ClassVar[float] = 0.1

    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 0.05
    last_rate: float = 0.005
    first_beta: float = 0.9
    second_beta: float = 0.99
    pull: float = 0.2
    control: float = 0.02

    def learn(
        self,
        loss: ConceptImplantingLoss,
        *,
        target: Target,
        on_step: OnStep,
    ) -> Learnt:
        """Gates whose density lands at the target; fewer where shutting more does not help."""
        goal = self.default_density if target.density is None else target.density
        theta = loss.weights.values
        state = _State(theta)
        pull = self.pull
        late = torch.zeros_like(theta)
        late_count = 0
        curve = Curve(self.steps, on_step)
        for number in range(1, self.steps + 1):
            rate = self.rate(number)
            gradient, value = loss.gradient(theta * (state.gates > 0.5))
            state.step(theta * gradient, number, rate, (self.first_beta, self.second_beta))
            state.gates.add_(pull * rate).clamp_(0, 1)
            shut = float((state.gates <= 0.5).sum()) / theta.numel()
            path = goal * min(1.0, 2 * number / self.steps)
            pull = min(max(pull + self.control * math.log((shut + 1e-4) / (path + 1e-4)), 0.0), 1.5)
            if number > 0.8 * self.steps:
                late += 1 - state.gates
                late_count += 1
            curve.add(number, value, shut)
        scores = as_scores(loss.weights.split(late / max(late_count, 1)))
        mask = highest(loss.weights.table, scores, goal)
        return Learnt(mask, scores, tuple(curve.history), {"last_pull": pull})

    def rate(self, number: int) -> float:
        """Learning rate of step ``number``: falls by a cosine."""
        part = (number - 1) / max(self.steps - 1, 1)
        wave = 0.5 * (1 + math.cos(math.pi * part))
        return self.last_rate + (self.learning_rate - self.last_rate) * wave


class _State:
    """s and Adam's moments, each float32 [N]."""

    def __init__(self, like: torch.Tensor) -> None:
        self.gates = torch.ones_like(like)
        self._mean = torch.zeros_like(like)
        self._square = torch.zeros_like(like)

    def step(
        self, gradient: torch.Tensor, number: int, rate: float, betas: tuple[float, float]
    ) -> None:
        """Move s against the gradient by Adam's direction."""
        first, second = betas
        self._mean.mul_(first).add_(gradient, alpha=1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = self._mean / (1 - first**number)
        spread = (self._square / (1 - second**number)).sqrt_()
        self.gates.sub_(rate * mean / spread.add_(1e-12))
