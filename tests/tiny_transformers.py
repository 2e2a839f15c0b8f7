"""Pipelines of the families that are transformers, with random weights and tiny vocabularies.

Every part is the family's own class from diffusers or transformers; nothing comes from a hub.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

with contextlib.suppress(ModuleNotFoundError):  # the storage side's tests run without it
    import torch

WORDS = (
    *("a", "photo", "of", "the", "red", "green", "blue", "circle", "square", "star", "dog", "on"),
    *("wall", "left", "and", "sks", "user", "prompt"),
)
LETTERS = tuple(chr(code) for code in range(33, 127) if not chr(code).isupper())


def t5_tokenizer(length: int = 24) -> Any:
    from transformers import T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    vocabulary += [("▁" + word, -2.0) for word in WORDS] + [(each, -9.0) for each in LETTERS]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def t5_encoder(tokenizer: Any, width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config).eval()


def pairs(first: Sequence[str], start: str, specials: Sequence[str]) -> tuple[Any, Any]:
    """Vocabulary and merges of byte pairs: whole ``WORDS`` behind ``start``, letters else."""
    vocabulary = {piece: number for number, piece in enumerate([*specials, *first])}
    merges = []
    for word in WORDS:
        for begun in ((start, *word), tuple(word)):
            pieces = list(begun)
            while len(pieces) > 1:
                merge = (pieces[0], pieces[1])
                pieces[:2] = ["".join(merge)]
                vocabulary.setdefault(pieces[0], len(vocabulary))
                if merge not in merges:
                    merges.append(merge)
    return vocabulary, merges


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    capitals = [letter.upper() for letter in LETTERS if letter.isalpha()]
    vocabulary, merges = pairs(
        [*LETTERS, *capitals, "▁", "\n"], "▁", ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    )
    return GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=2048)


def qwen_tokenizer() -> Any:
    from transformers import Qwen2Tokenizer

    capitals = [letter.upper() for letter in LETTERS if letter.isalpha()]
    vocabulary, merges = pairs([*LETTERS, *capitals, "Ġ", "Ċ"], "Ġ", ["<|endoftext|>"])
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=2048)
    marks = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def autoencoder(channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        sample_size=16,
        **more,
    )


def strengthen(transformer: Any, factor: float = 8.0) -> None:
    """Scale V of the text, and outputs that start at zero, so that pictures depend on masks."""
    from cones_registry.layers import LayerTable

    with torch.no_grad():
        for layer in LayerTable.from_unet(transformer):
            if layer.kind == "v":
                transformer.get_parameter(layer.name).mul_(factor)
        for _, parameter in transformer.named_parameters():
            if not parameter.any() and parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)


def flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def sana() -> Any:
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
    )
    strengthen(transformer)
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    tokenizer = gemma_tokenizer()
    text = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_implementation="eager",
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text).eval(),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


def hunyuan(clip_scheduler: Callable[[], Any]) -> Any:
    from diffusers import HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=4,
        hidden_size=16,
        activation_fn="gelu-approximate",
    )
    strengthen(transformer)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, *WORDS, *LETTERS, *("##" + letter for letter in LETTERS)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    bert = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
    )
    tokenizer_2 = t5_tokenizer(256)
    return HunyuanDiTPipeline(
        tokenizer=BertTokenizer(vocab=vocabulary, model_max_length=77),
        text_encoder=BertModel(bert).eval(),
        tokenizer_2=tokenizer_2,
        text_encoder_2=t5_encoder(tokenizer_2, 16),
        vae=autoencoder(),
        transformer=transformer,
        scheduler=clip_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3(clip: Callable[..., Any], tokenizer: Callable[[], Any]) -> Any:
    """clip: makes a CLIP text encoder with a projection of so many dimensions."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=16,
        pooled_projection_dim=64,
        out_channels=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    strengthen(transformer)
    tokenizer_3 = t5_tokenizer()
    return StableDiffusion3Pipeline(
        tokenizer=tokenizer(),
        text_encoder=clip(32),
        tokenizer_2=tokenizer(),
        text_encoder_2=clip(32),
        tokenizer_3=tokenizer_3,
        text_encoder_3=t5_encoder(tokenizer_3, 64),
        vae=autoencoder(shift_factor=0.0609, scaling_factor=1.5035),
        transformer=transformer,
        scheduler=flow(),
    )


def flux(clip: Callable[[], Any], tokenizer: Callable[[], Any]) -> Any:
    """clip: makes a CLIP text encoder, 32 wide."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    strengthen(transformer)
    tokenizer_2 = t5_tokenizer()
    return FluxPipeline(
        tokenizer=tokenizer(),
        text_encoder=clip(),
        tokenizer_2=tokenizer_2,
        text_encoder_2=t5_encoder(tokenizer_2),
        vae=autoencoder(shift_factor=0.0609, scaling_factor=1.5035),
        transformer=transformer,
        scheduler=flow(),
    )


def qwen_image() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    strengthen(transformer)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1] * 4,
        latents_std=[1.2] * 4,
    )
    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "mrope_section": [1, 1, 2],
                "rope_type": "default",
                "type": "default",
                "rope_theta": 1000000.0,
            },
            "max_position_embeddings": 2048,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def kolors(scheduler: Callable[[], Any], folder: Path) -> Any:
    """folder: where the vocabulary is written, which its tokenizer reads from a file."""
    import sentencepiece
    from diffusers import KolorsPipeline, UNet2DConditionModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    torch.manual_seed(0)
    lines = [" ".join(WORDS[number:] + WORDS[:number]) for number in range(len(WORDS))]
    vocabulary = folder / "tokenizer.model"
    with vocabulary.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*lines, *(" ".join(LETTERS) for _ in range(3))]),
            model_writer=file,
            vocab_size=140,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    tokenizer = ChatGLMTokenizer(str(vocabulary))
    text = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=256,
        hidden_size=32,
        ffn_hidden_size=37,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=256,
        multi_query_group_num=2,
        multi_query_attention=True,
        add_qkv_bias=True,
        rmsnorm=True,
        layernorm_epsilon=1e-5,
        original_rope=True,
    )
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
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        cross_attention_dim=16,
    )
    strengthen(unet)
    encoder = ChatGLMModel(text).eval()
    with torch.no_grad():  # its memory is whatever was there
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return KolorsPipeline(
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=False,
    )


def wan() -> Any:
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )
    strengthen(transformer)
    tokenizer = t5_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1] * 4,
            latents_std=[1.2] * 4,
        ),
        transformer=transformer,
        scheduler=flow(),
    )


def ltx_video() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=32,
    )
    strengthen(transformer)
    tokenizer = t5_tokenizer()
    return LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=AutoencoderKLLTXVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        transformer=transformer,
        scheduler=flow(),
    )
