"""The libraries an extraction depends on."""

from __future__ import annotations

import importlib.metadata

LIBRARIES = ("cones-registry", "torch", "diffusers", "transformers", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Library name -> version, "unknown" where it was not installed as a package."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "unknown"
    return found
