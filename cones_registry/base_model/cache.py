"""Base models shared in one process: one load for many threads, a bound on memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from cones_registry.cache import ByteCache


class Sized(Protocol):
    """What the cache holds: something with a size in bytes."""

    @property
    def byte_count(self) -> int: ...


Model = TypeVar("Model", bound=Sized)


class ModelCache(Generic[Model]):
    """Least recently used models, in a ``ByteCache`` for each device.

    A model that falls out is only forgotten here: who still holds it keeps using it, and its memory
    goes with the last of them. The newest model always stays, however large.

    Args:
        limit: Bytes per device; None for what ``own_limit`` says.
        own_limit: Device -> what the device itself allows; None is no bound.
    """

    def __init__(
        self,
        limit: int | None = None,
        own_limit: Callable[[str], int | None] = lambda device: None,
    ) -> None:
        self._limit = limit
        self._own_limit = own_limit
        self._devices: dict[str, ByteCache[Model]] = {}

    @property
    def limit(self) -> int | None:
        """Bound in bytes for each device; None: what each device itself allows."""
        return self._limit

    @limit.setter
    def limit(self, value: int | None) -> None:
        self._limit = value
        for models in list(self._devices.values()):
            models.shrink()

    def get(self, key: Hashable, device: str, load: Callable[[], Model]) -> Model:
        """The model under ``key``; loaded by the first caller while the others wait for it.

        A load that fails is forgotten, and every caller that waited for it gets its error.
        """
        return self._on(device).get(key, load)

    def discard(self, model: Model) -> None:
        """Forget ``model``."""
        for models in list(self._devices.values()):
            models.forget(lambda key, held: held is model)

    def clear(self) -> None:
        """Forget every model that is loaded."""
        for models in list(self._devices.values()):
            models.forget(lambda key, held: True)

    def __len__(self) -> int:
        return sum(len(models) for models in list(self._devices.values()))

    def _on(self, device: str) -> ByteCache[Model]:
        def limit() -> int | None:
            return self._own_limit(device) if self._limit is None else self._limit

        # setdefault is one step: threads that come first at once get the same cache.
        made: ByteCache[Model] = ByteCache(limit, lambda each: each.byte_count, keep_newest=True)
        return self._devices.setdefault(device, made)
