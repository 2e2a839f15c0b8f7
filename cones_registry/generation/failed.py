"""Pictures that could not be drawn, beside those that could."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cones_registry.errors import CorruptDataError

if TYPE_CHECKING:
    from PIL.Image import Image


class FailedPicturesError(CorruptDataError):
    """Some pictures of a call are none: numbers that overflowed, or blacked out by a checker.

    Attributes:
        pictures: those of the call, None where there is none.
        reasons: number of a picture, from 0 -> why there is none.
    """

    def __init__(self, pictures: Sequence[Image | None], reasons: Mapping[int, str]) -> None:
        first, reason = min(reasons.items())
        which = f"picture {first + 1} of {len(pictures)}" if len(pictures) > 1 else "the picture"
        more = f" ({len(reasons) - 1} more failed)" if len(reasons) > 1 else ""
        super().__init__(f"{which} failed: {reason}{more}")
        self.pictures = list(pictures)
        self.reasons = dict(reasons)
