"""A pipeline of one's own around a shared base model: what one call may change is copied."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.attention import (
    EditedModel,
    MaskedPart,
    RequestParts,
    RowEdit,
    is_cached,
    plan_rows,
)
from cones_registry.attention.rows import RowEdits
from cones_registry.base_model.loading import TOKENIZERS
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
        self._planned: dict[str, tuple[_Text, EditedModel]] = {}
        self._edits_made: dict[str, RowEdits] = {}
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that K and V took until now."""
        return self._seconds + sum(edits.seconds for edits in self._edits_made.values())

    def __call__(self, *args: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        second = kwargs.get("encoder_hidden_states_t5")  # Hunyuan-DiT puts it behind the first
        states = (encoder_hidden_states,) if second is None else (encoder_hidden_states, second)
        seen, model = self._planned.get(self._branch, (None, None))
        if model is None or seen is None or not seen.is_still(states):
            edits = RowEdits(self._edits(states), once=self._once)
            if replaced := self._edits_made.get(self._branch):
                self._seconds += replaced.seconds
            self._edits_made[self._branch] = edits
            model = EditedModel(self._denoiser, edits)
            self._planned[self._branch] = _Text(states), model
        return model(*args, encoder_hidden_states=encoder_hidden_states, **kwargs)

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

    def _edits(self, states: tuple[torch.Tensor, ...]) -> list[RowEdit]:
        batch, rows = states[0].shape[0], sum(each.shape[1] for each in states)
        conditional = [request.conditional for request in self._requests]
        unconditional = [request.unconditional for request in self._requests]
        alone = unconditional if self._branch == "uncond" else conditional
        entries = {1: alone, 2: unconditional + conditional}.get(batch // len(conditional), [])
        if len(entries) != batch:
            raise UsageError(
                f"the pipeline gave text for {batch} pictures where {len(conditional)} "
                "requests, or twice as many with guidance, were expected"
            )
        return plan_rows([_fitted(entry, rows) for entry in entries], rows)


class _Text:
    """Text states as they were when they were seen."""

    def __init__(self, states: tuple[torch.Tensor, ...]) -> None:
        self._states = states
        self._versions = [_version(each) for each in states]

    def is_still(self, states: tuple[torch.Tensor, ...]) -> bool:
        """Whether ``states`` are these; some pipelines cast them anew at every step."""
        if len(states) != len(self._states):
            return False
        return all(
            version == _version(seen) and (seen is now or _are_equal(seen, now))
            for seen, version, now in zip(self._states, self._versions, states, strict=True)
        )


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))


def _version(states: torch.Tensor) -> int:
    """Counts what is written into a tensor; a callback may write into the text between steps."""
    return -1 if states.is_inference() else states._version


def _fitted(entry: RequestParts, rows: int) -> RequestParts:
    """``entry`` for a text of ``rows`` rows: some models cut it to the batch's longest prompt."""
    return RequestParts(
        tuple(
            part
            if part.rows is None or len(part.rows) <= rows
            else MaskedPart(part.mask, part.rows[:rows])
            for part in entry.parts
        )
    )


class LockedTokenizer:
    """A tokenizer that one thread uses at a time: padding and truncation are state inside it."""

    def __init__(self, tokenizer: Any, lock: threading.RLock) -> None:
        self.__dict__.update(_tokenizer=tokenizer, _lock=lock)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self._tokenizer(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the tokenizer itself: Sana's pipeline says on which side it pads."""
        with self._lock:
            setattr(self._tokenizer, name, value)

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
    for name in TOKENIZERS:
        tokenizer = getattr(view, name, None)
        if tokenizer is not None:
            replaced[name] = LockedTokenizer(tokenizer, base.lock)
    view.__dict__.update(replaced)
    view.set_progress_bar_config(**_progress_settings(view, progress))
    return view


def _progress_settings(view: Any, progress: bool) -> dict[str, Any]:
    own = dict(getattr(view, "_progress_bar_config", {}))
    return own | {"disable": not progress, "leave": False}
