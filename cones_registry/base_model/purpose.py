"""What a pipeline is made for: one that needs a picture is no base model, nor is half of one."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any, Final

from cones_registry.errors import CorruptDataError, UsageError

# A word in the name of a pipeline's class -> what such a pipeline is.
_OTHER_PURPOSES: Final = {
    "Inpaint": "an inpainting pipeline, which needs a picture and what to replace in it",
    "Img2Img": "an image-to-image pipeline (as a refiner is), which needs a picture",
    "ImageToImage": "an image-to-image pipeline, which needs a picture",
    "ControlNet": "a ControlNet pipeline, which needs a picture of edges, depth or poses",
    "T2IAdapter": "a pipeline with a T2I adapter, which needs a picture",
    "Adapter": "a pipeline with an adapter, which needs a picture",
    "Pix2Pix": "an editing pipeline, which needs a picture",
    "Depth2Img": "a depth-to-image pipeline, which needs a picture",
    "Upscale": "an upscaling pipeline, which needs a picture",
    "ImageVariation": "a pipeline of picture variations, which needs a picture",
    "Kontext": "an editing pipeline, which needs a picture",
    "Edit": "an editing pipeline, which needs a picture",
    "Prior": "the first half of a pipeline, which draws no picture by itself",
    "ImageToVideo": "an image-to-video pipeline, which needs a picture",
    "Onnx": "a pipeline for ONNX, whose weights cannot be masked",
    "Flax": "a pipeline for Flax, whose weights cannot be masked",
}


_WITHOUT_POOLED: Final = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")


def check_purpose(path: Path, pipeline: str, parts: Container[str]) -> None:
    """Raise UsageError unless the pipeline in ``path`` draws pictures from text alone.

    pipeline: name of its class. parts: names of the parts that ``model_index.json`` fills.
    """
    for word, purpose in _OTHER_PURPOSES.items():
        if word in pipeline:
            raise UsageError(
                f"{path} is {purpose} ({pipeline}). Expected a text-to-image pipeline: give the "
                "model it was made from"
            )
    if "controlnet" in parts or "adapter" in parts:
        raise UsageError(
            f"{path} has a ControlNet or an adapter, which needs a picture. Expected a "
            "text-to-image pipeline: give the model it was made from"
        )
    if "unet" not in parts or "vae" not in parts:
        return
    # SDXL's U-Net alone reads size and pooled text beside the rows.
    pooled = _config(path / "unet").get("addition_embed_type") == "text_time"
    if (pooled and pipeline in _WITHOUT_POOLED) or (
        pipeline == "StableDiffusionXLPipeline" and not (pooled and "text_encoder_2" in parts)
    ):
        raise CorruptDataError(
            f"{path / 'model_index.json'} says {pipeline}, and its parts are of another family. "
            "Copy the folder again, with the model_index.json that belongs to it"
        )
    channels = _number(path / "unet", "in_channels")
    latents = _number(path / "vae", "latent_channels")
    if channels is not None and latents is not None and channels != latents:
        raise UsageError(
            f"the U-Net in {path} reads {channels} channels where its autoencoder makes {latents}: "
            "it was made for inpainting or editing, and needs a picture. Give the text-to-image "
            "model it was made from"
        )


def _number(part: Path, key: str) -> int | None:
    """A whole number in the configuration of a part; None if there is none."""
    value = _config(part).get(key)
    return value if isinstance(value, int) else None


def _config(part: Path) -> dict[str, Any]:
    """The configuration of a part; empty if there is none."""
    file = part / "config.json"
    if not file.is_file():
        return {}
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptDataError(f"cannot read {file}: {error}. Copy the folder again") from error
    return content if isinstance(content, dict) else {}
