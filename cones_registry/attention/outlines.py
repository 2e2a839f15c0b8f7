"""Outlines: an attention map drawn over its picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

INK = (255, 0, 255)
PAPER = (255, 255, 255)


def outlined(
    picture: Image.Image, heat: npt.NDArray[np.float32], *, level: float = 0.5, width: int = 2
) -> Image.Image:
    """``picture`` with a line around where the map is above ``level`` of its range.

    heat: float32 [height, width] of the picture. level: 0 is the map's lowest value, 1 its highest.
    width: of the line in pixels.
    """
    inside = np.asarray(relative(heat) >= level)
    core = inside
    for _ in range(width):
        core = core & _shifted(core)
    pixels = np.asarray(picture.convert("RGB")).copy()
    pixels[inside & ~core] = INK
    return Image.fromarray(pixels)


def heated(heat: npt.NDArray[np.float32]) -> Image.Image:
    """The map itself, black where it is lowest, white where it is highest."""
    return Image.fromarray(np.rint(255 * relative(heat)).astype(np.uint8)).convert("RGB")


def relative(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The map stretched to [0, 1]; all 0 where it is flat."""
    low, high = float(heat.min()), float(heat.max())
    if high - low <= 0:
        return np.zeros_like(heat)
    return (heat - low) / (high - low)


def _shifted(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where all four neighbours are inside; the frame counts as outside."""
    padded = np.pad(inside, 1)
    found: npt.NDArray[np.bool_] = (
        padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    )
    return found
