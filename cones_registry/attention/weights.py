"""Weights under a mask: the one place where a factor meets a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cones_registry.attention.modules import layer_table
from cones_registry.attention.rows import WeightTransform
from cones_registry.errors import BaseModelMismatchError

if TYPE_CHECKING:
    from cones_registry.mask import ConceptMask


def check_table(unet: Any, mask: ConceptMask) -> None:
    """Raise BaseModelMismatchError unless ``mask`` indexes into the layers of ``unet``."""
    table = layer_table(unet)
    if mask.table.digest != table.digest:
        raise BaseModelMismatchError(
            f"mask {mask.digest} indexes into layer table {mask.table.digest} "
            f"({len(mask.table.layers)} layers, {mask.table.neuron_count} neurons), this model's "
            f"is {table.digest} ({len(table.layers)} layers, {table.neuron_count} neurons). "
            "Load the base model the concept was made for"
        )


def masked_weight(mask: ConceptMask, name: str, weight: torch.Tensor) -> torch.Tensor:
    """W ∘ M of one layer, [out, in], in the dtype and on the device of ``weight``.

    A layer without members gives ``weight`` itself.
    """
    if mask.count(name) == 0:
        return weight
    if mask.factors is None and weight.device.type != "cpu":
        return weight.masked_fill(_members_on(mask, name, weight.device), 0)
    multiplier = torch.from_numpy(mask.multiplier(name))
    return weight * multiplier.to(device=weight.device, dtype=weight.dtype)


def _members_on(mask: ConceptMask, name: str, device: torch.device) -> torch.Tensor:
    """Members of one layer as bool [out, in], unpacked on the device: 1 bit a neuron is sent."""
    layer = mask.table.layer(name)
    octets = torch.from_numpy(mask.layer_words(name).view("uint8").copy()).to(device)
    bits = octets[:, None] >> torch.arange(8, dtype=torch.uint8, device=device) & 1
    return bits.flatten()[: layer.neuron_count].view(layer.rows, layer.cols).bool()


def mask_weights(mask: ConceptMask) -> WeightTransform:
    """The ``weights`` of a ``RowEdit`` for one mask."""

    def weights(name: str, weight: torch.Tensor) -> torch.Tensor:
        return masked_weight(mask, name, weight)

    return weights
