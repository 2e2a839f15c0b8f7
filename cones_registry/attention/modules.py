"""The attention modules of a denoiser that project its text, found by the layer table's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from cones_registry.errors import UsageError
from cones_registry.families import family_of, text_layers
from cones_registry.layers import LayerTable

if TYPE_CHECKING:
    from collections.abc import Iterator

# Processors that ask the module for K and V of the text once each, through the projections' own
# ``forward``, and do with them what no mask has to know of.
SERVABLE_PROCESSORS = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "FluxAttnProcessor",
    "HunyuanAttnProcessor2_0",
    "JointAttnProcessor2_0",
    "LTXVideoAttnProcessor",
    "QwenDoubleStreamAttnProcessor2_0",
    "SanaAttnProcessor2_0",
    "SlicedAttnProcessor",
    "WanAttnProcessor",
    "XFormersAttnProcessor",
)


@dataclass(frozen=True)
class TextAttention:
    """One attention block whose K and V project text.

    path: module path in the denoiser, ``down_blocks.0.attentions.0.transformer_blocks.0.attn2``.
    module: the diffusers attention module. key_name, value_name: its two weights' names in the
    layer table. text_first: its projections read the text's rows and then the picture's.
    """

    path: str
    module: Any
    key_name: str
    value_name: str
    text_first: bool = False

    @property
    def key(self) -> Any:
        """The linear layer that gives K of the text."""
        return self.module.get_submodule(_projection(self.key_name))

    @property
    def value(self) -> Any:
        """The linear layer that gives V of the text."""
        return self.module.get_submodule(_projection(self.value_name))

    @property
    def projections(self) -> tuple[tuple[str, Any], tuple[str, Any]]:
        """K's and V's name in the layer table, each with its linear layer."""
        return (self.key_name, self.key), (self.value_name, self.value)


def _projection(name: str) -> str:
    """``….attn2.to_k.weight`` -> ``to_k``."""
    return name.split(".")[-2]


_FOUND: WeakKeyDictionary[torch.nn.Module, tuple[LayerTable, tuple[TextAttention, ...]]] = (
    WeakKeyDictionary()
)


def original(unet: Any) -> Any:
    """The module behind ``torch.compile`` or behind a served model, else ``unet`` itself."""
    while True:
        inner = getattr(unet, "_orig_mod", None)
        if inner is None:
            return unet
        unet = inner


def _find(unet: Any) -> tuple[LayerTable, tuple[TextAttention, ...]]:
    module = original(unet)
    found = _FOUND.get(module)
    if found is None:
        table = LayerTable.from_unet(module)
        found = table, tuple(_blocks(module, table))
        _FOUND[module] = found
    return found


def _blocks(module: Any, table: LayerTable) -> Iterator[TextAttention]:
    names = set(table.names)
    layers = text_layers(type(module).__name__, table.names)
    for name in table.names:
        if table.layer(name).kind != "k":
            continue
        path, projection = name.removesuffix(".weight").rsplit(".", 1)
        other = f"{path}.{projection.replace('_k', '_v')}.weight"
        if other not in names:
            raise UsageError(
                f"layer table has {name!r} but not {other!r}. K and V of one block belong "
                "together; load the whole denoiser"
            )
        first = any(each.text_first for each in layers if each.kind_of(name))
        yield TextAttention(path, module.get_submodule(path), name, other, first)


def text_attentions(unet: Any) -> tuple[TextAttention, ...]:
    """The blocks of ``unet`` that project text, in the order of its layer table (found once)."""
    return _find(unet)[1]


def layer_table(unet: Any) -> LayerTable:
    """The layer table of ``unet``, computed once per module."""
    return _find(unet)[0]


def is_cached(unet: Any) -> bool:
    """Whether K and V of the text are known to depend on the text alone: they can be kept."""
    family = family_of(type(original(unet)).__name__)
    return family is not None and family.way == "cached"


def unservable_reason(unet: Any) -> str | None:
    """Why rows of K and V cannot be edited in this denoiser, or None if they can.

    What cannot be served can still be drawn with ``shut`` in place.
    """
    module = original(unet)
    kind = getattr(getattr(module, "config", None), "encoder_hid_dim_type", None)
    if kind not in (None, "text_proj"):
        return f"its text is joined with images (encoder_hid_dim_type {kind!r})"
    for block in text_attentions(module):
        reason = _block_reason(block)
        if reason is not None:
            return f"{block.path} {reason}"
    return None


def _block_reason(block: TextAttention) -> str | None:
    attention = block.module
    if block.path.endswith("attn2") and getattr(attention, "added_kv_proj_dim", None) is not None:
        return "joins text K/V with K/V of a picture"
    for _, layer in block.projections:
        if hasattr(layer, "base_layer"):
            return "has LoRA layers attached (undo with unload_lora_weights())"
        if getattr(layer, "weight", None) is None or not _is_stock(layer):
            return f"has no plain {_projection(block.key_name)} projection"
        if layer.weight.is_meta or "forward" in vars(layer):
            return "has its weights offloaded (use model offload, or none)"
    if getattr(attention, "fused_projections", False):
        return "has fused K/V projections (undo with unfuse_qkv_projections())"
    processor = getattr(attention, "processor", None)
    if type(processor).__name__ not in SERVABLE_PROCESSORS:
        return f"uses the attention processor {type(processor).__name__}"
    return None


def _is_stock(layer: Any) -> bool:
    """Whether this is torch's own linear layer, with or without edits: no quantised weights."""
    return type(layer) is torch.nn.Linear or type(layer).__name__ == "EditedProjection"
