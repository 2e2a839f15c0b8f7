"""The libraries that decide the bits of what is learnt and drawn."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

LIBRARIES: Final = ("cones-registry", "diffusers", "numpy", "pillow", "torch", "transformers")


def library_versions() -> dict[str, str]:
    """Library name -> version, "unknown" where it was not installed as a package."""
    return {library: _version(library) for library in LIBRARIES}


@cache
def _version(library: str) -> str:
    if library == "torch":
        import torch

        return str(torch.__version__)  # with its build ("+cpu"): other kernels, other bits
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"
