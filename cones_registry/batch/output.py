"""The folder a run writes to."""

from __future__ import annotations

import os

from cones_registry.errors import StoreUnavailableError
from cones_registry.store import Store, open_store
from cones_registry.store.local import LocalStore


def open_output(out: str | os.PathLike[str] | Store) -> Store:
    """The store of a run: ``out`` itself, or the folder at that path or URL.

    Raises StoreUnavailableError where a file stands in the folder's place, and what ``open_store``
    raises.
    """
    if isinstance(out, Store):
        return out
    store = open_store(out)
    if isinstance(store, LocalStore):
        for place in (store.root, *store.root.parents):
            if place.is_file():
                raise StoreUnavailableError(
                    f"{str(place)!r} is a file, so a run cannot be kept in {str(store.root)!r}. "
                    "Give a folder, or one that is not there yet (--out)"
                )
    return store
