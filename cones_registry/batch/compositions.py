"""Concepts of a run on their way into memory: pinned records to compositions, fetched ahead."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from cones_registry.batch.plan import Chosen, Chunk
from cones_registry.errors import ConesError, UsageError
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.record import Concept
from cones_registry.resolver import DEFAULT_MAX_DENSITY, Composition, Member, resolve
from cones_registry.weighting import no_scores

if TYPE_CHECKING:
    from cones_registry.registry import Registry

_NO_MASK = ConceptMask.empty(LayerTable.from_shapes({"none": (1, 1)}))


class Compositions:
    """Pinned concepts of a run, resolved by the registry, which keeps in memory what it made.

    ``with Compositions(registry) as compositions:`` stops its fetching ahead at the end.

    Args:
        registry: The open registry; None where a run names no concept at all.
    """

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="cones-prefetch")

    def get(
        self, concepts: tuple[Chosen, ...], named: tuple[Chosen, ...] = ()
    ) -> Composition | None:
        """The composition of exactly these versions, None for no concept at all.

        Args:
            concepts: Those given by ref.
            named: Those that a prompt names; they may share tokens.

        Raises:
            CorruptDataError: A stored mask is gone, or not the one with which the run began.
            UsageError, BaseModelMismatchError, ConflictError, LimitExceededError: The concepts do
                not go together.
        """
        if not (concepts or named):
            return None
        first = (*concepts, *named)[0]
        return self._opened(first.ref).resolve_pinned(
            [(each.concept, each.weight) for each in concepts],
            named=[(each.concept, each.weight) for each in named],
        )

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
        return self._registry is not None

    def _opened(self, ref: str) -> Registry:
        if self._registry is None:
            raise UsageError(f"{ref!r} is asked for, but no registry was given")
        return self._registry

    def _load(self, wanted: Iterable[tuple[tuple[Chosen, ...], tuple[Chosen, ...]]]) -> None:
        for concepts, named in wanted:
            with suppress(ConesError):
                self.get(concepts, named)
