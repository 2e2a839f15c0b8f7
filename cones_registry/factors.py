"""Factors: what the members of a graded mask are multiplied by, and how exactly that is kept."""

from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from cones_registry.digest import quote
from cones_registry.errors import UsageError

Precision = Literal["binary", "2bit", "float16", "float32"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
TWO_BIT_LEVELS: Final = np.array([0, 1 / 3, 2 / 3, 1], dtype=np.float32)
"""Factors a 2-bit mask can hold, float32 [4]; level i is i / 3."""

Factors = npt.NDArray[np.float16] | npt.NDArray[np.float32]
"""Float [n], one for each member: float16 at precision "float16", else float32."""


def round_factors(
    factors: npt.NDArray[Any] | None, count: int, precision: Precision | None
) -> tuple[Factors | None, Precision]:
    """Factors checked and rounded to a precision, and the precision that results.

    Args:
        factors: float [count], or None for a binary mask.
        count: members of the mask.
        precision: what to round to; None: "float16" for float16 factors, else "float32".

    Raises:
        UsageError: another length, not floats, not finite, outside [0, 1] for "2bit", not 0 for
            "binary", too large for "float16".
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"no precision {quote(precision)}; choose one of {', '.join(PRECISIONS)}")
    if factors is None:
        # Every precision can hold a mask without factors: all are 0.
        return None, "binary"
    if factors.shape != (count,) or factors.dtype.kind != "f":
        raise UsageError(
            f"factors must be floats of shape ({count},), one for each member; "
            f"got {factors.dtype} {factors.shape}"
        )
    if not np.isfinite(factors).all():
        raise UsageError("a factor is NaN or infinite; factors must be finite numbers")
    if not factors.any():
        return None, "binary"
    if precision is None:
        precision = "float16" if factors.dtype == np.float16 else "float32"
    if precision == "binary":
        raise UsageError(
            "a binary mask multiplies every member by 0, but some factors are not 0. "
            "Choose precision '2bit', 'float16' or 'float32'"
        )
    if precision == "2bit":
        if factors.min() < 0 or factors.max() > 1:
            raise UsageError(
                f"2-bit factors lie in [0, 1]; got {factors.min()} to {factors.max()}. "
                "Choose precision 'float16' or 'float32'"
            )
        rounded: Factors = TWO_BIT_LEVELS[np.rint(factors * np.float32(3)).astype(np.intp)]
    else:
        with np.errstate(over="ignore"):
            rounded = factors.astype(precision)
        if not np.isfinite(rounded).all():
            raise UsageError(f"a factor is too large for {precision}; choose 'float32'")
    if not rounded.any():
        return None, "binary"
    # -0.0 and 0.0 are one factor; adding 0 leaves only the positive one.
    return rounded + rounded.dtype.type(0), precision


def finer(first: Precision, second: Precision) -> Precision:
    """A precision that holds every factor of both."""
    graded = {first, second} - {"binary"}
    if len(graded) > 1:
        return "float32"
    return graded.pop() if graded else "binary"
