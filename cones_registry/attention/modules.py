"""The cross-attention modules of a denoiser, found by the layer table's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from cones_registry.errors import UsageError
from cones_registry.layers import LayerTable

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY_SUFFIX = ".to_k.weight"
_VALUE_SUFFIX = ".to_v.weight"
# Processors that ask the module for K and V exactly once each and do nothing else with the text.
SERVABLE_PROCESSORS = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)


@dataclass(frozen=True)
class CrossAttention:
    """One cross-attention block.

    path: module path in the denoiser, ``down_blocks.0.attentions.0.transformer_blocks.0.attn2``.
    module: the diffusers ``Attention``; ``to_k`` and ``to_v`` are its projections.
    """

    path: str
    module: Any

    @property
    def key_name(self) -> str:
        """Name of the K weight in the layer table."""
        return self.path + _KEY_SUFFIX

    @property
    def value_name(self) -> str:
        """Name of the V weight in the layer table."""
        return self.path + _VALUE_SUFFIX


_FOUND: WeakKeyDictionary[torch.nn.Module, tuple[LayerTable, tuple[CrossAttention, ...]]] = (
    WeakKeyDictionary()
)


def original(unet: Any) -> Any:
    """The module behind ``torch.compile`` or behind a served model, else ``unet`` itself."""
    while True:
        inner = getattr(unet, "_orig_mod", None)
        if inner is None:
            return unet
        unet = inner


def _find(unet: Any) -> tuple[LayerTable, tuple[CrossAttention, ...]]:
    module = original(unet)
    found = _FOUND.get(module)
    if found is None:
        table = LayerTable.from_unet(module)
        found = table, tuple(_blocks(module, table))
        _FOUND[module] = found
    return found


def _blocks(module: Any, table: LayerTable) -> Iterator[CrossAttention]:
    names = set(table.names)
    for name in table.names:
        if not name.endswith(_KEY_SUFFIX):
            continue
        path = name.removesuffix(_KEY_SUFFIX)
        if path + _VALUE_SUFFIX not in names:
            raise UsageError(
                f"layer table has {name!r} but not {path + _VALUE_SUFFIX!r}. K and V of one block "
                "belong together; load the whole denoiser"
            )
        yield CrossAttention(path, module.get_submodule(path))


def cross_attentions(unet: Any) -> tuple[CrossAttention, ...]:
    """The cross-attention blocks of ``unet`` in the order of its layer table (found once)."""
    return _find(unet)[1]


def layer_table(unet: Any) -> LayerTable:
    """The layer table of ``unet``, computed once per module."""
    return _find(unet)[0]


def unservable_reason(unet: Any) -> str | None:
    """Why K and V of this denoiser cannot be computed ahead and served, or None if they can.

    What cannot be served can still be drawn with ``shut`` in place.
    """
    module = original(unet)
    kind = getattr(getattr(module, "config", None), "encoder_hid_dim_type", None)
    if kind not in (None, "text_proj"):
        return f"its text is joined with images (encoder_hid_dim_type {kind!r})"
    for block in cross_attentions(module):
        if getattr(block.module, "added_kv_proj_dim", None) is not None:
            return f"{block.path} joins text K/V with K/V of the picture"
        if hasattr(getattr(block.module, "to_k", None), "base_layer"):
            return f"{block.path} has LoRA layers attached (undo with unload_lora_weights())"
        if not hasattr(block.module, "to_k") or getattr(block.module.to_k, "weight", None) is None:
            return f"{block.path} has no plain to_k projection"
        if block.module.to_k.weight.is_meta:
            return f"{block.path} has its weights offloaded (use model offload, or none)"
        if getattr(block.module, "fused_projections", False):
            return f"{block.path} has fused K/V projections (undo with unfuse_qkv_projections())"
        processor = getattr(block.module, "processor", None)
        processor = getattr(processor, "served_by_cones", processor)
        if type(processor).__name__ not in SERVABLE_PROCESSORS:
            return f"{block.path} uses the attention processor {type(processor).__name__}"
    return None
