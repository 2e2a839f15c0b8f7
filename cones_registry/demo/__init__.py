"""The demo: a synthetic world, a small base model trained on it, and the whole way through both.

``run(folder)`` is what ``cones demo`` does: four subjects learnt from PNG files, kept in a
registry, found again, combined and drawn by one unchanged base model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cones_registry.demo.demonstration import DemoReport, DemoSize, run

__all__ = ["DemoReport", "DemoSize", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cones_registry.demo import demonstration

    return getattr(demonstration, name)
