"""Layer tables of published architectures, on the meta device: shapes without weights."""

from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

from cones_registry.attention import text_attentions, unservable_reason
from cones_registry.layers import LayerTable

SD1: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD2: dict[str, Any] = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
PIXART: dict[str, Any] = {
    "sample_size": 64,
    "num_layers": 28,
    "attention_head_dim": 72,
    "num_attention_heads": 16,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "out_channels": 8,
}


@pytest.mark.parametrize(
    ("kind", "config", "layers", "neurons"),
    [
        (UNet2DConditionModel, SD1, 32, 19_169_280),
        (UNet2DConditionModel, SD2, 32, 25_559_040),
        (UNet2DConditionModel, SDXL, 140, 340_787_200),
        (PixArtTransformer2DModel, PIXART, 56, 74_317_824),
    ],
    ids=["sd-1", "sd-2", "sdxl", "pixart"],
)
def test_published_architectures_have_these_layers(
    kind: Any, config: dict[str, Any], layers: int, neurons: int
) -> None:
    with torch.device("meta"):
        model = kind(**config)
    table = LayerTable.from_unet(model)
    assert (len(table.layers), table.neuron_count) == (layers, neurons)
    assert max(layer.neuron_count for layer in table.layers) < 2**31
    blocks = text_attentions(model)
    assert [name for block in blocks for name in (block.key_name, block.value_name)] == list(
        table.names
    )
    assert unservable_reason(model) == f"{blocks[0].path} has its weights offloaded (" + (
        "use model offload, or none)"
    )
