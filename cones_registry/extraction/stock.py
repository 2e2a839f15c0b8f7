"""The base model's own pictures, drawn by its stock pipeline."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.base_model.stock import stock_arguments
from cones_registry.base_model.watch import WatchedAutoencoder, failures
from cones_registry.errors import CorruptDataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from cones_registry.base_model import BaseModel


def draw_pictures(
    base: BaseModel,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    batch_size: int = 8,
) -> list[Image]:
    """One picture a prompt; the n-th starts from the noise of ``seed`` + n."""
    pictures: list[Image] = []
    for output in _draw(base, prompts, seed, steps, guidance_scale, batch_size, "pil"):
        pictures.extend(output)
    return pictures


def draw_latents(
    base: BaseModel,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    batch_size: int = 8,
    size: int | None = None,
) -> torch.Tensor:
    """As ``draw_pictures``, but the denoised latents, float32 [n, C, h, w] on the CPU.

    Of models that pack them [n, rows, 4 C]. size: pixels on a side; None: the model's own.
    """
    parts = [
        output.float().cpu()
        for output in _draw(base, prompts, seed, steps, guidance_scale, batch_size, "latent", size)
    ]
    return torch.cat(parts)


def _draw(
    base: BaseModel,
    prompts: Sequence[str],
    seed: int,
    steps: int,
    guidance_scale: float,
    batch_size: int,
    output_type: str,
    size: int | None = None,
) -> list[Any]:
    # The pipeline is shared: what a call changes (scheduler, progress bar) is the copy's own.
    pipeline = copy.copy(base.pipeline)
    pipeline.__dict__["scheduler"] = copy.deepcopy(pipeline.scheduler)
    own_settings = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**(own_settings | {"disable": True}))
    found = []
    with base.lock:
        for start in range(0, len(prompts), batch_size):
            chunk = list(prompts[start : start + batch_size])
            seeds = range(seed + start, seed + start + len(chunk))
            watched = WatchedAutoencoder(base.pipeline.vae)
            pipeline.__dict__["vae"] = watched
            output = pipeline(
                prompt=chunk,
                num_inference_steps=steps,
                generator=[torch.Generator("cpu").manual_seed(number) for number in seeds],
                output_type=output_type,
                **stock_arguments(
                    pipeline,
                    guidance_scale=guidance_scale,
                    negatives=[""] * len(chunk),
                    height=size,
                    width=size,
                ),
            )
            failed = failures(watched, output, len(chunk), dtype=base.dtype)
            if isinstance(output.images, torch.Tensor) and not output.images.isfinite().all():
                failed[0] = "its latents became NaN or infinite. Learn with --dtype float32"
            if failed:
                number, reason = min(failed.items())
                raise CorruptDataError(f"the base model cannot draw {chunk[number]!r}: {reason}")
            found.append(output.images)
    return found
