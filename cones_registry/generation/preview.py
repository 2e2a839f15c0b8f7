"""Pictures of the steps on the way, decoded from the latents between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

StepCallback = Callable[..., dict[str, Any]]
PreviewCallback = Callable[[int, Sequence["Image"]], None]


def preview_callback(
    on_preview: PreviewCallback, every: int, on_step: StepCallback | None = None
) -> StepCallback:
    """A ``callback_on_step_end`` that hands decoded latents to ``on_preview(step, pictures)``.

    every: steps between two previews. on_step: called as well, before the preview.
    """

    def callback(
        pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        changed = on_step(pipeline, step, timestep, tensors) if on_step is not None else {}
        if (step + 1) % every == 0:
            on_preview(step, decode(pipeline, changed.get("latents", tensors["latents"])))
        return changed

    return callback


@torch.no_grad()
def decode(pipeline: Any, latents: torch.Tensor) -> list[Image]:
    """Pictures of latents [B, C, H, W]; a half-precision autoencoder is used as it is."""
    autoencoder = pipeline.vae
    states = (latents / autoencoder.config.scaling_factor).to(autoencoder.dtype)
    pixels = autoencoder.decode(states, return_dict=False)[0]
    # A half-precision SDXL autoencoder can overflow; a grey preview beats a failed run.
    pictures: list[Image] = pipeline.image_processor.postprocess(
        torch.nan_to_num(pixels), output_type="pil"
    )
    return pictures
