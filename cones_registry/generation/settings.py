"""What all pictures of one batch share, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from cones_registry.base_model.stock import call_parameters, stock_arguments
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
        "num_frames",
        "num_images_per_prompt",
        "num_videos_per_prompt",
        "output_type",
        "prompt",
        "prompt_embeds",
        "return_dict",
    }
)

# What the generator says itself -> how to tell it.
_OWNED = {
    "callback": "on_step",
    "callback_on_step_end": "on_step",
    "callback_steps": "on_step",
    "clean_caption": "the prompt as it shall be read",
    "num_inference_steps": "steps",
}

# Pipelines whose latents between two steps are no pictures yet: packed, or of several frames.
_WITHOUT_PREVIEW = (
    *("CosmosTextToWorldPipeline", "FluxPipeline", "Flux2KleinPipeline", "Flux2Pipeline"),
    *("LTXPipeline", "QwenImagePipeline", "WanPipeline"),
)


PhaseCallback = Callable[[str, float], None]
"""``on_phase(name, seconds)``: see ``Generator.generate``."""


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
    on_phase: PhaseCallback | None
    progress: bool
    pipeline_arguments: dict[str, Any]


def check_settings(pipeline: Any, settings: Settings, batch_size: int | None) -> None:
    """Raise UsageError for a setting out of range, or one that ``pipeline`` does not know."""
    _check_count("steps", settings.steps)
    _check_count("preview_every", settings.preview_every)
    if batch_size is not None:
        _check_count("batch_size", batch_size)
    guidance = settings.guidance_scale
    if not isinstance(guidance, Real) or not 0 <= guidance < 1000:
        raise UsageError(f"guidance_scale={guidance!r}, expected a number from 0 below 1000")
    _check_arguments(pipeline, settings.pipeline_arguments)
    if not has_step_callback(pipeline) and (settings.on_step or settings.on_preview):
        raise UsageError(
            f"{type(pipeline).__name__} has no callback after a step; drop on_step and on_preview"
        )
    if settings.on_preview and type(pipeline).__name__ in _WITHOUT_PREVIEW:
        raise UsageError(
            f"{type(pipeline).__name__} has no pictures between two steps; drop on_preview"
        )
    for name, size in (("height", settings.height), ("width", settings.width)):
        if size is not None:
            check_side(name, size)


def has_step_callback(pipeline: Any) -> bool:
    """Whether a stock pipeline calls back after each step."""
    return "callback_on_step_end" in call_parameters(pipeline)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}={value!r}, expected a whole number of at least 1")


def _check_arguments(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """Stock pipelines take ``**kwargs`` and ignore what they do not know: a slip must not pass."""
    known = call_parameters(pipeline).keys()
    for name in sorted(arguments):
        if name in _RESERVED:
            raise UsageError(f"{name!r} cannot be given for a batch. Say it in each Request")
        if name in _OWNED:
            raise UsageError(f"{name!r} is the generator's own affair. Say {_OWNED[name]} instead")
        if name not in known:
            able = sorted(known - _RESERVED - set(_OWNED) - set(Settings.__dataclass_fields__))
            raise UsageError(
                f"unknown argument {name!r}. Expected one of the generator's own, or of "
                f"{type(pipeline).__name__}: {', '.join(able)}"
            )


def family_arguments(view: Any, settings: Settings, negatives: Sequence[str]) -> dict[str, Any]:
    """Arguments of one call of a stock pipeline besides prompts, steps and seeds."""
    arguments = stock_arguments(
        view,
        guidance_scale=settings.guidance_scale,
        negatives=negatives,
        height=settings.height,
        width=settings.width,
    )
    callback = settings.on_step
    if settings.on_preview is not None:
        callback = preview_callback(settings.on_preview, settings.preview_every, callback)
    if callback is not None:
        arguments["callback_on_step_end"] = callback
    return arguments
