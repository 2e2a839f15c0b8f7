"""Several masks -> one Composition: checked, merged, and explained."""

from cones_registry.resolver.composition import Composition, Contribution, Member, Overlap, Part
from cones_registry.resolver.resolving import (
    DEFAULT_MAX_DENSITY,
    DensityLimitError,
    TokenClashError,
    resolve,
)

__all__ = [
    "DEFAULT_MAX_DENSITY",
    "Composition",
    "Contribution",
    "DensityLimitError",
    "Member",
    "Overlap",
    "Part",
    "TokenClashError",
    "resolve",
]
