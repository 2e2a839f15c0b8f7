"""A pipeline of one's own around a shared base model: what one call may change is copied."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.attention import EditedModel, RowEdit, is_cached, plan_rows
from cones_registry.attention.rows import RowEdits
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.generation.parts import Branches


class PlannedModel:
    """A denoiser that plans which rows of a text are masked when it first sees that text.

    The stock pipeline calls it like the denoiser. With classifier-free guidance the text comes as
    [unconditional…, conditional…], or as one call for each, which the pipeline announces by
    ``cache_context``; without, conditional alone.
    """

    def __init__(self, denoiser: Any, requests: Sequence[Branches]) -> None:
        self._denoiser = denoiser
        self._requests = requests
        self._once = is_cached(denoiser)
        self._branch = "cond"
        self._planned: dict[str, tuple[torch.Tensor, int, EditedModel]] = {}

    def __call__(self, *args: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        text = encoder_hidden_states
        # A callback may write into the text between two steps; inference tensors do not count that.
        version = -1 if text.is_inference() else text._version
        seen, seen_version, model = self._planned.get(self._branch, (None, -1, None))
        if model is None or seen is not text or version != seen_version:
            edits = RowEdits(self._edits(text, kwargs), once=self._once)
            model = EditedModel(self._denoiser, edits)
            self._planned[self._branch] = text, version, model
        return model(*args, encoder_hidden_states=text, **kwargs)

    @contextmanager
    def cache_context(self, name: str, **rest: Any) -> Iterator[None]:
        """The denoiser's own; its name tells which branch of guidance the pipeline calls next."""
        before, self._branch = self._branch, name
        try:
            with self._denoiser.cache_context(name, **rest):
                yield
        finally:
            self._branch = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def _edits(self, text: torch.Tensor, kwargs: dict[str, Any]) -> list[RowEdit]:
        conditional = [request.conditional for request in self._requests]
        unconditional = [request.unconditional for request in self._requests]
        alone = unconditional if self._branch == "uncond" else conditional
        entries = {1: alone, 2: unconditional + conditional}.get(
            text.shape[0] // len(conditional), []
        )
        if len(entries) != text.shape[0]:
            raise UsageError(
                f"the pipeline gave text for {text.shape[0]} pictures where {len(conditional)} "
                "requests, or twice as many with guidance, were expected"
            )
        return plan_rows(entries, _row_count(text, kwargs))


def _row_count(text: torch.Tensor, kwargs: dict[str, Any]) -> int:
    """Rows T of the text that the denoiser reads; Hunyuan-DiT puts T5's behind the first ones."""
    second = kwargs.get("encoder_hidden_states_t5")
    return int(text.shape[1] + (0 if second is None else second.shape[1]))


class LockedTokenizer:
    """A tokenizer that one thread uses at a time: padding and truncation are state inside it."""

    def __init__(self, tokenizer: Any, lock: threading.RLock) -> None:
        self._tokenizer = tokenizer
        self._lock = lock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tokenizer, name)
        return _locked(value, self._lock) if callable(value) else value


def _locked(call: Callable[..., Any], lock: threading.RLock) -> Callable[..., Any]:
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return call(*args, **kwargs)

    return locked


def pipeline_view(base: BaseModel, denoiser: Any, scheduler: Any, *, progress: bool) -> Any:
    """A shallow copy of the base's pipeline with a denoiser and a scheduler of its own.

    Weights are shared; what a stock pipeline writes while it draws (guidance, timesteps,
    scheduler state) is the copy's own. progress: show diffusers' bar over steps.
    """
    view = copy.copy(base.pipeline)
    # Past the pipeline's own __setattr__, which would look up the replacement's library.
    replaced: dict[str, Any] = {base.denoiser_name: denoiser, "scheduler": scheduler}
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(view, name, None)
        if tokenizer is not None:
            replaced[name] = LockedTokenizer(tokenizer, base.lock)
    view.__dict__.update(replaced)
    view.set_progress_bar_config(**_progress_settings(view, progress))
    return view


def _progress_settings(view: Any, progress: bool) -> dict[str, Any]:
    own = dict(getattr(view, "_progress_bar_config", {}))
    return own | {"disable": not progress, "leave": False}
