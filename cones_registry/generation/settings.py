"""What all pictures of one batch share, checked before anything runs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from cones_registry.errors import UsageError
from cones_registry.generation.preview import PreviewCallback, StepCallback, preview_callback
from cones_registry.picture_size import check_side

# What a request says itself; the stock pipeline must not hear it a second time.
_RESERVED = frozenset(
    {
        "cross_attention_kwargs",
        "generator",
        "latents",
        "negative_prompt",
        "negative_prompt_embeds",
        "num_images_per_prompt",
        "output_type",
        "prompt",
        "prompt_embeds",
        "return_dict",
    }
)

# Latent sizes whose pictures PixArt draws at the nearest trained aspect ratio.
_BINNED_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Settings:
    """What all pictures of one batch share. See ``Generator.generate``."""

    steps: int
    guidance_scale: float
    height: int | None
    width: int | None
    scheduler: Any
    mask_unconditional: bool
    include_padding: bool
    on_step: StepCallback | None
    on_preview: PreviewCallback | None
    preview_every: int
    progress: bool
    pipeline_arguments: dict[str, Any]


def check_settings(settings: Settings, batch_size: int | None) -> None:
    """Raise UsageError for a setting out of range."""
    if settings.steps < 1:
        raise UsageError(f"steps={settings.steps}, expected at least 1")
    if not 0 <= settings.guidance_scale < 1000:
        raise UsageError(f"guidance_scale={settings.guidance_scale}, expected 0 … 1000")
    if settings.preview_every < 1:
        raise UsageError(f"preview_every={settings.preview_every}, expected at least 1")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size={batch_size}, expected at least 1")
    reserved = sorted(_RESERVED & set(settings.pipeline_arguments))
    if reserved:
        raise UsageError(f"{reserved[0]!r} cannot be given for a batch. Say it in each Request")
    for name, size in (("height", settings.height), ("width", settings.width)):
        if size is not None:
            check_side(name, size)


def family_arguments(view: Any, settings: Settings) -> dict[str, Any]:
    """Arguments that only some stock pipelines know."""
    known = inspect.signature(type(view).__call__).parameters
    arguments: dict[str, Any] = {}
    if "clean_caption" in known:
        # Rows are found in the prompt as it is given; cleaning would move them.
        arguments["clean_caption"] = False
    if "use_resolution_binning" in known:
        arguments["use_resolution_binning"] = view.transformer.config.sample_size in _BINNED_SIZES
    callback = settings.on_step
    if settings.on_preview is not None:
        callback = preview_callback(settings.on_preview, settings.preview_every, callback)
    if callback is not None:
        if "callback_on_step_end" not in known:
            raise UsageError(
                f"{type(view).__name__} has no callback after a step; drop on_step and on_preview"
            )
        arguments["callback_on_step_end"] = callback
    return arguments
