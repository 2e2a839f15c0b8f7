"""All K/V weights of a base model as one vector, in the order of its layer table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cones_registry.attention import RowEdit, mask_weights

if TYPE_CHECKING:
    from cones_registry.attention.weights import WeightTransform
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction.settings import Projections
    from cones_registry.mask import ConceptMask


class FlatWeights:
    """θ: float32 [N], N neurons of the layer table, layers one after the other, row-major.

    projections: "k" or "v": only these layers follow a vector given to ``edit``, the others are the
    base model's own; "kv": all.
    """

    def __init__(self, base: BaseModel, projections: Projections = "kv") -> None:
        self.table = base.layer_table
        self._kinds = tuple(projections)
        unet = base.denoiser
        self.values = torch.cat(
            [unet.get_parameter(name).detach().float().flatten() for name in self.table.names]
        )
        self._sizes = [layer.neuron_count for layer in self.table.layers]

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Layer name -> [out, in] view of a vector [N]."""
        parts = flat.split(self._sizes)
        return {
            layer.name: part.view(layer.rows, layer.cols)
            for layer, part in zip(self.table.layers, parts, strict=True)
        }

    def edit(self, flat: torch.Tensor, rows: torch.Tensor | None) -> RowEdit:
        """``flat`` [N] for θ at ``rows`` (bool [B, T], None: all); differentiable in ``flat``."""
        layers = self.split(flat)
        kinds = {layer.name: layer.kind for layer in self.table.layers}

        def weights(name: str, weight: torch.Tensor) -> torch.Tensor:
            return layers[name].to(weight.dtype) if kinds[name] in self._kinds else weight

        return RowEdit(weights, rows)


def mask_edit(mask: ConceptMask, rows: torch.Tensor | None) -> RowEdit:
    """The row edit of a finished mask."""
    weights: WeightTransform = mask_weights(mask)
    return RowEdit(weights, rows)
