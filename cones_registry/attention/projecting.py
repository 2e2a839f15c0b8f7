"""Projections that use other weights at some rows, and the callable that says which.

The K and V projections of the text are the only modules that learn of masks: each becomes an
``EditedProjection``, a linear layer that asks, when it is called, whether edits act on this thread.
Whatever the attention processor does with K and V afterwards (norms, rotary embeddings, masks,
grouped heads, joint attention) is its own affair, so one mechanism serves every model.

Nothing is kept in the model: edits act while an ``EditedModel`` is called, on its thread alone. A
compiled model sees one opaque operator per projection, so another mix of masks is no other graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from cones_registry.attention.modules import (
    original,
    text_attentions,
    unservable_reason,
)
from cones_registry.attention.rows import RowEdit, RowEdits
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.attention.modules import TextAttention

_INSTALL = threading.Lock()


class _Acting(threading.local):
    """The edits that act on this thread now."""

    edits: RowEdits | None = None


_ACTING = _Acting()


class EditedProjection(torch.nn.Linear):
    """A stock linear layer whose output follows the edits that act on this thread, if any.

    cones_name: its weight's name in the layer table. cones_text_first: text rows stand first in
    what it reads, other rows behind them; else it reads text alone.
    """

    cones_name: str
    cones_text_first: bool

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """K or V of ``input`` [B, S, in]: [B, S, out]."""
        if torch.compiler.is_compiling() and not _needs_gradient(input, self.weight):
            projected: torch.Tensor = torch.ops.cones_registry.project(
                input, self.weight, self.bias, self.cones_name, self.cones_text_first
            )
            return projected
        edits = _ACTING.edits
        if edits is None:
            return linear(input, self.weight, self.bias)
        return edits.project(
            input, self.weight, self.bias, self.cones_name, text_first=self.cones_text_first
        )


def _needs_gradient(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad)


# What it gives depends on the thread it runs on, so a recorded CUDA graph must not replay it.
@torch.library.custom_op(
    "cones_registry::project", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _project(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    name: str,
    text_first: bool,
) -> torch.Tensor:
    edits = _ACTING.edits
    if edits is None:
        return linear(inputs, weight, bias)
    projected = edits.project(inputs, weight, bias, name, text_first=text_first)
    # A compiled graph may write into what it was given; what is kept must stay as it is.
    return projected.clone() if edits.once else projected


@_project.register_fake
def _(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    name: str,
    text_first: bool,
) -> torch.Tensor:
    return inputs.new_empty((*inputs.shape[:-1], weight.shape[0]))


def install(denoiser: Any) -> None:
    """Make the text projections of ``denoiser`` follow edits; done once, weights stay where they
    are.

    Raises UsageError if the model cannot be served; the message says why.
    """
    module = original(denoiser)
    blocks = text_attentions(module)
    if all(_installed(block) for block in blocks):
        return
    _require_servable(module)
    with _INSTALL:
        for block in blocks:
            for name, layer in block.projections:
                layer.cones_name = name
                layer.cones_text_first = block.text_first
                layer.__class__ = EditedProjection


@contextmanager
def installed(denoiser: Any) -> Iterator[None]:
    """The text projections of ``denoiser`` follow edits while the block runs.

    On leaving they are what they were before: stock layers, unless edits were installed for good.
    """
    layers = [
        layer for block in text_attentions(original(denoiser)) for _, layer in block.projections
    ]
    before = [(layer, type(layer)) for layer in layers if type(layer) is not EditedProjection]
    install(denoiser)
    try:
        yield
    finally:
        for layer, kind in before:
            layer.__class__ = kind
            del layer.cones_name, layer.cones_text_first


def _installed(block: TextAttention) -> bool:
    return all(type(layer) is EditedProjection for _, layer in block.projections)


def _require_servable(module: Any) -> None:
    reason = unservable_reason(module)
    if reason is not None:
        raise UsageError(
            f"cannot edit K/V rows of this {type(module).__name__}: {reason}. "
            "Use `with shut(denoiser, mask):` around the pipeline instead"
        )


@contextmanager
def acting(edits: RowEdits | None) -> Iterator[None]:
    """Edits act on this thread while the block runs; those of before act again afterwards."""
    before, _ACTING.edits = _ACTING.edits, edits
    try:
        yield
    finally:
        _ACTING.edits = before


def acting_edits() -> RowEdits | None:
    """The edits that act on this thread now: for a part of a call that runs on another thread."""
    return _ACTING.edits


class EditedModel:
    """A denoiser that uses other weights at some rows; called, and otherwise, like it."""

    def __init__(self, denoiser: Any, edits: RowEdits) -> None:
        self._denoiser = denoiser
        self.edits = edits

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        install(self._denoiser)
        text = kwargs.get("encoder_hidden_states")
        if isinstance(text, torch.Tensor) and text.ndim == 3:
            self.edits.text_length = text.shape[1]
        with acting(self.edits):
            return self._denoiser(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


def edited(denoiser: Any, edits: Sequence[RowEdit] = (), *, once: bool = False) -> EditedModel:
    """A callable like ``denoiser`` whose K and V of the text use other weights at the edited rows.

    edits: see ``RowEdit``; rows of no edit keep the bits of the plain model.
    once: K and V are computed at the first call and kept for the next ones. Only for models in
        which they depend on the text alone, and for calls with one text.
    Differentiable with respect to whatever the edits' weights depend on. Raises UsageError if the
    model cannot be served; a call raises it if rows do not fit the text.
    """
    _require_servable(original(denoiser))
    install(denoiser)
    return EditedModel(denoiser, RowEdits(edits, once=once))


def project_text(
    denoiser: Any, states: torch.Tensor, edits: Sequence[RowEdit] = ()
) -> dict[str, torch.Tensor]:
    """K and V of every layer, for measuring: layer name -> [B, T, out].

    states: [B, T, D], what the layers read: for a U-Net without a text projection of its own, the
    ``encoder_hidden_states``.
    """
    install(denoiser)
    rows, found = RowEdits(edits), dict[str, torch.Tensor]()
    with acting(rows):
        for block in text_attentions(denoiser):
            for name, layer in block.projections:
                found[name] = layer(states)
    return found
