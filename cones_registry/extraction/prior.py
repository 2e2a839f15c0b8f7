"""Class pictures of the base model itself, drawn once and kept."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cones_registry.cache_folder import cache_folder
from cones_registry.digest import sha256_bytes
from cones_registry.extraction.stock import draw_latents

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

_DIGEST_BYTES = 71  # "sha256:" and 64 digits


def default_cache_folder() -> Path:
    """Subfolder ``class-pictures`` of this machine's cache (``$CONES_CACHE`` says where)."""
    return cache_folder() / "class-pictures"


def class_latents(
    base: BaseModel,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    folder: Path,
    size: int | None = None,
) -> torch.Tensor:
    """Latents of one picture a prompt, drawn by the stock pipeline: float32 [n, C, h, w].

    Kept in ``folder`` under a digest of the model's weights and all settings. A file that is
    damaged, or cannot be written, costs only the time to draw again.
    """
    settings = {
        "model": weights_digest(base),
        "prompts": list(prompts),
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "dtype": str(base.dtype),
    }
    if size is not None:
        settings["size"] = size
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    file = folder / f"{key}.latents"
    kept = _read(file)
    if kept is not None:
        return kept
    latents = draw_latents(
        base, prompts, seed=seed, steps=steps, guidance_scale=guidance_scale, size=size
    )
    _write(file, latents)
    return latents


def weights_digest(base: BaseModel) -> str:
    """Digest of every parameter of the pipeline.

    The fingerprint covers K and V alone; a picture also depends on the rest.
    """
    hasher = hashlib.sha256(base.fingerprint.encode())
    for name, part in sorted(base.pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, value in part.state_dict().items():
                hasher.update(f"{name}.{key} {tuple(value.shape)}\n".encode())
                raw = value.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
                hasher.update(raw.numpy().data)
    hasher.update(json.dumps(dict(base.pipeline.scheduler.config), default=str).encode())
    return hasher.hexdigest()


def _read(file: Path) -> torch.Tensor | None:
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if digest != sha256_bytes(body).encode():
        return None
    return torch.from_numpy(np.load(BytesIO(body), allow_pickle=False))


def _write(file: Path, latents: torch.Tensor) -> None:
    body = BytesIO()
    np.save(body, latents.numpy(), allow_pickle=False)
    data = body.getvalue()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as aside:
            aside.write(sha256_bytes(data).encode() + data)
        Path(aside.name).replace(file)
    except OSError:
        return  # a cache that cannot be written is no reason to stop
