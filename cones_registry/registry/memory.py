"""Memory: what one handle of a registry has read, so that reading it again costs little."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from cones_registry.catalog.copy import State
from cones_registry.digest import Digest
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks
from cones_registry.record import Concept
from cones_registry.refs import Ref
from cones_registry.registry.cache import ByteCache
from cones_registry.registry.similar import Sketches
from cones_registry.resolver import Composition

MASK_BYTES: Final = 256 * 2**20
"""Of decoded masks: a hundred of Stable Diffusion 1.x."""

_MOST_RECORDS: Final = 10_000
_MOST_COMPOSITIONS: Final = 16


class Memory:
    """Decoded masks by blob, and what refs came to in the current state of the catalogue.

    Masks never change under their digest and may stay. What a ref names, and the aliases and tags
    of a record, are of one state: with the next one they are looked up again.
    """

    def __init__(self, mask_bytes: int = MASK_BYTES) -> None:
        self.masks: ByteCache[ConceptMask] = ByteCache(mask_bytes, byte_count)
        self.ranks: ByteCache[Ranks | None] = ByteCache(mask_bytes // 4, _ranks_bytes)
        self._lock = threading.Lock()
        self._state: State | None = None
        self._records: dict[Ref, Concept] = {}
        self._compositions: OrderedDict[Hashable, Composition] = OrderedDict()
        self._sketches: tuple[Digest, Sketches] | None = None

    def records(self, state: State) -> dict[Ref, Concept]:
        """What refs name in `state`; to be added to by whoever looks one up."""
        with self._lock:
            self._turn_to(state)
            if len(self._records) > _MOST_RECORDS:
                self._records = {}
            return self._records

    def composition(
        self, state: State, key: Hashable, make: Callable[[], Composition]
    ) -> Composition:
        """The composition of `key` in `state`, made if it is not there."""
        with self._lock:
            self._turn_to(state)
            found = self._compositions.get(key)
            if found is not None:
                self._compositions.move_to_end(key)
                return found
        made = make()
        with self._lock:
            if self._state is state:
                self._compositions[key] = made
                while len(self._compositions) > _MOST_COMPOSITIONS:
                    self._compositions.popitem(last=False)
        return made

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

    def forget(self, blob: Digest) -> None:
        """Drop what was decoded from a blob."""
        self.masks.forget(blob)
        self.ranks.forget(blob)

    def _turn_to(self, state: State) -> None:
        if self._state is not state:
            self._state = state
            self._records = {}
            self._compositions = OrderedDict()
            self._sketches = None


def byte_count(mask: ConceptMask) -> int:
    """Memory that a mask takes."""
    return mask.words.nbytes + (0 if mask.factors is None else mask.factors.nbytes)


def _ranks_bytes(ranks: Ranks | None) -> int:
    return 0 if ranks is None else ranks.nbytes
