"""A base model of one's own to train: a copy, so that the shared one stays as published."""

from __future__ import annotations

import copy
from typing import Any

import torch

from cones_registry.base_model import BaseModel
from cones_registry.layers import fingerprint

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def private_copy(base: BaseModel, *, denoiser: bool, text: bool) -> BaseModel:
    """``base`` in float32, with a ``denoiser`` and ``text`` encoders of its own where these train.

    What is not copied is shared: a model of three gigabytes is not there once more for every
    subject whose word alone is learnt. The copy is in no cache.
    """
    own: dict[str, torch.nn.Module] = {}
    parts = {base.denoiser_name: denoiser, **dict.fromkeys(TEXT_ENCODERS, text)}
    for name, trained in parts.items():
        part = getattr(base.pipeline, name, None)
        # In half precision one part's rows would not fit another's.
        if part is not None and (trained or part.dtype != torch.float32):
            own[name] = _float_copy(base, part)
    return _with(base, own, base.fingerprint)


def settled(base: BaseModel, trained: BaseModel, title: str) -> BaseModel:
    """A trained copy made ready to draw with: in the dtype of ``base``, with its own fingerprint.

    title: said as its source.
    """
    own = {base.denoiser_name: _cast(trained.denoiser, base.dtype)}
    for name in TEXT_ENCODERS:
        encoder = getattr(trained.pipeline, name, None)
        if encoder is not None and encoder is not getattr(base.pipeline, name):
            own[name] = _cast(encoder, getattr(base.pipeline, name).dtype)
    weights = trained.denoiser
    digest = fingerprint(
        base.layer_table,
        lambda name: weights.get_parameter(name).detach().float().cpu().numpy(),
    )
    return _with(base, own, digest, f"{base.source} with {title}")


def _with(
    base: BaseModel, parts: dict[str, torch.nn.Module], digest: str, source: str | None = None
) -> BaseModel:
    pipeline = copy.copy(base.pipeline)
    # Past the pipeline's own __setattr__, which writes into the config both copies share.
    pipeline.__dict__.update(parts)
    return BaseModel(
        pipeline, source=source or base.source, fingerprint=digest, defaults=base.defaults
    )


def _float_copy(base: BaseModel, module: Any) -> torch.nn.Module:
    with base.lock:
        made = copy.deepcopy(module)
    return _cast(made, torch.float32)


def _cast(module: Any, dtype: torch.dtype) -> torch.nn.Module:
    # Past diffusers' own `to`, which warns of every cast.
    cast: torch.nn.Module = module if module.dtype == dtype else torch.nn.Module.to(module, dtype)
    return cast
