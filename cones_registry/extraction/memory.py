"""What memory learning a concept takes, told before minutes are spent on it."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from cones_registry.errors import LimitExceededError
from cones_registry.quantities import size

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.extraction.loss import ConceptImplantingLoss

VECTORS: Final = 7
"""Float32 numbers per neuron that the methods hold at once, at most: θ, what is learnt and its
running mean, the gradient, the weights of this step, and two on the way."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that learning takes on the base model's device.

    Attributes:
        model: the base model, which is there already.
        vectors: numbers per neuron; see ``VECTORS``.
        activations: what a batch keeps for the gradient; None where it was not measured.
        free: what is free on the device now; None if the system does not say.
    """

    model: int
    vectors: int
    activations: int | None
    free: int | None

    @property
    def needed(self) -> int:
        """Bytes needed besides the base model."""
        return self.vectors + (self.activations or 0)

    @property
    def fits(self) -> bool:
        """Whether there is room; also where the system does not say."""
        return self.free is None or self.needed <= self.free

    def require(self) -> None:
        """Raise LimitExceededError where there is no room."""
        if not self.fits:
            raise LimitExceededError(
                f"{self}. Learn on a device with more memory, at a smaller size (--size), or with "
                "another base model"
            )

    def __str__(self) -> str:
        said = [f"base model {size(self.model)}", f"neurons {size(self.vectors)}"]
        if self.activations is not None:
            said.append(f"a batch {size(self.activations)}")
        free = "" if self.free is None else f"; {size(self.free)} are free"
        return f"learning takes {', '.join(said)}{free}"


def estimate(base: BaseModel, loss: ConceptImplantingLoss | None = None) -> MemoryEstimate:
    """Bytes that learning on ``base`` takes; with ``loss``, of its batches too (one forward)."""
    vectors = VECTORS * 4 * base.layer_table.neuron_count
    activations = None if loss is None else _kept_for_gradient(base, loss)
    return MemoryEstimate(base.byte_count, vectors, activations, _free(base.device))


def _kept_for_gradient(base: BaseModel, loss: ConceptImplantingLoss) -> int:
    """Bytes that one batch keeps until its gradient is there; nothing is kept in measuring."""
    own = {each.untyped_storage().data_ptr() for each in base.denoiser.parameters()}
    recent: deque[torch.Tensor] = deque(maxlen=32)  # so that their memory is not used anew
    total = 0

    def pack(tensor: torch.Tensor) -> None:
        nonlocal total
        place = tensor.untyped_storage().data_ptr()
        if place not in own and all(each.untyped_storage().data_ptr() != place for each in recent):
            total += tensor.untyped_storage().nbytes()
            recent.append(tensor.detach())

    def unpack(_: Any) -> torch.Tensor:
        raise RuntimeError("nothing was kept for a gradient")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss(loss.weights.values.detach().requires_grad_())
    return total


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return None
