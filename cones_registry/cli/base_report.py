"""What `cones doctor --base` says of a base model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones_registry.quantities import size

if TYPE_CHECKING:
    from cones_registry.base_model.source import ModelFolder


def look_over(source: str) -> dict[str, Any]:
    """Everything about the base model at `source` that decides whether it can be used here.

    Raises what `BaseModel.load` raises for a folder that is no sound text-to-image model.
    """
    from cones_registry.attention import unservable_reason
    from cones_registry.base_model import BaseModel
    from cones_registry.base_model.source import open_source, stored_dtype
    from cones_registry.families import family_of

    began = time.perf_counter()
    folder = open_source(source)
    stored = stored_dtype(folder)
    weights = {part.name: _bytes_of(part.files) for part in folder.parts if part.files}
    total = sum(weights.values())
    need = {"as stored": total, "float32": total * (1 if stored == "float32" else 2)}
    memory = _memory()
    findings: dict[str, Any] = {
        "source": source,
        "folder": str(folder.path),
        "pipeline": folder.pipeline,
        "parts": {part.name: part.class_name for part in folder.parts},
        "variants": sorted({part.variant for part in folder.parts if part.variant}),
        "stored_dtype": stored,
        "weight_bytes": weights,
        "bytes_needed": need,
        "memory_bytes": memory,
        "safety_checker": _has_checker(folder),
    }
    if memory is not None and total > memory:
        return findings | {"fits": False, "looked_over_in_seconds": _since(began)}
    # As stored: what a cast would round or overflow is another question.
    base = BaseModel.load(source, device="cpu", dtype=stored)
    reason = unservable_reason(base.denoiser)
    family = family_of(type(base.denoiser).__name__, folder.pipeline)
    base.unload()
    return findings | {
        "fits": True,
        "fits_as_float32": memory is None or need["float32"] <= memory,
        "fingerprint": base.fingerprint,
        "family": family.name if family else None,
        "learnt": bool(family and family.learnt),
        "denoiser": folder.denoiser,
        "layers": len(base.layer_table.layers),
        "neurons": base.layer_table.neuron_count,
        "served": reason is None,
        "not_served_because": reason,
        "steps": base.defaults.steps,
        "guidance": base.defaults.guidance_scale,
        "looked_over_in_seconds": _since(began),
    }


def rows_of(findings: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for a person."""
    need = findings["bytes_needed"]
    parts = ", ".join(f"{name} {size(count)}" for name, count in findings["weight_bytes"].items())
    memory = findings["memory_bytes"]
    room = "unknown" if memory is None else size(memory)
    fits = "it fits" if findings["fits"] else "it does not fit, so its weights were not looked at"
    if findings["fits"] and not findings["fits_as_float32"]:
        fits = "as float32 (auto on a CPU) it does not fit: --dtype bfloat16"
    rows = [
        ("base model", f"{findings['pipeline']} in {findings['folder']}"),
        ("weights", f"{parts}, kept as {findings['stored_dtype']}"),
        (
            "memory",
            f"{size(need['as stored'])} as stored, {size(need['float32'])} as float32; "
            f"this machine has {room}: {fits}",
        ),
        (
            "safety checker",
            "there: pictures that it blacks out are failures"
            if findings["safety_checker"]
            else "none",
        ),
    ]
    if not findings["fits"]:
        return rows
    layers = f"{findings['neurons']:,} neurons in {findings['layers']} layers of the"
    served = "any mix of concepts in one batch"
    if not findings["served"]:
        served = f"one mask at a time, in place: {findings['not_served_because']}"
    learnt = "can be learnt" if findings["learnt"] else "can be drawn, not learnt"
    return [
        *rows,
        ("family", f"{findings['family'] or 'unknown'}: concepts {learnt}"),
        ("every weight", "there, and a finite number"),
        ("tokenizers", "fit their text encoders"),
        ("concepts", f"{layers} {findings['denoiser']}; {served}"),
        ("drawn with", f"{findings['steps']} steps, guidance {findings['guidance']:g}"),
        ("fingerprint", findings["fingerprint"]),
        ("looked over in", f"{findings['looked_over_in_seconds']} s"),
    ]


def _has_checker(folder: ModelFolder) -> bool:
    return any(part.name == "safety_checker" for part in folder.parts)


def _bytes_of(files: tuple[Path, ...]) -> int:
    return sum(file.stat().st_size for file in files)


def _memory() -> int | None:
    """Bytes of memory of this machine, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 2)
