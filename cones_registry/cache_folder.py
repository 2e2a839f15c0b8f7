"""Where this machine keeps what can be had again: local copies, blobs, class pictures."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """`folder`, else `CONES_CACHE`, else the user's cache folder; absolute, perhaps not there."""
    chosen = folder or os.environ.get("CONES_CACHE") or platformdirs.user_cache_path("cones")
    return Path(chosen).expanduser().absolute()
