"""Bytes by key under one URL: local disk, memory, or an object store."""

from cones_registry.store.base import Entry, KeyExistsError, Store
from cones_registry.store.fault import Fault, Step
from cones_registry.store.opening import open_store

__all__ = ["Entry", "Fault", "KeyExistsError", "Step", "Store", "open_store"]
