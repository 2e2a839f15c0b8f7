"""The façade users hold: bytes and catalogue under one URL."""

from cones_registry.registry.drafts import Push
from cones_registry.registry.registry import Registry

__all__ = ["Push", "Registry"]
