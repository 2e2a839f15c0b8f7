"""LoRA on all attention projections, by PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cones_registry.errors import MissingExtraError

RANK = 4
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def attach_low_rank(
    denoiser: Any, rank: int = RANK
) -> tuple[Mapping[str, torch.nn.Parameter], Callable[[], None]]:
    """Add adapters; the trainable matrices by name, and what folds them into the weights.

    Raises MissingExtraError without PEFT. Source: LoRA, arXiv 2106.09685; the projections are
    those of diffusers' DreamBooth-LoRA script.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError(
            "LoRA needs peft, which is not installed. pip install 'peft>=0.13'"
        ) from error
    denoiser.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            target_modules=list(PROJECTIONS),
        )
    )
    matrices = {name: each for name, each in denoiser.named_parameters() if "lora_" in name}

    def settle() -> None:
        denoiser.fuse_lora()
        denoiser.unload_lora()

    return matrices, settle
