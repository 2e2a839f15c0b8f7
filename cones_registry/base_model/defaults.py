"""How a base model is best drawn with, where its folder says so."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cones_registry.errors import CorruptDataError

FILE = "generation_defaults.json"


@dataclass(frozen=True)
class GenerationDefaults:
    """What ``Generator`` uses when it is not told: 50 steps and guidance 7.5, as diffusers does.

    The folder of a base model may hold others, in ``generation_defaults.json``:
    ``{"steps": 20, "guidance_scale": 2.0}``.
    """

    steps: int = 50
    guidance_scale: float = 7.5


def read_defaults(folder: Path) -> GenerationDefaults:
    """The defaults in ``folder``, or the usual ones; CorruptDataError if the file is damaged."""
    file = folder / FILE
    if not file.is_file():
        return GenerationDefaults()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        usual = GenerationDefaults()
        defaults = GenerationDefaults(
            int(content.get("steps", usual.steps)),
            float(content.get("guidance_scale", usual.guidance_scale)),
        )
    except (ValueError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        raise CorruptDataError(f"cannot read {file}: {error}. Copy the folder again") from error
    if defaults.steps < 1 or not 0 <= defaults.guidance_scale < 1000:
        raise CorruptDataError(
            f"{file} says {defaults}; expected at least 1 step and guidance from 0 below 1000"
        )
    return defaults
