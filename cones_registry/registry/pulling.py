"""Pulling: masks by ref, read once, checked, cut where a share of one is wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from cones_registry.catalog.copy import State
from cones_registry.catalog.reader import concepts_of
from cones_registry.codec import decode, read_ranks
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.manifest import Concept, Ref
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks, cut
from cones_registry.registry.bases import Bases
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.lookup import as_ref, find_versions
from cones_registry.resolver.weighting import check_weight, no_scores

AnyRef = str | Ref | Concept


class MissingBlobError(CorruptDataError):
    """The blob of a version that is in the catalogue is not in the store."""


class Pulling:
    """Records and masks of refs, through the memory of the handle."""

    default_owner: str
    _ledger: Ledger
    _bases: Bases

    def pull(self, ref: AnyRef, *, density: float | None = None) -> ConceptMask:
        """The mask of one version, every byte checked.

        Args:
            ref: the version.
            density: keep only the members that rank highest, so many that this is the density; for
                concepts that were pushed with scores.

        Raises:
            NotFoundError: as `get`.
            CorruptDataError: the stored bytes are not what was pushed, or are gone.
            UsageError: a density above the mask's own, or without scores.
        """
        ((concept, mask),) = self._pull(self._ledger.fresh(), [ref])
        if density is None:
            return mask
        if not 0 <= density <= mask.density:
            raise UsageError(
                f"cannot cut {concept.ref} to density {density:g}; expected 0 to its own, "
                f"{mask.density:g}. For more, extract it again"
            )
        return self._cut(concept, mask, mask.table.count_within(density))

    def pull_many(self, refs: Iterable[AnyRef]) -> list[ConceptMask]:
        """The masks of several versions, in order; equal masks are one object."""
        return [mask for _, mask in self._pull(self._ledger.fresh(), refs)]

    def pull_share(self, ref: AnyRef, weight: float) -> ConceptMask:
        """The part of a version's mask that ranks highest: what `ref*weight` is when resolved.

        Args:
            ref: the version.
            weight: share of its members, (0, 1].

        Raises:
            NotFoundError, CorruptDataError: as `pull`.
            UsageError: a weight outside (0, 1], or a version without scores.
        """
        check_weight(weight, str(ref))
        ((concept, mask),) = self._pull(self._ledger.fresh(), [ref])
        return self._share(concept, mask, weight)

    def pull_ranks(self, ref: AnyRef) -> Ranks | None:
        """How the members of a version's mask compare; None if it was pushed without scores.

        Raises:
            NotFoundError, CorruptDataError: as `pull`.
        """
        (concept,) = self._records(self._ledger.fresh(), [ref])
        return self._ranks(concept)

    def _records(self, state: State, refs: Iterable[AnyRef]) -> list[Concept]:
        wanted = [as_ref(ref, self.default_owner) for ref in refs]
        known = self._ledger.memory.records(state)
        new = [ref for ref in dict.fromkeys(wanted) if ref not in known]
        if new:
            found = concepts_of(state, find_versions(state, new))
            known.update(zip(new, found, strict=True))
        return [known[ref] for ref in wanted]

    def _pull(self, state: State, refs: Iterable[AnyRef]) -> list[tuple[Concept, ConceptMask]]:
        concepts = self._records(state, refs)
        by_blob = {concept.blob_digest: concept for concept in concepts}
        memory = self._ledger.memory.masks

        def load(digest: str) -> tuple[str, ConceptMask]:
            return digest, memory.get(digest, lambda: self._decode(by_blob[digest]))

        new = [digest for digest in by_blob if digest not in memory]
        masks = dict(self._ledger.store.each(load, new)) if len(new) > 1 else {}
        masks |= dict(load(digest) for digest in by_blob if digest not in masks)
        for concept in concepts:
            self._bases.require_table(concept.base, masks[concept.blob_digest], concept.ref)
        return [(concept, masks[concept.blob_digest]) for concept in concepts]

    def _pull_there(
        self, state: State, refs: Iterable[AnyRef]
    ) -> list[tuple[Concept, ConceptMask]]:
        """As `_pull`, without the versions whose blobs are missing."""
        wanted = list(refs)
        with contextlib.suppress(MissingBlobError, NotFoundError):
            return self._pull(state, wanted)
        found = []
        for ref in wanted:
            with contextlib.suppress(MissingBlobError, NotFoundError):
                found += self._pull(state, [ref])
        return found

    def _blob(self, concept: Concept) -> bytes:
        """The bytes of a version's blob."""
        with contextlib.suppress(NotFoundError):
            return self._ledger.blobs.get(concept.blob_digest)
        # What is known of it may be old: a purge of someone with an equal mask made the blob again.
        (version,) = find_versions(self._ledger.fresh_now(), [as_ref(concept, self.default_owner)])
        digest = version.record["blob_digest"]
        with contextlib.suppress(NotFoundError):
            return self._ledger.blobs.get(digest)
        raise MissingBlobError(
            f"the mask of {concept.ref} is gone: its blob {digest} was lost from "
            f"{self._ledger.store.url}, or removed there by hand. Restore it from a backup, or "
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

    def _ranks(self, concept: Concept) -> Ranks | None:
        if not concept.ranked:
            return None
        digest = concept.blob_digest
        return self._ledger.memory.ranks.get(digest, lambda: read_ranks(self._blob(concept)))

    def _cut(self, concept: Concept, mask: ConceptMask, count: int) -> ConceptMask:
        if count == len(mask):
            return mask
        ranks = self._ranks(concept)
        if ranks is None:
            raise no_scores(concept.ref)
        return cut(mask, ranks, count)

    def _share(self, concept: Concept, mask: ConceptMask, weight: float) -> ConceptMask:
        return self._cut(concept, mask, max(round(weight * len(mask)), min(len(mask), 1)))
