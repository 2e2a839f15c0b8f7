"""How a family's stock pipeline calls its denoiser, taken down once and repeated in learning.

The pipeline encodes the prompts, packs the latents and puts together whatever else its denoiser
reads (masks, pooled text, position ids, picture sizes, guidance). Nothing of that is written here
a second time: the first call that the pipeline makes is recorded and not carried out.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from cones_registry.attention.modules import original
from cones_registry.base_model.stock import plain_guidance, stock_arguments
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

_CHUNK = 16
_TEXT = "encoder_hidden_states"
# Tensors that are the same for every prompt, however many rows they happen to have.
_SHARED = frozenset({"txt_ids", "img_ids", "image_rotary_emb"})


@dataclass(frozen=True)
class StockCall:
    """A denoiser's arguments for P prompts.

    Attributes:
        arguments: by name, without latents and timestep. Tensors and lists of P entries are one
            per prompt, the rest is shared.
        count: P.
        latents_name, timestep_name: what the denoiser calls them.
        latents_shape: of one picture, as the denoiser reads it: [C, h, w], or packed [n, 4 C].
        scale: what the denoiser is told for a timestep / that timestep.
        pack: what the pipeline makes of latents [n, C, h, w] first, [n, places, …]; None: nothing.
        mu: how far it shifts noise levels for pictures of this size; None where its scheduler
            shifts them by a constant, or not at all.
    """

    arguments: dict[str, Any]
    count: int
    latents_name: str
    timestep_name: str
    latents_shape: tuple[int, ...]
    scale: float
    timestep_dtype: torch.dtype
    pack: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, repr=False)
    mu: float | None = None

    @property
    def embeddings(self) -> torch.Tensor:
        """The text as the denoiser takes it, [P, T, D]."""
        states: torch.Tensor = self.arguments[_TEXT]
        return states

    @property
    def row_count(self) -> int:
        """T, rows of the text; Hunyuan-DiT puts those of T5 behind the first ones."""
        second = self.arguments.get("encoder_hidden_states_t5")
        return self.embeddings.shape[1] + (0 if second is None else int(second.shape[1]))

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [n, C, h, w] in the form the denoiser reads."""
        if latents.shape[1:] == self.latents_shape:
            return latents
        if self.pack is not None and len(self.latents_shape) == 2:
            return self.pack(latents)
        if latents.unsqueeze(2).shape[1:] == self.latents_shape:  # one frame
            return latents.unsqueeze(2)
        raise UsageError(
            f"pictures are encoded as {tuple(latents.shape[1:])}, the denoiser reads "
            f"{self.latents_shape}. Give pictures of the size the model draws"
        )

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, timesteps: torch.Tensor, which: torch.Tensor
    ) -> torch.Tensor:
        """What ``denoiser`` answers for noisy latents [B, …] at timesteps [B]: the same shape.

        which: int64 [B], the number of each picture's prompt.
        """
        told = {name: self._of(name, value, which) for name, value in self.arguments.items()}
        told[self.latents_name] = noisy
        scaled = timesteps.to(noisy.device)
        if self.timestep_dtype.is_floating_point:
            scaled = scaled.to(self.timestep_dtype) * self.scale
        told[self.timestep_name] = scaled
        told["return_dict"] = False
        answer: torch.Tensor = denoiser(**told)[0]
        if answer.shape[1] == 2 * noisy.shape[1]:  # its variance besides
            answer = answer.chunk(2, dim=1)[0]
        return answer

    def _of(self, name: str, value: Any, which: torch.Tensor) -> Any:
        """An argument for these prompts."""
        if isinstance(value, dict):
            return {key: self._of(key, each, which) for key, each in value.items()}
        if name in _SHARED:
            return value
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == self.count:
            return value[which.to(value.device)]
        if isinstance(value, list) and len(value) == self.count:
            return [value[int(number)] for number in which]
        return value


