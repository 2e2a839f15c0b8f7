"""Weights: `alice/dog*0.7` shuts the 70 % of a concept's neurons that rank highest.

An operator of composing, not a part of what is stored: a version names its whole mask.
"""

from __future__ import annotations

import math
import re
from typing import Final

from cones_registry.digest import quote
from cones_registry.errors import UsageError

_WEIGHT: Final = re.compile(r"[0-9]{0,3}\.?[0-9]{1,9}", re.ASCII)


def parse_weighted(text: str) -> tuple[str, float]:
    """(ref, weight) of `REF` or `REF*WEIGHT`; the weight is 1 where none is given.

    Raises:
        UsageError: a weight that is no number above 0 and up to 1.
    """
    ref, star, weight = text.partition("*")
    if not star:
        return text, 1.0
    if _WEIGHT.fullmatch(weight) is None:
        raise UsageError(f"{quote(text)}: the weight is {quote(weight)}; expected as in {ref}*0.7")
    return ref, check_weight(float(weight), text)


def check_weight(weight: float, where: str) -> float:
    """Return `weight` if it is a share of members above 0 and up to 1, else raise `UsageError`."""
    if not (isinstance(weight, int | float) and math.isfinite(weight) and 0 < weight <= 1):
        raise UsageError(
            f"{quote(where)}: the weight is {quote(weight)}; expected above 0 and up to 1: the "
            "share of the concept's neurons to shut. To leave a concept out, do not name it"
        )
    return float(weight)


def no_scores(ref: str) -> UsageError:
    """What is wrong with a share of a version that was pushed without scores."""
    return UsageError(
        f"{ref} keeps no scores, so nobody can say which of its neurons count most. Take the whole "
        "mask, or extract it again with --keep-scores (push it with scores=)"
    )


def format_weighted(ref: str, weight: float) -> str:
    """Inverse of `parse_weighted`."""
    return ref if weight == 1 else f"{ref}*{weight:g}"
