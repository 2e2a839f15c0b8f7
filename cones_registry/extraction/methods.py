"""What all methods share: what they are asked, what they give, and the list of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from cones_registry.errors import UsageError
from cones_registry.extraction.progress import Step

if TYPE_CHECKING:
    from cones_registry.extraction.loss import ConceptImplantingLoss
    from cones_registry.extraction.progress import OnStep
    from cones_registry.extraction.target import Scores, Target
    from cones_registry.mask import ConceptMask

HISTORY_LENGTH = 50
"""Entries of a loss curve: enough to see it, little enough to keep with every concept."""


@dataclass(frozen=True)
class Learnt:
    """What a method found.

    mask: the neurons to shut. scores: what they were chosen by.
    history: the loss curve, at most HISTORY_LENGTH entries.
    found: values the method set itself (ρ, last κ …), kept in the provenance.
    """

    mask: ConceptMask
    scores: Scores
    history: tuple[Mapping[str, Any], ...]
    found: Mapping[str, float]


@dataclass(frozen=True)
class Method:
    """A way to find concept neurons; a dataclass of its hyper-parameters.

    steps: batches whose gradient is taken. batch_size: pictures in each.
    """

    name: ClassVar[str]
    uses_tau: ClassVar[bool]
    default_density: ClassVar[float]

    steps: int
    batch_size: int

    def learn(
        self,
        loss: ConceptImplantingLoss,
        *,
        target: Target,
        on_step: OnStep,
    ) -> Learnt:
        """Find the neurons."""
        raise NotImplementedError

    @classmethod
    def default(cls) -> Method:
        """With the hyper-parameters that measured best."""
        # Every method gives defaults to the fields that have none here.
        return cls()  # type: ignore[call-arg]

    def with_steps(self, steps: int | None) -> Method:
        """The same method with another number of steps."""
        return self if steps is None else replace(self, steps=steps)

    def __post_init__(self) -> None:
        """Raise UsageError for hyper-parameters that cannot be."""
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(
                    f"{each.name}={value} of method {self.name!r}; expected at least 0"
                )
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(
                f"steps={self.steps}, batch_size={self.batch_size}; expected at least 1 of each"
            )

    def to_json(self) -> dict[str, Any]:
        """Every hyper-parameter by name."""
        return asdict(self)


class Curve:
    """Collects the loss of every step into a history of bounded length."""

    def __init__(self, total: int, on_step: OnStep) -> None:
        self._total, self._on_step = total, on_step
        self._every = -(-total // HISTORY_LENGTH)
        self._window: list[float] = []
        self.history: list[Mapping[str, Any]] = []

    def add(self, number: int, loss: float, density: float | None = None) -> None:
        """Note step ``number`` (from 1)."""
        self._on_step(Step(number, self._total, loss, density))
        self._window.append(loss)
        if number % self._every == 0 or number == self._total:
            entry: dict[str, Any] = {"step": number, "loss": float(np.mean(self._window))}
            if density is not None:
                entry["density"] = density
            self.history.append(entry)
            self._window = []


def as_scores(layers: Mapping[str, torch.Tensor]) -> Scores:
    """Scores on the CPU, as numpy arrays."""
    return {name: value.detach().float().cpu().numpy().copy() for name, value in layers.items()}
