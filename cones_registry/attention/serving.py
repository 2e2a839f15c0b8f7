"""Attention processors that use K and V computed before, and the callable that hands them over.

The processors are installed once per model, hold no state and behave exactly like the ones they
wrap until a call brings rows with it, in ``cross_attention_kwargs``. So threads do not meet, and a
compiled model sees the rows as ordinary inputs: another mask is another tensor, not another graph.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

from cones_registry.attention.modules import cross_attentions, original, unservable_reason
from cones_registry.attention.rows import KVRows
from cones_registry.errors import UsageError

_INSTALL = threading.Lock()
_ARGUMENT = "kv_rows"


class _ServedAttention:
    """An attention module whose ``to_k`` and ``to_v`` hand out rows computed before."""

    def __init__(self, attention: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        self._attention = attention
        self._key = key
        self._value = value

    def to_k(self, _text: torch.Tensor) -> torch.Tensor:
        return self._key

    def to_v(self, _text: torch.Tensor) -> torch.Tensor:
        return self._value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)


class RowsProcessor:
    """Wraps a stock processor of one attention module; serves rows when the call brings some.

    served_by_cones: the stock processor, which does all the arithmetic in both cases.
    path: the module's path, None for self-attention (always passed through).
    """

    def __init__(self, processor: Any, path: str | None) -> None:
        self.served_by_cones = processor
        self.path = path

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        kv_rows: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        if kv_rows is not None and self.path is not None:
            key, value = kv_rows[self.path]
            attn = _ServedAttention(attn, key, value)
        return self.served_by_cones(  # type: ignore[no-any-return]
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
        )


def install(unet: Any) -> None:
    """Wrap the attention processors of ``unet``; nothing is done where that has happened.

    Processors set by someone since (attention slicing, say) are wrapped in their turn.
    Raises UsageError if the model cannot be served; the message says why.
    """
    module = original(unet)
    if _installed(module):
        return
    _require_servable(module)
    cross = {id(block.module): block.path for block in cross_attentions(module)}
    with _INSTALL:
        for attention in _attentions(module):
            if not isinstance(attention.processor, RowsProcessor):
                path = cross.get(id(attention))
                attention.processor = RowsProcessor(attention.processor, path)


def _require_servable(module: Any) -> None:
    reason = unservable_reason(module)
    if reason is not None:
        raise UsageError(
            f"cannot serve K/V rows to this {type(module).__name__}: {reason}. "
            "Use `with shut(unet, mask):` around the pipeline instead"
        )


def _attentions(module: Any) -> list[Any]:
    return [part for part in module.modules() if hasattr(part, "set_processor")]


def _installed(module: Any) -> bool:
    return all(
        isinstance(block.module.processor, RowsProcessor) for block in cross_attentions(module)
    )


class ServedModel:
    """A denoiser that uses given K/V rows; called, and otherwise, like the denoiser itself."""

    def __init__(self, unet: Any, rows: KVRows) -> None:
        self._unet = unet
        self.rows = rows

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        install(self._unet)
        extra = dict(kwargs.pop("cross_attention_kwargs", None) or {})
        extra[_ARGUMENT] = self.rows.tensors
        return self._unet(*args, cross_attention_kwargs=extra, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)


def serve(unet: Any, rows: KVRows) -> ServedModel:
    """A callable like ``unet`` that attends to ``rows`` instead of projecting its text.

    ``encoder_hidden_states`` is still passed (the model reads its shape, and some models condition
    on it elsewhere). Its batch must be that of ``rows``. Raises UsageError if the model cannot be
    served.
    """
    _require_servable(original(unet))
    install(unet)
    return ServedModel(unet, rows)
