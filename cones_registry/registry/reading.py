"""Reading: records, masks, searches, queries, compositions. Mixed into `Registry`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cones_registry.catalog.copy import State
from cones_registry.catalog.reader import DEFAULT_TIMEOUT, concepts_of, run_query
from cones_registry.catalog.syncing import SyncReport
from cones_registry.codec import decode, read_ranks
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.manifest import Concept, Ref
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks, cut
from cones_registry.registry.bases import Base, Bases
from cones_registry.registry.drafts import read_history
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.lookup import NEWEST_FIRST, as_ref, find, find_version
from cones_registry.registry.tuned import METHOD, tuned_for
from cones_registry.resolver import DEFAULT_MAX_DENSITY, Composition, Member, resolve
from cones_registry.resolver.weighting import parse_weighted

if TYPE_CHECKING:
    import pyarrow as pa

AnyRef = str | Ref | Concept


class Reading:
    """Everything that only reads."""

    default_owner: str
    _ledger: Ledger
    _bases: Bases

    def sync(self) -> SyncReport:
        """Bring the local copy up to the store: one listing and the objects that are new."""
        return self._ledger.sync()

    def get(self, ref: AnyRef) -> Concept:
        """The record of one version, with its whole provenance.

        Raises:
            NotFoundError: no such concept, version, alias or mask, or it was removed.
        """
        state = self._ledger.fresh()
        version = find_version(state, as_ref(ref, self.default_owner))
        concept = concepts_of(state, [version])[0]
        if version.history and concept.provenance is not None:
            history = read_history(self._ledger, concept.blob_digest)
            provenance = dataclasses.replace(concept.provenance, history=history)
            concept = dataclasses.replace(concept, provenance=provenance)
        return concept

    def pull(self, ref: AnyRef, *, density: float | None = None) -> ConceptMask:
        """The mask of one version, every byte checked.

        Args:
            ref: the version.
            density: keep only the members that rank highest, so many that this is the density; for
                concepts that were pushed with scores.

        Raises:
            NotFoundError: as `get`.
            CorruptDataError: the stored bytes are not what was pushed.
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
        return self._cut(concept, mask, round(density * mask.table.neuron_count))

    def pull_many(self, refs: Iterable[AnyRef]) -> list[ConceptMask]:
        """The masks of several versions, in order; equal masks are one object."""
        return [mask for _, mask in self._pull(self._ledger.fresh(), refs)]

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
            found = concepts_of(state, [find_version(state, ref) for ref in new])
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

    def _decode(self, concept: Concept) -> ConceptMask:
        mask = decode(self._ledger.blobs.get(concept.blob_digest))
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
        return self._ledger.memory.ranks.get(
            digest, lambda: read_ranks(self._ledger.blobs.get(digest))
        )

    def _cut(self, concept: Concept, mask: ConceptMask, count: int) -> ConceptMask:
        if count == len(mask):
            return mask
        ranks = self._ranks(concept)
        if ranks is None:
            raise UsageError(
                f"{concept.ref} keeps no scores, so nobody can say which of its {len(mask)} "
                "neurons count most. Extract it again with --keep-scores, or push it with scores="
            )
        return cut(mask, ranks, count)

    def find(
        self,
        *,
        owner: str | None = None,
        name: str | None = None,
        tag: str | Iterable[str] | None = None,
        base: Any = None,
        scope: str | None = None,
        alias: str | None = None,
        token: str | None = None,
        method: str | None = None,
        mask_digest: str | None = None,
        text: str | None = None,
        removed: bool = False,
        where: tuple[str, Sequence[Any]] | None = None,
        order_by: str = NEWEST_FIRST,
        limit: int | None = None,
    ) -> list[Concept]:
        """Versions that fit every condition given, newest first; loss histories are left out.

        Args:
            owner, name: exact; `name` may be `owner/name`.
            tag: a tag, or several that must all be there.
            base: a fingerprint or BaseModel.
            scope, alias, token, method, mask_digest: exact.
            text: part of owner, name, note, token, class noun or tags, in any case.
            removed: those that were removed and can be restored, instead of those in use.
            where: an SQL condition over `concepts`, with its values.
            order_by: SQL order of the columns of `concepts`.
            limit: at most so many.
        """
        return find(
            self._ledger.fresh(),
            owner=owner,
            name=name,
            tag=tag,
            base=base,
            scope=scope,
            alias=alias,
            token=token,
            method=method,
            mask_digest=mask_digest,
            text=text,
            removed=removed,
            where=where,
            order_by=order_by,
            limit=limit,
            default_owner=self.default_owner,
        )

    def query(
        self, sql: str, params: Sequence[Any] = (), *, timeout: float | None = DEFAULT_TIMEOUT
    ) -> pa.Table:
        """The answer to exactly one SELECT over the tables `concepts` and `aliases`.

        Args:
            sql: the SELECT; each `?` stands for one of `params`.
            params: values.
            timeout: seconds after which it is stopped.

        Raises:
            UsageError: not one SELECT, or it cannot run.
            LimitExceededError: it took too long or too much memory.
        """
        return run_query(self._ledger.fresh(), sql, params, timeout=timeout)

    def resolve(
        self, *refs: AnyRef, max_density: float = DEFAULT_MAX_DENSITY, tuned: bool = False
    ) -> Composition:
        """What several concepts come to; the order of the refs does not matter.

        Args:
            refs: `"alice/dog"`, or `"alice/dog*0.7"`: only the 70 % of its neurons that rank
                highest; for concepts that were pushed with scores.
            max_density: largest share of the neurons that all together may shut.
            tuned: where joint tuning made masks for exactly these (`Extractor.tune`), and they were
                pushed, resolve to those; else to the concepts themselves.

        Raises:
            NotFoundError, CorruptDataError: as `pull`.
            UsageError: a weight outside (0, 1], or of a concept without scores.
            BaseModelMismatchError, ConflictError, LimitExceededError: they do not go together; see
                `cones_registry.resolver.resolve`.
        """
        state = self._ledger.fresh()
        weighted = [parse_weighted(ref) if isinstance(ref, str) else (ref, 1.0) for ref in refs]
        wanted = [(as_ref(ref, self.default_owner), weight) for ref, weight in weighted]

        def make() -> Composition:
            found = self._pull(state, [ref for ref, _ in wanted])
            members = [
                Member(concept, self._share(concept, mask, weight), weight)
                for (concept, mask), (_, weight) in zip(found, wanted, strict=True)
            ]
            composition = resolve(members, max_density=max_density)
            if not tuned:
                return composition
            candidates = find(state, method=METHOD, base=composition.base)
            derived = tuned_for(composition, candidates)
            pairs = self._pull(state, derived)
            return resolve(pairs, max_density=max_density) if derived else composition

        key = (frozenset(wanted), max_density, tuned)
        return self._ledger.memory.composition(state, key, make)

    def _share(self, concept: Concept, mask: ConceptMask, weight: float) -> ConceptMask:
        return self._cut(concept, mask, max(round(weight * len(mask)), min(len(mask), 1)))

    def base(self, fingerprint: str) -> Base:
        """What is known of a base model: its layer table and source; `NotFoundError` if nothing."""
        return self._bases.get(fingerprint)
