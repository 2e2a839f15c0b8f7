"""How each family's stock pipeline is called to draw one picture per prompt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

# Latent sizes whose pictures are drawn at the nearest trained aspect ratio, for each pipeline.
_BINNED_SIZES = {"SanaPipeline": (16, 32, 64, 128), "HunyuanDiTPipeline": (128,)}
_USUALLY_BINNED = (32, 64, 128)


def call_parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """What a stock pipeline takes in a call, by name."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {
        name: each
        for name, each in parameters.items()
        if name != "self" and each.kind is not inspect.Parameter.VAR_KEYWORD
    }


def stock_arguments(
    pipeline: Any,
    *,
    guidance_scale: float,
    negatives: Sequence[str],
    height: int | None,
    width: int | None,
) -> dict[str, Any]:
    """Size, guidance, negative prompts and whatever else only some stock pipelines know.

    guidance_scale: 1 or less turns guidance off. negatives: one negative prompt per picture, empty
    for none. height, width: pixels; None: the model's own.
    """
    known, name = call_parameters(pipeline), type(pipeline).__name__
    arguments: dict[str, Any] = {}
    for side, size in (("height", height), ("width", width)):
        if size is None and name == "SanaPipeline":  # it says 1024, whatever the model's size is
            size = own_size(pipeline)
        if size is not None or known[side].default is None:
            arguments[side] = size
    arguments["guidance_scale"] = guidance_scale
    if any(negatives):
        arguments["negative_prompt"] = list(negatives)
    if name == "QwenImagePipeline":
        # Guidance by a second, negative prompt; the other kind is for distilled models alone.
        distilled = pipeline.transformer.config.guidance_embeds
        arguments["guidance_scale"] = guidance_scale if distilled else None
        if not distilled:
            arguments["true_cfg_scale"] = guidance_scale
            if guidance_scale > 1:
                arguments["negative_prompt"] = [each or " " for each in negatives]
    if "num_frames" in known:
        arguments["num_frames"] = 1
    if "clean_caption" in known:
        # Rows are found in the prompt as it is given; cleaning would move them.
        arguments["clean_caption"] = False
    if "use_resolution_binning" in known:
        binned = _BINNED_SIZES.get(name, _USUALLY_BINNED)
        arguments["use_resolution_binning"] = pipeline.transformer.config.sample_size in binned
    return arguments


def own_size(pipeline: Any) -> int:
    """Width and height in pixels of the model's own square pictures."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    sample = getattr(denoiser.config, "sample_size", None)
    if sample is None:  # FLUX and Qwen-Image take any size
        sample = getattr(pipeline, "default_sample_size", None)
    if sample is None:  # Wan and LTX-Video say the sides of a frame in their call
        known = call_parameters(pipeline)
        return min(int(known[side].default) for side in ("height", "width"))
    return int(sample if isinstance(sample, int) else sample[0]) * int(pipeline.vae_scale_factor)


def plain_guidance(pipeline: Any) -> float:
    """Guidance scale of a plain call: off, or what a guidance-distilled model is told usually."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    if getattr(denoiser.config, "guidance_embeds", False):
        return float(call_parameters(pipeline)["guidance_scale"].default or 1.0)
    return 1.0
