"""Sides of a picture: what the pipelines can draw."""

from typing import Final

from cones_registry.errors import UsageError

SIDE_STEP: Final = 8
"""Pixels a latent pixel stands for. Some models (Sana) take larger steps, and say so themselves."""
MAX_SIDE: Final = 16_384


def check_side(name: str, pixels: int) -> int:
    """Return `pixels` if pictures can be so wide or high, else raise `UsageError`."""
    if not 0 < pixels <= MAX_SIDE or pixels % SIDE_STEP:
        near = min(max(round(pixels / SIDE_STEP), 1) * SIDE_STEP, MAX_SIDE)
        raise UsageError(
            f"{name} is {pixels} pixels; expected a multiple of {SIDE_STEP} up to {MAX_SIDE}, "
            f"as {near}"
        )
    return pixels
