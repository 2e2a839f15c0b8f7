"""Weights under a mask: the one place where a factor meets a weight."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import linear

from cones_registry.attention.modules import layer_table
from cones_registry.errors import BaseModelMismatchError

if TYPE_CHECKING:
    from cones_registry.mask import ConceptMask

WeightTransform = Callable[[str, torch.Tensor], torch.Tensor]

# Measured at SD 1.x shapes on one core, for 4 and for 77 rows: below this share of members a
# product with the members alone is cheaper than one with the whole W ∘ M, above it is not. In
# layers smaller than this the fixed cost of a sparse product is more than all of the other. Where
# the plain rows would have to be made first, the whole is cheaper at every share.
SPARSE_DENSITY: Final = 0.025
SPARSE_NEURONS: Final = 1 << 16

_SCRATCH = threading.local()


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
        octets = torch.from_numpy(mask.layer_words(name).view("uint8").copy()).to(weight.device)
        return weight.masked_fill(_unpacked(octets, weight), 0)
    multiplier = torch.from_numpy(mask.multiplier(name))
    return weight * multiplier.to(device=weight.device, dtype=weight.dtype)


@dataclass(frozen=True)
class MaskedWeights:
    """The ``weights`` of a ``RowEdit`` for one mask: W ∘ M.

    Called, it makes that weight. ``project`` gives the rows without making it, where that is
    cheaper. Nothing is kept of it but, on an accelerator, one bit per neuron: where the text
    changes at every step the weight is made again at every step.
    """

    mask: ConceptMask
    _octets: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """W ∘ M of the layer called ``name``, [out, in]."""
        return masked_weight(self.mask, name, weight)

    def project(
        self,
        name: str,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        inputs: torch.Tensor,
        plain: torch.Tensor | None,
    ) -> torch.Tensor:
        """K or V under the mask, [n, out], of inputs [n, in]; not differentiable.

        weight, bias: of the layer called ``name``. plain: its own output for these inputs, if
        known.
        """
        weight, count = weight.detach(), self.mask.count(name)
        if count == 0:
            return linear(inputs, weight, bias) if plain is None else plain
        if weight.device.type != "cpu" and self.mask.factors is None:
            return linear(inputs, weight.masked_fill(self._members_on(name, weight), 0), bias)
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return linear(inputs, masked_weight(self.mask, name, weight), bias)
        sparse = count <= SPARSE_DENSITY * weight.numel() and weight.numel() >= SPARSE_NEURONS
        if plain is not None and sparse and _sparse_products():
            return plain + (_change(self.mask, name, weight) @ inputs.T).T
        return linear(inputs, _in_scratch(self.mask, name, weight), bias)

    def _members_on(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Members of one layer as bool [out, in] on the weight's device; its bits are sent once."""
        octets = self._octets.get(name)
        if octets is None or octets.device != weight.device:
            words = self.mask.layer_words(name).view("uint8")
            octets = self._octets[name] = torch.from_numpy(words.copy()).to(weight.device)
        return _unpacked(octets, weight)


def _unpacked(octets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Bits, LSB first, as bool of the shape of ``weight``."""
    bits = octets[:, None] >> torch.arange(8, dtype=torch.uint8, device=octets.device) & 1
    return bits.flatten()[: weight.numel()].view(weight.shape).bool()


def mask_weights(mask: ConceptMask) -> MaskedWeights:
    """The ``weights`` of a ``RowEdit`` for one mask."""
    return MaskedWeights(mask)


def _change(mask: ConceptMask, name: str, weight: torch.Tensor) -> torch.Tensor:
    """W ∘ (M − 1), which is 0 but at the members: sparse rows (CSR) [out, in]."""
    rows, cols = weight.shape
    members = mask.indices(name)
    row_of = members // np.int32(cols)
    col_of = members - row_of * np.int32(cols)  # quicker than a second division
    starts = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(np.bincount(row_of, minlength=rows), out=starts[1:])
    change = weight.reshape(-1).index_select(0, torch.from_numpy(members))
    if mask.factors is None:
        change.neg_()
    else:
        change *= torch.from_numpy(mask.layer_factors(name).astype(np.float32)) - 1
    return torch.sparse_csr_tensor(
        torch.from_numpy(starts),
        torch.from_numpy(col_of),
        change,
        (rows, cols),
        check_invariants=False,
    )


def _in_scratch(mask: ConceptMask, name: str, weight: torch.Tensor) -> torch.Tensor:
    """W ∘ M in memory of this thread that the next call overwrites: no page is touched anew."""
    source = weight.reshape(-1).numpy()
    masked = _scratch(source.size)
    if mask.factors is None:
        kept = np.logical_not(mask.to_dense(name)).reshape(-1)
        np.multiply(source, kept, out=masked)
    else:
        np.copyto(masked, source)
        masked[mask.indices(name)] *= mask.layer_factors(name)
    return torch.from_numpy(masked).view(weight.shape)


def _scratch(size: int) -> npt.NDArray[np.float32]:
    held: npt.NDArray[np.float32] | None = getattr(_SCRATCH, "memory", None)
    if held is None or held.size < size:
        held = _SCRATCH.memory = np.empty(size, dtype=np.float32)
    return held[:size]


@cache
def _sparse_products() -> bool:
    """Whether this build of torch multiplies sparse rows on the CPU (it does with MKL)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in beta", said once a process
        try:
            one = torch.sparse_csr_tensor(
                torch.tensor([0, 1], dtype=torch.int32),
                torch.tensor([0], dtype=torch.int32),
                torch.ones(1),
                (1, 1),
                check_invariants=False,
            )
            return bool((one @ torch.ones(1, 1)).item() == 1)
        except RuntimeError:
            return False
