"""The forward process of a base model: noise levels, and what its denoiser predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from cones_registry.errors import UsageError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_MIDDLE = 1e-4  # levels are drawn this far from 0 and 1, where the normal distribution has no end


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise levels of a model trained on T discrete timesteps.

    alphas: float32 [T], ᾱ_t; noisy latents are √ᾱ x + √(1 − ᾱ) ε.
    prediction: what the denoiser answers: "epsilon" (ε), "sample" (x) or "v_prediction"
        (√ᾱ ε − √(1 − ᾱ) x).
    """

    alphas: torch.Tensor
    prediction: str

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """Read it off a diffusers scheduler; a ``FlowSchedule`` for models of flow matching.

        Raises:
            UsageError: a scheduler that is neither.
        """
        if _is_flow(scheduler):
            return FlowSchedule.of_flow(scheduler)
        alphas = getattr(scheduler, "alphas_cumprod", None)
        prediction = str(scheduler.config.get("prediction_type", "epsilon"))
        if alphas is None or prediction not in PREDICTIONS:
            raise UsageError(
                f"{type(scheduler).__name__} predicts {prediction!r}; expected a noise schedule "
                f"with alphas_cumprod that predicts one of {', '.join(PREDICTIONS)}"
            )
        return cls(alphas.detach().float().cpu(), prediction)

    def shifted(self, mu: float | None) -> NoiseSchedule:
        """The schedule for pictures of a size for which the pipeline says ``mu``."""
        return self

    def noisy(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """√ᾱ x + √(1 − ᾱ) ε for clean latents [B, …] at timesteps int64 [B]."""
        signal, rest = self._scales(timesteps, clean)
        return signal * clean + rest * noise

    def target(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the denoiser should answer, [B, …]."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        signal, rest = self._scales(timesteps, clean)
        return signal * noise - rest * clean

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Weight of each squared error, float32 [B].

        1 for ε and v, the models' own training loss. For x: 1 + min(SNR, 4) / 4, which keeps high
        noise, where layout and content are decided, as heavy as fine detail.
        """
        if self.prediction != "sample":
            return torch.ones(len(timesteps))
        alphas = self.alphas[timesteps]
        return 1 + (alphas / (1 - alphas).clamp(min=1e-8)).clamp(max=4) / 4

    def stratified(
        self, count: int, generator: torch.Generator, *, towards_noise: float = 0.0
    ) -> torch.Tensor:
        """``count`` timesteps int64, one from each of as many equal parts of the range, shuffled.

        towards_noise: 0 draws them evenly; b > 0 from u ↦ u^(1 / (1 + b)), more from the noisy end.
        """
        steps = len(self.alphas)
        even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        levels = even ** (1 / (1 + towards_noise))
        timesteps = (levels * steps).long().clamp(max=steps - 1)
        return timesteps[torch.randperm(count, generator=generator)]

    def _scales(
        self, timesteps: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = _spread(self.alphas[timesteps], like)
        return alphas.sqrt(), (1 - alphas).sqrt()


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """Noise levels of a model trained by flow matching, on the straight path from x to ε.

    Noisy latents are (1 − σ) x + σ ε; the denoiser answers the velocity ε − x. Timesteps are
    float32, ``steps`` · σ. Levels are drawn as Stable Diffusion 3 and FLUX draw theirs: σ′ of a
    logit-normal distribution, shifted to σ = s σ′ / (1 + (s − 1) σ′).
    Source: Scaling Rectified Flow Transformers, arXiv 2403.03206, sections 3.1 and 5.3.2.

    steps: timesteps in all. shift: s. dynamic: how s follows from the μ that pipelines compute from
    a picture's size: "exponential" (s = exp μ), "linear" (s = μ), or None: it does not.
    """

    steps: int = 1000
    shift: float = 1.0
    dynamic: str | None = None

    @classmethod
    def of_flow(cls, scheduler: Any) -> FlowSchedule:
        """Read it off a diffusers scheduler of flow matching."""
        config = scheduler.config
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
        steps = int(config.get("num_train_timesteps") or 1000)
        schedule = cls(torch.zeros(0), "velocity", steps, shift)
        if config.get("use_dynamic_shifting"):
            kind = str(config.get("time_shift_type") or "exponential")
            largest = float(config.get("max_shift") or 1.15)  # until the picture's size is known
            schedule = replace(schedule, dynamic=kind).shifted(largest)
        return schedule

    def shifted(self, mu: float | None) -> FlowSchedule:
        """The schedule for pictures of a size for which the pipeline says ``mu``."""
        if mu is None or self.dynamic is None:
            return self
        return replace(self, shift=mu if self.dynamic == "linear" else math.exp(mu))

    def target(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """ε − x."""
        return noise - clean

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """1 for every level: how often it is drawn is its weight."""
        return torch.ones(len(timesteps))

    def stratified(
        self, count: int, generator: torch.Generator, *, towards_noise: float = 0.0
    ) -> torch.Tensor:
        """``count`` timesteps float32, one from each equal part of the distribution, shuffled."""
        even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        levels = (even ** (1 / (1 + towards_noise))).clamp(_MIDDLE, 1 - _MIDDLE)
        sigmas = torch.sigmoid(torch.special.ndtri(levels))
        sigmas = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        return self.steps * sigmas[torch.randperm(count, generator=generator)]

    def _scales(
        self, timesteps: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sigmas = _spread(timesteps / self.steps, like)
        return 1 - sigmas, sigmas


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return type(scheduler).__name__.startswith("FlowMatch") or bool(
        config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    )


def _spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 1, …], to multiply latents with."""
    return values.to(like).view(-1, *(1,) * (like.ndim - 1))
