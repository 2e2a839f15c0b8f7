"""Concepts of a run on their way into memory: pinned records to compositions, fetched ahead."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol, Self

from cones_registry.batch.plan import Chosen, Chunk
from cones_registry.errors import ConesError, CorruptDataError, UsageError
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.record import Concept
from cones_registry.registry.cache import ByteCache
from cones_registry.resolver import DEFAULT_MAX_DENSITY, Composition, Member, resolve
from cones_registry.weighting import no_scores

DEFAULT_MASK_BYTES = 1 << 30
_NO_MASK = ConceptMask.empty(LayerTable.from_shapes({"none": (1, 1)}))


class MaskSource(Protocol):
    """What a registry is to a batch."""

    def get(self, ref: str) -> Concept: ...
    def pull(self, ref: str) -> ConceptMask: ...
    def pull_share(self, ref: str, weight: float) -> ConceptMask: ...


def mask_bytes(mask: ConceptMask) -> int:
    """Memory of a mask's words and factors."""
    return mask.words.nbytes + (0 if mask.factors is None else mask.factors.nbytes)


def composition_bytes(composition: Composition) -> int:
    """Memory of a composition's masks, whether or not others hold them too."""
    return sum(mask_bytes(part.mask) for part in composition.parts)


def _identity(concepts: tuple[Chosen, ...]) -> tuple[tuple[str, float, str], ...]:
    return tuple(
        sorted((each.concept.ref, each.weight, each.concept.mask_digest) for each in concepts)
    )


class Compositions:
    """Resolves pinned concepts; what it made stays in memory, up to ``limit`` bytes in all.

    source: the open registry; None where a run names no concept at all.
    ``with Compositions(registry) as compositions:`` stops its fetching ahead at the end.
    """

    def __init__(self, source: MaskSource | None, *, limit: int = DEFAULT_MASK_BYTES) -> None:
        self._source = source
        self._masks: ByteCache[ConceptMask] = ByteCache(limit // 2, mask_bytes)
        self._resolved: ByteCache[Composition] = ByteCache(limit // 2, composition_bytes)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="cones-prefetch")

    def get(
        self, concepts: tuple[Chosen, ...], named: tuple[Chosen, ...] = ()
    ) -> Composition | None:
        """The composition of exactly these versions, None for no concept at all.

        named: those that a prompt names; they may share tokens.

        Raises CorruptDataError if a ref has another mask than when the run began, and what
        ``resolve`` raises for concepts that do not go together.
        """
        if not (concepts or named):
            return None
        key = (_identity(concepts), _identity(named))

        def make() -> Composition:
            return resolve(
                [self._member(each) for each in concepts],
                named=[self._member(each) for each in named],
            )

        return self._resolved.get(key, make)

    def check(self, concepts: tuple[Chosen, ...], named: tuple[Chosen, ...] = ()) -> None:
        """Raise what ``get`` would for concepts that do not go together.

        Bases and tokens are in the records, and masks of small densities have a small union: only
        near the limit of density are masks fetched to find out.
        """
        every = (*concepts, *named)
        for each in every:
            if each.weight != 1 and not each.concept.ranked:
                raise no_scores(each.concept.ref)
        most = {(each.concept.mask_digest, each.weight): each.concept.density for each in every}
        if sum(density * weight for (_, weight), density in most.items()) <= DEFAULT_MAX_DENSITY:
            if every:
                resolve(
                    [Member(each.concept, _NO_MASK, each.weight) for each in concepts],
                    named=[Member(each.concept, _NO_MASK, each.weight) for each in named],
                )
            return
        self.get(concepts, named)

    def pin(self, ref: str) -> Concept:
        """The record of the version that ``ref`` names now; NotFoundError if there is none."""
        return self._opened(ref).get(ref)

    def prefetch(self, chunk: Chunk) -> Future[None]:
        """Resolve what ``chunk`` needs in the background; a failure shows when it is used."""
        wanted = {picture.refs: (picture.concepts, picture.named) for picture in chunk.pictures}
        return self._ahead.submit(self._load, wanted.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop fetching ahead; what waits to be fetched no longer is."""
        self._ahead.shutdown(cancel_futures=True)

    @property
    def has_registry(self) -> bool:
        """Whether refs can be looked up at all."""
        return self._source is not None

    def _opened(self, ref: str) -> MaskSource:
        if self._source is None:
            raise UsageError(f"{ref!r} is asked for, but no registry was given")
        return self._source

    def _load(self, wanted: Iterable[tuple[tuple[Chosen, ...], tuple[Chosen, ...]]]) -> None:
        for concepts, named in wanted:
            with suppress(ConesError):
                self.get(concepts, named)

    def _member(self, chosen: Chosen) -> Member:
        mask = self._mask(chosen.concept)
        if chosen.weight != 1:
            mask = self._opened(chosen.ref).pull_share(chosen.concept.ref, chosen.weight)
        return Member(chosen.concept, mask, chosen.weight)

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
