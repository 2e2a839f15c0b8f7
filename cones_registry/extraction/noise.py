"""The forward process of a base model: noise levels, and what its denoiser predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cones_registry.errors import UsageError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


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
        """Read it off a diffusers scheduler; UsageError for flow matching and the like."""
        alphas = getattr(scheduler, "alphas_cumprod", None)
        prediction = str(scheduler.config.get("prediction_type", "epsilon"))
        if alphas is None or prediction not in PREDICTIONS:
            raise UsageError(
                f"{type(scheduler).__name__} predicts {prediction!r}; expected a noise schedule "
                f"with alphas_cumprod that predicts one of {', '.join(PREDICTIONS)}"
            )
        return cls(alphas.detach().float().cpu(), prediction)

    def noisy(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """√ᾱ x + √(1 − ᾱ) ε for clean latents [B, C, h, w] at timesteps int64 [B]."""
        signal, rest = self._scales(timesteps, clean)
        return signal * clean + rest * noise

    def target(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the denoiser should answer, [B, C, h, w]."""
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
        alphas = self.alphas[timesteps].to(like)[:, None, None, None]
        return alphas.sqrt(), (1 - alphas).sqrt()
