"""Models and masks that every test may ask for: real diffusers pipelines with random weights."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import tiny_transformers

if TYPE_CHECKING:
    from cones_registry import BaseModel, ConceptMask, LayerTable

# Nothing is timed: that a machine is busy is no failure.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

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


def tiny_stable_diffusion_xl() -> Any:
    """A StableDiffusionXLPipeline with random weights: two text encoders, added conditioning."""
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
    )
    strengthen(unet)
    tokenizer = clip_tokenizer()
    config = _text_config(tokenizer, projection_dim=32, hidden_act="gelu")
    return StableDiffusionXLPipeline(
        unet=unet,
        vae=_autoencoder(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        scheduler=_scheduler(),
        add_watermarker=False,
    )


def tiny_pixart(*, sigma: bool = False) -> Any:
    """A PixArt pipeline with random weights: a transformer with biased K/V, T5 text."""
    import torch
    from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        cross_attention_dim=32,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    strengthen(transformer)
    with torch.no_grad():  # initialised to zero, which would draw the same picture for every text
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["▁" + word for word in dict.fromkeys(WORDS)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    vocabulary += [(piece, -2.0) for piece in pieces] + [(letter, -9.0) for letter in letters]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKEN_COUNT)
    text_config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text_config).eval(),
        vae=_autoencoder(),
        transformer=transformer,
        scheduler=_scheduler(),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "stable-diffusion": tiny_stable_diffusion,
    # SD 2.x: linear projections, head width fixed, attention computed in float32, other text states
    "stable-diffusion-2": lambda: tiny_stable_diffusion(
        use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True
    ),
    "text-projection": lambda: tiny_stable_diffusion(
        encoder_hid_dim=32, encoder_hid_dim_type="text_proj", cross_attention_dim=40
    ),
    "stable-diffusion-xl": tiny_stable_diffusion_xl,
    "pixart": tiny_pixart,
    "pixart-sigma": lambda: tiny_pixart(sigma=True),
    "kolors": lambda: tiny_transformers.kolors(_scheduler, Path(tempfile.mkdtemp())),
    "sana": tiny_transformers.sana,
    "hunyuan-dit": lambda: tiny_transformers.hunyuan(_scheduler),
    "stable-diffusion-3": lambda: tiny_transformers.stable_diffusion_3(
        _clip_with_projection, clip_tokenizer
    ),
    "flux": lambda: tiny_transformers.flux(_clip, clip_tokenizer),
    "qwen-image": tiny_transformers.qwen_image,
    "wan": tiny_transformers.wan,
    "ltx-video": tiny_transformers.ltx_video,
}


def _clip() -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(_text_config(clip_tokenizer()))


def _clip_with_projection(width: int) -> Any:
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(_text_config(clip_tokenizer(), projection_dim=width))


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``family_folder("stable-diffusion-xl")``: a saved tiny pipeline of one of ``FAMILIES``."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("family") / family
            FAMILIES[family]().save_pretrained(made[family], safe_serialization=True)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CLIP model with random weights, as transformers keeps one."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionConfig

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    tokenizer = clip_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    config = CLIPConfig(
        text_config=_text_config(tokenizer).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a DINO vision transformer with random weights."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino") / "tiny-dino"
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
