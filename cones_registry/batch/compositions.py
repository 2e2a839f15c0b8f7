"""Concepts of a run on their way into memory: pinned records to compositions, fetched ahead."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from cones_registry.batch.byte_cache import ByteCache
from cones_registry.batch.plan import Chunk
from cones_registry.errors import ConesError, CorruptDataError, UsageError
from cones_registry.manifest import Concept
from cones_registry.mask import ConceptMask
from cones_registry.resolver import Composition, resolve

DEFAULT_MASK_BYTES = 1 << 30


class MaskSource(Protocol):
    """What a registry is to a batch."""

    def get(self, ref: str) -> Concept: ...
    def pull(self, ref: str) -> ConceptMask: ...


def mask_bytes(mask: ConceptMask) -> int:
    """Memory of a mask's words and factors."""
    return mask.words.nbytes + (0 if mask.factors is None else mask.factors.nbytes)


class Compositions:
    """Resolves pinned concepts; masks stay in memory by digest, up to ``limit`` bytes.

    source: the open registry; None where a run names no concept at all.
    """

    def __init__(self, source: MaskSource | None, *, limit: int = DEFAULT_MASK_BYTES) -> None:
        self._source = source
        self._masks: ByteCache[ConceptMask] = ByteCache(limit, mask_bytes)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="cones-prefetch")

    def get(self, concepts: tuple[Concept, ...]) -> Composition | None:
        """The composition of exactly these versions, None for no concept at all.

        Raises CorruptDataError if a ref has another mask than when the run began, and what
        ``resolve`` raises for concepts that do not go together.
        """
        if not concepts:
            return None
        return resolve([(concept, self._mask(concept)) for concept in concepts])

    def pin(self, ref: str) -> Concept:
        """The record of the version that ``ref`` names now; NotFoundError if there is none."""
        return self._opened(ref).get(ref)

    def prefetch(self, chunk: Chunk) -> Future[None]:
        """Load the masks of ``chunk`` in the background; a failure shows when they are used."""
        concepts = {
            concept.ref: concept for picture in chunk.pictures for concept in picture.concepts
        }
        return self._ahead.submit(self._load, concepts.values())

    def close(self) -> None:
        """Stop fetching ahead."""
        self._ahead.shutdown(cancel_futures=True)

    def _opened(self, ref: str) -> MaskSource:
        if self._source is None:
            raise UsageError(f"{ref!r} is asked for, but no registry was given")
        return self._source

    def _load(self, concepts: Iterable[Concept]) -> None:
        for concept in concepts:
            try:
                self._mask(concept)
            except ConesError:
                return

    def _mask(self, concept: Concept) -> ConceptMask:
        def pull() -> ConceptMask:
            mask = self._opened(concept.ref).pull(concept.ref)
            if mask.digest != concept.mask_digest:
                raise CorruptDataError(
                    f"{concept.ref} has mask {mask.digest}, but {concept.mask_digest} when the run "
                    "began. A version names one mask for ever: check the registry (cones check)"
                )
            return mask

        return self._masks.get(concept.mask_digest, pull)
