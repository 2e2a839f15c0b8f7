"""Compiled kernels (extra `fast`): used from where loading them pays, with the same results."""

from functools import cache
from types import ModuleType
from typing import Final

_LOADING_PAYS: Final = 64 << 20
"""Bytes of gaps. numba takes a second or two to load, in which numpy decodes about as many: some
hundred masks. So a command that reads a few never waits for numba."""

_decoded = 0


def compiled_kernels(byte_count: int) -> ModuleType | None:
    """The kernels; None before loading them pays in this process, and without numba.

    Args:
        byte_count: bytes that are about to be decoded.
    """
    global _decoded
    if not load_kernels.cache_info().currsize:
        _decoded += byte_count
        if _decoded < _LOADING_PAYS:
            return None
    return load_kernels()


@cache
def load_kernels() -> ModuleType | None:
    """The kernels, loaded now and used from now on; None without numba."""
    try:
        from cones_registry.codec import compiled
    except Exception:  # numba missing, or unable to compile here: speed is no reason not to read
        return None
    return compiled
