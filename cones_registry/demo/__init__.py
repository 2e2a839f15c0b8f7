"""The demo: a synthetic world, a small base model trained on it, and the whole way through both.

``run(folder)`` is what ``cones demo`` does: four subjects learnt from PNG files, kept in a
registry, found again, combined and drawn by one unchanged base model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cones_registry.demo.run import DemoReport, run

__all__ = ["DemoReport", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cones_registry.demo import run as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
