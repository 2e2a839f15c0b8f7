"""Whether compiled kernels are there: extra `fast`."""

from functools import cache
from types import ModuleType


@cache
def compiled_kernels() -> ModuleType | None:
    """The module of compiled kernels, or None without numba. They do what numpy does, faster."""
    try:
        from cones_registry.codec import compiled
    except Exception:  # numba missing, or unable to compile here: speed is no reason not to read
        return None
    return compiled
