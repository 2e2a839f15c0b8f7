"""What `bench_generation.py` measures on: SD 1.x shapes, and a registry of random concepts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cones_registry import BaseModel, ConceptMask, Registry, Request

NO_FINGERPRINT = "sha256:" + "0" * 64


def load(name: str, side: int) -> BaseModel:
    """The base model `name`: "sd1" is Stable Diffusion 1.x with random weights.

    side: of its latents. The values do not matter to time or memory.
    """
    if name == "sd1":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = stable_diffusion_1(side).to(device)
        base = BaseModel(pipeline, source="sd1", fingerprint=NO_FINGERPRINT)
    else:
        base = BaseModel.load(name)
    base.pipeline.set_progress_bar_config(disable=True)
    return base


def stable_diffusion_1(side: int) -> Any:
    """StableDiffusionPipeline of SD 1.x shapes with random weights; side: of the latents."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=side, cross_attention_dim=768, attention_head_dim=8)
    autoencoder = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=side * 8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def word_tokenizer() -> Any:
    """A CLIP tokenizer of letters: rows and padding as in SD, no vocabulary file needed."""
    from transformers import CLIPTokenizer

    pieces = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces += [piece + "</w>" for piece in pieces] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def random_registry(folder: Path, base: BaseModel, count: int, density: float) -> list[str]:
    """A registry in `folder` of `count` random concepts, made unless it is there; their refs.

    Every second one has scope "subject".
    """
    if (folder / "cones.json").exists():
        with Registry.open(folder, read_only=True, cache=cache_of(folder)) as registry:
            return sorted(
                (concept.ref for concept in registry.find()),
                key=lambda ref: int(ref.split("/")[1].split(":")[0]),
            )
    generator = np.random.default_rng(0)
    items = []
    for number in range(count):
        indices = {}
        for layer in base.layer_table.layers:
            members = generator.random(layer.rows * layer.cols, dtype=np.float32) < density
            indices[layer.name] = np.flatnonzero(members).astype(np.int32)
        options = {
            "base": base,
            "scope": "subject" if number % 2 else "prompt",
            "token": f"tok{number}",
            "class_noun": "dog",
        }
        mask = ConceptMask.from_indices(base.layer_table, indices)
        items.append((f"bench/{number}", mask, options))
    with Registry.create(folder, cache=cache_of(folder)) as registry:
        return [concept.ref for concept in registry.push_many(items)]


def cache_of(folder: Path) -> Path:
    """Where the local copy of the registry in `folder` is kept."""
    return folder.with_name(folder.name + "-cache")


def prompt_for(numbers: list[int]) -> str:
    """A prompt that names the concepts of these numbers."""
    return "a photo of " + " and ".join(f"tok{number} dog" for number in numbers)


def mixed_requests(registry: Registry, refs: list[str], count: int) -> list[Request]:
    """`count` requests of one to four concepts each, all different."""
    made = []
    for number in range(count):
        chosen = [(number * 5 + k) % len(refs) for k in range(1 + number % 4)]
        composition = registry.resolve(*(refs[each] for each in chosen))
        made.append(Request(prompt_for(chosen), composition=composition, seed=number))
    return made


@dataclass(frozen=True)
class Bench:
    """One model, one registry.

    at_scale: the model has the shapes that the targets are for. batch, steps, requests, repeats:
    how much of each phase. first: concept that `many` begins with, so that it can be measured in
    parts.
    """

    base: BaseModel
    folder: Path
    refs: list[str]
    at_scale: bool
    batch: int
    steps: int
    requests: int
    first: int
    repeats: int

    def open(self) -> Registry:
        """The registry, with no mask in memory yet."""
        return Registry.open(self.folder, read_only=True, cache=cache_of(self.folder))

    @property
    def text_rows(self) -> int:
        return int(self.base.tokenizers[0].model_max_length)

    def random_text(self, count: int) -> torch.Tensor:
        width = self.base.layer_table.layers[0].cols
        return torch.randn(count, self.text_rows, width).to(self.base.device, self.base.dtype)

    def noise(self, count: int) -> torch.Tensor:
        config = self.base.denoiser.config
        shape = count, config.in_channels, config.sample_size, config.sample_size
        return torch.randn(shape).to(self.base.device, self.base.dtype)
