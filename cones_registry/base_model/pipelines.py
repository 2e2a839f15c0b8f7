"""Pipelines that a user has in memory already: what they must have, and whose weights they hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cones_registry.base_model.loading import TOKENIZERS
from cones_registry.base_model.source import folder_fingerprint, open_source
from cones_registry.errors import ConesError, UsageError
from cones_registry.layers import LayerTable, fingerprint

_EXACT = (torch.float16, torch.float32, torch.float64)


def modules_of(pipeline: Any) -> list[torch.nn.Module]:
    """The neural networks of a pipeline."""
    parts = pipeline.components.values()
    return [part for part in parts if isinstance(part, torch.nn.Module)]


def require_pipeline(pipeline: Any) -> None:
    """Raise UsageError unless ``pipeline`` is one whose K/V weights masks can index into."""
    denoiser = _denoiser(pipeline)
    if denoiser is None:
        raise UsageError(
            f"expected a diffusers pipeline with a unet or a transformer, got "
            f"{type(pipeline).__name__}. Give the pipeline itself, as from_pretrained returned it"
        )
    if all(getattr(pipeline, name, None) is None for name in TOKENIZERS):
        raise UsageError(f"{type(pipeline).__name__} has no tokenizer, so it draws from no text")
    for name, part in denoiser.named_modules():
        if hasattr(part, "base_layer") and name.endswith(("to_k", "to_v", "add_k_proj")):
            raise UsageError(
                f"{name} of the pipeline has LoRA layers attached, so its K and V are not the base "
                "model's. Undo with pipe.unload_lora_weights()"
            )


def _denoiser(pipeline: Any) -> Any:
    found = getattr(pipeline, "unet", None)
    return found if found is not None else getattr(pipeline, "transformer", None)


def pipeline_fingerprint(pipeline: Any) -> str:
    """Fingerprint of the K/V weights that a pipeline holds in memory.

    Raises UsageError for weights that no longer have the values that were published.
    """
    denoiser = _denoiser(pipeline)
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    table = LayerTable.from_unet(denoiser)
    weights = {layer.name: denoiser.get_parameter(layer.name).detach() for layer in table.layers}
    for name, weight in weights.items():
        if weight.is_meta:
            raise UsageError(
                f"{name} is offloaded: its values are not in memory. Use "
                "pipe.enable_model_cpu_offload() instead of sequential offload, or none"
            )
    kinds = {weight.dtype for weight in weights.values()}
    if kinds <= set(_EXACT):
        return fingerprint(table, lambda name: np.asarray(weights[name].cpu().numpy()))
    return _published_fingerprint(pipeline, table, weights)


def _published_fingerprint(
    pipeline: Any, table: LayerTable, weights: dict[str, torch.Tensor]
) -> str:
    """The fingerprint of the files, if the weights are theirs but for rounding."""
    source = pipeline.config.get("_name_or_path")
    kind = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    advice = (
        f"The weights are {kind}, which has not the values that were published. Load the pipeline "
        "in float16 or float32, or use BaseModel.load, which reads the files"
    )
    if not source:
        raise UsageError(f"whose weights these are cannot be told. {advice}")
    here: Any = SimpleNamespace(
        named_parameters=lambda: ((name, weight.cpu()) for name, weight in weights.items())
    )
    try:
        return folder_fingerprint(open_source(source), table, here)
    except ConesError as error:
        raise UsageError(f"whose weights these are cannot be told: {error}. {advice}") from error
