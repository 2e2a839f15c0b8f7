"""Activation checkpointing: what a block computed is computed again for the gradient, not kept.

Source: Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch.utils.checkpoint import checkpoint

from cones_registry.attention.modules import original
from cones_registry.attention.projecting import acting, acting_edits

if TYPE_CHECKING:
    import torch

RunBlock = Callable[..., Any]
"""What diffusers calls in place of a block: ``(block, *its arguments) -> what the block gives``."""


def can_recompute(denoiser: Any) -> bool:
    """Whether the model's class has activation checkpointing."""
    return bool(getattr(original(denoiser), "_supports_gradient_checkpointing", False))


@contextmanager
def recomputing(denoiser: Any, *, run: RunBlock | None = None) -> Iterator[None]:
    """Blocks of ``denoiser`` keep their inputs alone while this block runs.

    Calls without gradients, as other threads draw, are what they always are. Several threads may
    be inside at once; the model is put back as it was when the last one leaves.

    Args:
        denoiser: of a class for which ``can_recompute`` is true.
        run: calls a block instead; by default one that computes it again for the gradient, with
            the K/V rows that were edited the first time.
    """
    module = original(denoiser)
    with _LOCK:
        users = _USERS.setdefault(module, _Users())
        if not users.count:
            users.before = [
                (part, part.gradient_checkpointing, getattr(part, _RUN, None))
                for part in module.modules()
                if hasattr(part, "gradient_checkpointing")
            ]
            for part, _, _ in users.before:
                part.gradient_checkpointing = True
                setattr(part, _RUN, _run_block)
        users.count += 1
    chosen, _CHOSEN.run = _CHOSEN.run, run or _again_for_the_gradient
    try:
        yield
    finally:
        _CHOSEN.run = chosen
        with _LOCK:
            users.count -= 1
            if not users.count:
                for part, flag, function in users.before:
                    part.gradient_checkpointing = flag
                    setattr(part, _RUN, function)
                del _USERS[module]


_RUN = "_gradient_checkpointing_func"
_LOCK = threading.Lock()


@dataclass
class _Users:
    """How many threads learn with checkpointing, and what the model was like before the first."""

    count: int = 0
    before: list[tuple[Any, bool, Any]] = field(default_factory=list)


_USERS: WeakKeyDictionary[torch.nn.Module, _Users] = WeakKeyDictionary()


class _Chosen(threading.local):
    """How this thread runs a block; None: plainly, as where another thread is inside alone."""

    run: RunBlock | None = None


_CHOSEN = _Chosen()


def _run_block(block: Any, *inputs: Any, **named: Any) -> Any:
    return block(*inputs, **named) if _CHOSEN.run is None else _CHOSEN.run(block, *inputs, **named)


def _again_for_the_gradient(block: Any, *inputs: Any, **named: Any) -> Any:
    """The gradient may be computed later, on another thread: edits are taken there."""
    edits = acting_edits()

    def run(*given: Any, **also: Any) -> Any:
        with acting(edits):
            return block(*given, **also)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False, **named)