class _Recorded(BaseException):
    """The denoiser was called; not an ``Exception``, so that no pipeline catches it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


class _Recorder:
    """Stands for the denoiser and takes its first call down."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original(self._denoiser).forward).bind(*args, **kwargs)
        raise _Recorded(dict(bound.arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


def record_call(base: BaseModel, prompts: Sequence[str], size: int) -> StockCall:
    """What the stock pipeline of ``base`` gives its denoiser for square pictures of these prompts.

    size: pixels. Without guidance by a negative prompt; a guidance-distilled model is told its
    usual scale. The denoiser is not called.
    """
    chunks = [prompts[start : start + _CHUNK] for start in range(0, len(prompts), _CHUNK)]
    calls = [_recorded(base, list(chunk), size) for chunk in chunks]
    if len(calls) == 1:
        return calls[0]
    return replace(calls[0], arguments=_joined(calls), count=len(prompts))


def _recorded(base: BaseModel, prompts: list[str], size: int) -> StockCall:
    view = copy.copy(base.pipeline)
    view.__dict__["scheduler"] = scheduler = copy.deepcopy(view.scheduler)
    shifts = _note_shifts(scheduler)
    view.__dict__[base.denoiser_name] = _Recorder(base.denoiser)
    own_settings = dict(getattr(view, "_progress_bar_config", {}))
    view.set_progress_bar_config(**(own_settings | {"disable": True}))
    arguments = stock_arguments(
        view,
        guidance_scale=plain_guidance(view),
        negatives=[""] * len(prompts),
        height=size,
        width=size,
    )
    generators = [torch.Generator("cpu").manual_seed(0) for _ in prompts]
    try:
        with base.lock:
            view(prompt=prompts, num_inference_steps=2, generator=generators, **arguments)
    except _Recorded as recorded:
        call = _call(base, view, recorded.arguments, len(prompts))
        return replace(call, mu=shifts[-1] if shifts else None)
    raise UsageError(f"{type(view).__name__} draws without calling its denoiser")


def _note_shifts(scheduler: Any) -> list[float | None]:
    """What a scheduler is told as ``mu``, from now on."""
    told: list[float | None] = []
    stock = scheduler.set_timesteps

    @functools.wraps(stock)  # pipelines look at what it takes
    def set_timesteps(*args: Any, **named: Any) -> Any:
        told.append(named.get("mu"))
        return stock(*args, **named)

    scheduler.set_timesteps = set_timesteps
    return told


def _call(base: BaseModel, view: Any, arguments: dict[str, Any], count: int) -> StockCall:
    parameters = inspect.signature(original(base.denoiser).forward).parameters
    latents_name = next(iter(parameters))
    latents, timestep = arguments.pop(latents_name), torch.as_tensor(arguments.pop("timestep"))
    if timestep.ndim > 1:
        raise UsageError(
            f"{base.source!r} is told a timestep for every place of the picture, which learning "
            "does not know. Use a model that is told one per picture (see schema/models.md)"
        )
    told, first = float(timestep.flatten()[0]), float(view.scheduler.timesteps[0])
    return StockCall(
        {name: value for name, value in arguments.items() if value is not None},
        count,
        latents_name,
        "timestep",
        tuple(latents.shape[1:]),
        told / first if first else 1.0,
        timestep.dtype,
        _packing(base.pipeline),
    )


def _packing(pipeline: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What a pipeline makes of latents [n, C, h, w] before its denoiser reads them."""
    pack = getattr(type(pipeline), "_pack_latents", None)
    if pack is None:
        return None
    if hasattr(pipeline, "transformer_temporal_patch_size"):  # LTX-Video: of frames, here one
        sizes = pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
        return lambda latents: pack(latents.unsqueeze(2), *sizes)
    return lambda latents: pack(latents, *latents.shape)


def _joined(calls: Sequence[StockCall]) -> dict[str, Any]:
    """Arguments of all calls, one after the other; shorter texts are padded with masked rows."""
    rows = max(call.embeddings.shape[1] for call in calls)
    masks = [name for name in ("encoder_hidden_states_mask",) if _padded(calls, rows, name)]
    found: dict[str, Any] = dict(calls[0].arguments)
    for name in (*calls[0].arguments, *masks):
        found[name] = _join(name, [_value(call, name) for call in calls], calls, rows)
    return found


def _padded(calls: Sequence[StockCall], rows: int, mask: str) -> bool:
    return any(mask in call.arguments for call in calls) or any(
        call.embeddings.shape[1] != rows for call in calls
    )


def _value(call: StockCall, name: str) -> Any:
    value = call.arguments.get(name)
    if value is None and name == "encoder_hidden_states_mask":
        text = call.embeddings
        return torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
    return value


def _join(name: str, values: list[Any], calls: Sequence[StockCall], rows: int) -> Any:
    if name in _SHARED:
        return values[0]
    if isinstance(values[0], dict):
        return {key: _join(key, [each[key] for each in values], calls, rows) for key in values[0]}
    counts = [call.count for call in calls]
    if all(isinstance(each, list) for each in values):
        return [entry for each in values for entry in each]
    if not all(isinstance(each, torch.Tensor) and each.ndim for each in values):
        return values[0]
    if [len(each) for each in values] != counts:
        return values[0]
    if name in (_TEXT, "encoder_hidden_states_mask"):
        values = [_with_rows(each, rows) for each in values]
    return torch.cat(values)


def _with_rows(states: torch.Tensor, rows: int) -> torch.Tensor:
    """[P, t, …] padded with zeros to [P, rows, …]."""
    missing = rows - states.shape[1]
    return pad(states, (0, 0) * (states.ndim - 2) + (0, missing)) if missing else states
