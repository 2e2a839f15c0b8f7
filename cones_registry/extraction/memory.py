"""What memory learning a concept takes, told before minutes are spent on it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from cones_registry.errors import LimitExceededError
from cones_registry.extraction.recomputing import can_recompute, recomputing
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
        activations: what a batch takes for its gradient; None where it was not measured.
        recomputed: the same with activation checkpointing; None where the model has none, or it
            was not measured.
        free: what is free on the device now; None if the system does not say.
        dtype: what the base model computes in, ``"float32"``.
    """

    model: int
    vectors: int
    activations: int | None
    recomputed: int | None
    free: int | None
    dtype: str = "float32"

    @property
    def needed(self) -> int:
        """Bytes needed besides the base model, with everything kept for the gradient."""
        return self.vectors + (self.activations or 0)

    @property
    def least(self) -> int:
        """Bytes needed besides the base model, with activation checkpointing if there is any."""
        return self.vectors + min(self.activations or 0, self.recomputed or self.activations or 0)

    @property
    def fits(self) -> bool:
        """Whether there is room in one way or the other; also where the system does not say."""
        return self.free is None or self.least <= self.free

    @property
    def recompute(self) -> bool:
        """Whether there is room with activation checkpointing alone."""
        return self.fits and self.free is not None and self.needed > self.free

    def require(self) -> None:
        """Raise LimitExceededError where there is no room."""
        if not self.fits:
            lighter = (
                ", in bfloat16, which takes half (--dtype bfloat16)"
                if self.dtype == "float32"
                else ""
            )
            raise LimitExceededError(
                f"{self}. Learn on a device with more memory, at a smaller size (--size){lighter}, "
                "or with another base model"
            )

    def __str__(self) -> str:
        said = [f"base model {size(self.model)}", f"neurons {size(self.vectors)}"]
        if self.activations is not None:
            batch = f"a batch {size(self.activations)}"
            if self.recomputed is not None:
                batch += f" ({size(self.recomputed)} with activation checkpointing)"
            said.append(batch)
        free = "" if self.free is None else f"; {size(self.free)} are free"
        return f"learning takes {', '.join(said)}{free}"


def estimate(base: BaseModel, loss: ConceptImplantingLoss | None = None) -> MemoryEstimate:
    """Bytes that learning on ``base`` takes; with ``loss``, of its batches too (one forward)."""
    vectors = VECTORS * 4 * base.layer_table.neuron_count
    activations, recomputed = (None, None) if loss is None else _kept_for_gradient(base, loss)
    return MemoryEstimate(
        base.byte_count,
        vectors,
        activations,
        recomputed,
        _free(base.device),
        str(base.dtype).removeprefix("torch."),
    )


class _Kept:
    """Memory that would be kept for the gradient: bytes of each storage, once.

    Storages are known by weak references: they are let go, but none gets the place of another.
    """

    def __init__(self, apart: set[StorageWeakRef]) -> None:
        self._apart = apart
        self.sizes: dict[StorageWeakRef, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        known = StorageWeakRef(storage)
        if known not in self._apart:
            self.sizes[known] = storage.nbytes()

    def instead_of_keeping(self) -> AbstractContextManager[None]:
        """Tensors that are saved for the gradient while the block runs are added, and let go."""

        def unpack(_: Any) -> torch.Tensor:
            raise RuntimeError("nothing was kept for a gradient")

        hooks: AbstractContextManager[None] = torch.autograd.graph.saved_tensors_hooks(
            self.add, unpack
        )
        return hooks


def _kept_for_gradient(base: BaseModel, loss: ConceptImplantingLoss) -> tuple[int, int | None]:
    """Bytes that one batch takes until its gradient is there; nothing is kept in measuring.

    Returns what every operator keeps; and the inputs of blocks with what the largest block keeps,
    which is computed again. To both comes as much as the largest block keeps, for gradients on
    their way through it.
    """
    flat = loss.weights.values.detach().requires_grad_()
    apart = {StorageWeakRef(each.untyped_storage()) for each in (flat, *base.denoiser.parameters())}
    outside, inputs = _Kept(apart), _Kept(apart)
    blocks: list[_Kept] = []

    def run(block: Any, *given: Any, **named: Any) -> Any:
        inside = _Kept(apart)
        for each in tree_leaves((given, named)):
            if isinstance(each, torch.Tensor):
                inputs.add(each)
        with inside.instead_of_keeping():
            found = block(*given, **named)
        blocks.append(inside)
        return found

    with outside.instead_of_keeping():
        if not can_recompute(base.denoiser):
            loss.ahead(flat)
            return sum(outside.sizes.values()), None
        with recomputing(base.denoiser, run=run):
            loss.ahead(flat)
    every = dict(outside.sizes)
    for each in blocks:
        every |= each.sizes
    left = outside.sizes | inputs.sizes
    largest = max(
        (sum(each.sizes[one] for one in each.sizes.keys() - left.keys()) for each in blocks),
        default=0,
    )
    return sum(every.values()) + largest, sum(left.values()) + 2 * largest


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
