"""Memory: what one handle of a registry has read, so that reading it again costs little."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Final, cast

from cones_registry.cache import ByteCache
from cones_registry.catalog.copy import State
from cones_registry.digest import Digest
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks
from cones_registry.record import Concept
from cones_registry.refs import Ref
from cones_registry.registry.similar import Sketches
from cones_registry.resolver import Composition

DEFAULT_BYTES: Final = 512 * 2**20
"""Of decoded masks and compositions: two hundred masks of Stable Diffusion 1.x."""

_MOST_RECORDS: Final = 10_000

_Kept = ConceptMask | Ranks | Composition | None


class Memory:
    """Decoded masks and compositions, and what refs name in the current state of the catalogue.

    Masks and compositions never change under the digests they are kept by and may stay. What a ref
    names, and the aliases and tags of a record, are of one state: with the next one they are looked
    up again.

    Args:
        limit: Bytes of masks, ranks and compositions together. A composition counts with all of
            its masks, though it may share them.

    Attributes:
        hits: Times that a mask was held when it, or a composition of it, was asked for.
        misses: Times that one was loaded.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self._kept: ByteCache[_Kept] = ByteCache(limit, _byte_count)
        self._lock = threading.Lock()
        self._state: State | None = None
        self._records: dict[Ref, Concept] = {}
        self._sketches: tuple[Digest, Sketches] | None = None
        self.hits = 0
        self.misses = 0

    def records(self, state: State) -> dict[Ref, Concept]:
        """What refs name in `state`; to be added to by whoever looks one up."""
        with self._lock:
            self._turn_to(state)
            if len(self._records) > _MOST_RECORDS:
                self._records = {}
            return self._records

    def __contains__(self, blob: Digest) -> bool:
        """Whether the mask of a blob is held."""
        return ("mask", (blob,), None) in self._kept

    def mask(self, blob: Digest, load: Callable[[], ConceptMask]) -> ConceptMask:
        """The mask of a blob, loaded if it is not there."""
        return cast(ConceptMask, self._counted(("mask", (blob,), None), load))

    def ranks(self, blob: Digest, load: Callable[[], Ranks | None]) -> Ranks | None:
        """How the members of a blob's mask compare, loaded if it is not there."""
        return cast("Ranks | None", self._kept.get(("ranks", (blob,), None), load))

    def composition(
        self, blobs: tuple[Digest, ...], key: Hashable, make: Callable[[], Composition]
    ) -> Composition:
        """The composition of the masks in `blobs`, made if it is not there.

        Args:
            blobs: what it is made from.
            key: all else that decides what it is.
            make: makes it.
        """
        found = self._counted(("composition", blobs, key), make, masks=len(blobs))
        return cast(Composition, found)

    def sketches(self, state: State, base: Digest) -> Sketches:
        """The sketches of a base model's concepts in `state`; of the last base asked for alone."""
        with self._lock:
            self._turn_to(state)
            if self._sketches is not None and self._sketches[0] == base:
                return self._sketches[1]
        found = Sketches.of(state, base)
        with self._lock:
            if self._state is state:
                self._sketches = base, found
        return found

    def _counted(
        self, key: Hashable, load: Callable[[], _Kept], *, masks: int | None = None
    ) -> _Kept:
        """What is kept under a key; whether it was held is counted.

        masks: of a composition, whose loading asks for each of them itself; None for a mask.
        """
        is_new = False

        def loaded() -> _Kept:
            nonlocal is_new
            is_new = True
            return load()

        found = self._kept.get(key, loaded)
        with self._lock:
            if not is_new:
                self.hits += 1 if masks is None else masks
            elif masks is None:
                self.misses += 1
        return found

    def forget(self, blob: Digest) -> None:
        """Drop what was made from a blob."""
        self._kept.forget(lambda key, value: blob in cast("tuple[str, tuple[str, ...]]", key)[1])

    def _turn_to(self, state: State) -> None:
        if self._state is not state:
            self._state = state
            self._records = {}
            self._sketches = None


def _byte_count(kept: _Kept) -> int:
    """Memory that a value takes."""
    if isinstance(kept, Composition):
        masks = [part.mask for part in kept.parts] + [member.mask for member in kept.members]
        return sum(_byte_count(mask) for mask in {id(mask): mask for mask in masks}.values())
    if isinstance(kept, ConceptMask):
        return kept.words.nbytes + (0 if kept.factors is None else kept.factors.nbytes)
    return 0 if kept is None else kept.nbytes
