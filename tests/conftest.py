"""Models and masks that every test may ask for: real diffusers pipelines with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cones_registry import BaseModel, ConceptMask, LayerTable

TOKEN_COUNT = 24
WORDS = (
    (
        "a photo of the red green blue circle square star cross dog on wall left right "
        "teddy bear and sks v V1 V2"
    )
    .lower()
    .split()
)


def clip_tokenizer(words: tuple[str, ...] | list[str] = WORDS, length: int = TOKEN_COUNT) -> Any:
    """A real CLIP byte-pair tokenizer: whole words for ``words``, letters for everything else."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = {piece: number for number, piece in enumerate(letters)}
    for letter in letters:
        vocabulary[letter + "</w>"] = len(vocabulary)
    merges = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = (pieces[0], pieces[1])
            pieces[:2] = ["".join(merge)]
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault(pieces[0], len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def _text_config(tokenizer: Any, **changes: Any) -> Any:
    from transformers import CLIPTextConfig

    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKEN_COUNT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**(settings | changes))


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
    )


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def tiny_stable_diffusion(**unet_settings: Any) -> Any:
    """A StableDiffusionPipeline with random weights that answer strongly to their text."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    settings = {
        "block_out_channels": (16, 32),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(**(settings | unet_settings))
    strengthen(unet)
    return StableDiffusionPipeline(
        unet=unet,
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        tokenizer=tokenizer,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def strengthen(denoiser: Any, factor: float = 12.0) -> None:
    """Scale V so that pictures of a random model depend visibly on the prompt and on masks."""
    import torch

    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                parameter.mul_(factor)


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a randomly initialised StableDiffusionPipeline, safetensors, 24 text rows."""
    folder = tmp_path_factory.mktemp("base") / "tiny-stable-diffusion"
    tiny_stable_diffusion().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def tiny_base(tiny_pipeline_folder: Path) -> "BaseModel":
    """The tiny Stable Diffusion as a BaseModel on the CPU (cached: one for the process)."""
    from cones_registry.base_model import BaseModel

    return BaseModel.load(tiny_pipeline_folder, device="cpu")


@pytest.fixture
def random_mask() -> Callable[..., "ConceptMask"]:
    """``random_mask(table, seed=0, density=0.3)``: a mask over all layers of a table."""

    def make(table: "LayerTable", *, seed: int = 0, density: float = 0.3) -> "ConceptMask":
        import numpy as np

        from cones_registry.mask import ConceptMask

        generator = np.random.default_rng(seed)
        return ConceptMask.from_indices(
            table,
            {
                layer.name: np.flatnonzero(
                    generator.random(layer.rows * layer.cols) < density
                ).astype(np.int32)
                for layer in table.layers
            },
        )

    return make
