"""Pull: masks by ref, read once, checked, cut where a share of one is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from cones_registry.catalog.copy import State
from cones_registry.catalog.reader import concepts_of
from cones_registry.codec import decode, read_ranks
from cones_registry.errors import CorruptDataError, NotFoundError
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks
from cones_registry.ranking import cut as cut_mask
from cones_registry.record import Concept
from cones_registry.registry.bases import Bases
from cones_registry.registry.cold import MOST_CONCEPTS, look_up
from cones_registry.registry.find import AnyRef, as_ref, find_versions
from cones_registry.registry.session import Session
from cones_registry.weighting import no_scores


class MissingBlobError(CorruptDataError):
    """The blob of a version that is in the catalogue is not in the store."""


class Puller:
    """Records and masks of refs, through the memory of the handle."""

    def __init__(self, session: Session, bases: Bases, default_owner: str) -> None:
        self._session = session
        self._bases = bases
        self._default_owner = default_owner

    def records(self, state: State | None, refs: Iterable[AnyRef]) -> list[Concept]:
        """The versions that refs name, in order, without loss histories.

        ``state`` is None on a machine that has no local copy: a few refs are looked up alone.
        """
        wanted = [as_ref(ref, self._default_owner) for ref in refs]
        if state is None and len(set(wanted)) <= MOST_CONCEPTS:
            each = [look_up(self._session, ref) for ref in wanted]
            if None not in each:
                return [concept for concept in each if concept is not None]
        state = state or self._session.fresh()
        known = self._session.memory.records(state)
        new = [ref for ref in dict.fromkeys(wanted) if ref not in known]
        if new:
            found = concepts_of(state, find_versions(state, new))
            known.update(zip(new, found, strict=True))
        return [known[ref] for ref in wanted]

    def pull(
        self, state: State | None, refs: Iterable[AnyRef]
    ) -> list[tuple[Concept, ConceptMask]]:
        """(version, mask) of each ref, in order; equal masks are one object."""
        concepts = self.records(state, refs)
        return list(zip(concepts, self.masks(concepts), strict=True))

    def masks(self, concepts: Sequence[Concept]) -> list[ConceptMask]:
        """The masks of versions whose records are known, in order; equal masks are one object."""
        by_blob = {concept.blob_digest: concept for concept in concepts}
        memory = self._session.memory

        def load(digest: str) -> tuple[str, ConceptMask]:
            return digest, memory.mask(digest, lambda: self._decode(by_blob[digest]))

        new = [digest for digest in by_blob if digest not in memory]
        masks = dict(self._session.store.each(load, new)) if len(new) > 1 else {}
        masks |= dict(load(digest) for digest in by_blob if digest not in masks)
        for concept in concepts:
            self._bases.require_table(concept.base, masks[concept.blob_digest], concept.ref)
        return [masks[concept.blob_digest] for concept in concepts]

    def pull_there(self, state: State, refs: Iterable[AnyRef]) -> list[tuple[Concept, ConceptMask]]:
        """As `_pull`, without the versions whose blobs are missing."""
        wanted = list(refs)
        with contextlib.suppress(MissingBlobError, NotFoundError):
            return self.pull(state, wanted)
        found = []
        for ref in wanted:
            with contextlib.suppress(MissingBlobError, NotFoundError):
                found += self.pull(state, [ref])
        return found

    def _blob(self, concept: Concept) -> bytes:
        """The bytes of a version's blob."""
        with contextlib.suppress(NotFoundError):
            return self._session.masks.get(concept.blob_digest)
        raise MissingBlobError(
            f"the mask of {concept.ref} is gone: its object {concept.blob_digest} was lost from "
            f"{self._session.store.url}, or removed there by hand. Restore it from a backup, or "
            "push the mask again. To see what else is missing: cones check"
        )

    def _decode(self, concept: Concept) -> ConceptMask:
        mask = decode(self._blob(concept))
        if mask.digest != concept.mask_digest:
            raise CorruptDataError(
                f"blob {concept.blob_digest} holds mask {mask.digest}, but {concept.ref} is "
                f"{concept.mask_digest}. See: cones check --read-data"
            )
        return mask

    def ranks(self, concept: Concept) -> Ranks | None:
        """How the members of a version's mask compare; None if it was pushed without scores."""
        if not concept.ranked:
            return None
        digest = concept.blob_digest
        return self._session.memory.ranks(digest, lambda: read_ranks(self._blob(concept)))

    def cut(self, concept: Concept, mask: ConceptMask, count: int) -> ConceptMask:
        """The ``count`` members of a mask that rank highest."""
        if count == len(mask):
            return mask
        ranks = self.ranks(concept)
        if ranks is None:
            raise no_scores(concept.ref)
        return cut_mask(mask, ranks, count)

    def share(self, concept: Concept, mask: ConceptMask, weight: float) -> ConceptMask:
        """The part of a mask that ``ref*weight`` stands for."""
        return self.cut(concept, mask, max(round(weight * len(mask)), min(len(mask), 1)))
