"""Factors as byte planes: byte i of every factor stands in column `factors_<i>`.

The bytes of a float differ in kind (sign and exponent, then ever more random digits), so each plane
compresses with its own statistics. A 2-bit level is packed four to a byte, LSB first.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cones_registry.errors import CorruptDataError
from cones_registry.factors import TWO_BIT_LEVELS, Precision

PLANE_COUNTS: Final[dict[Precision, int]] = {"binary": 0, "2bit": 1, "float16": 2, "float32": 4}


GROWTH: Final[dict[Precision, int]] = {"binary": 1, "2bit": 16, "float16": 2, "float32": 4}
"""Bytes of factors that one byte of a plane becomes in memory."""


def plane_names(precision: Precision) -> tuple[str, ...]:
    """Columns that hold the factors of a mask."""
    return tuple(f"factors_{plane}" for plane in range(PLANE_COUNTS[precision]))


def encode_factors(factors: npt.NDArray[Any], precision: Precision) -> list[bytes]:
    """Planes of the factors of one layer, float [n], lowest byte first."""
    if precision == "2bit":
        levels = np.rint(factors * np.float32(3)).astype(np.uint8)
        padded = np.zeros((-(-len(levels) // 4), 4), dtype=np.uint8)
        padded.reshape(-1)[: len(levels)] = levels
        return [
            (padded << np.arange(0, 8, 2, dtype=np.uint8)).sum(axis=1, dtype=np.uint8).tobytes()
        ]
    count = PLANE_COUNTS[precision]
    planes = factors.astype(f"<f{count}").view(np.uint8).reshape(-1, count)
    return [planes[:, plane].tobytes() for plane in range(count)]


def decode_factors(
    planes: Sequence[npt.NDArray[np.uint8]], count: int, precision: Precision
) -> npt.NDArray[Any]:
    """Factors of one layer, float [count]; `CorruptDataError` if a plane has another length."""
    expected = -(-count // 4) if precision == "2bit" else count
    for plane in planes:
        if len(plane) != expected:
            raise CorruptDataError(
                f"a factor plane takes {len(plane)} bytes; {count} factors need {expected}"
            )
    if precision == "2bit":
        levels = (planes[0][:, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3
        if levels.reshape(-1)[count:].any():
            raise CorruptDataError("the factor plane has bits set beyond its last factor")
        return np.take(TWO_BIT_LEVELS, levels.reshape(-1)[:count])
    joined = np.empty((count, len(planes)), dtype=np.uint8)
    for position, plane in enumerate(planes):
        joined[:, position] = plane
    values: npt.NDArray[Any] = joined.view(f"<f{len(planes)}").reshape(-1)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
