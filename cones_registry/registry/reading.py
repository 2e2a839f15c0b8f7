"""Reading: records, masks, searches, queries, compositions. Mixed into `Registry`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cones_registry.catalog.reader import DEFAULT_TIMEOUT, concepts_of, run_query
from cones_registry.catalog.syncing import SyncReport
from cones_registry.errors import UsageError
from cones_registry.manifest import TUNED, Concept, Ref
from cones_registry.mask import ConceptMask
from cones_registry.registry.bases import Base
from cones_registry.registry.histories import read_history
from cones_registry.registry.lookup import NEWEST_FIRST, as_ref, find, find_version
from cones_registry.registry.pulling import AnyRef, Pulling
from cones_registry.registry.similar import Similar, nearest
from cones_registry.registry.tuned import tuned_for
from cones_registry.resolver import DEFAULT_MAX_DENSITY, Composition, Member, resolve
from cones_registry.resolver.sketch import FORMAT
from cones_registry.resolver.weighting import parse_weighted

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AnyRef", "Reading"]


class Reading(Pulling):
    """Everything that only reads."""

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
        self,
        sql: str,
        params: Sequence[Any] = (),
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        as_text: bool = False,
    ) -> pa.Table:
        """The answer to exactly one SELECT over the tables `concepts` and `aliases`.

        Args:
            sql: the SELECT; each `?` stands for one of `params`.
            params: values.
            timeout: seconds after which it is stopped.
            as_text: columns whose values Python has no like of (intervals, times with a zone,
                dates before Christ, integers of 128 bits …) are DuckDB's own text of them.

        Raises:
            UsageError: not one SELECT, or it cannot run.
            LimitExceededError: it took too long or too much memory.
        """
        return run_query(self._ledger.fresh(), sql, params, timeout=timeout, as_text=as_text)

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
            candidates = find(state, method=TUNED, base=composition.base)
            derived = tuned_for(composition, candidates)
            pairs = self._pull(state, derived)
            return resolve(pairs, max_density=max_density) if derived else composition

        key = (frozenset(wanted), max_density, tuned)
        return self._ledger.memory.composition(state, key, make)

    def similar(self, ref: AnyRef, limit: int = 10) -> list[Similar]:
        """The concepts whose masks have most in common with one version's, the most alike first.

        Sketches in the catalogue name a shortlist; the masks of that are read and compared
        exactly. Other versions of the same concept are left out, and so is what was made for
        another base model, or has lost its blob (`check` names those). With many concepts that have
        next to nothing in common, which of those come last is up to the sketches' error
        (`resolver.sketch`).

        Args:
            ref: the version.
            limit: at most so many.

        Raises:
            NotFoundError, CorruptDataError: as `pull`.
            UsageError: a limit below 1.
        """
        if limit < 1:
            raise UsageError(f"limit is {limit}; expected at least 1")
        state = self._ledger.fresh()
        ((concept, mask),) = self._pull(state, [ref])
        return nearest(
            self._ledger.memory.sketches(state, concept.base),
            mask,
            limit=limit,
            leave_out=Ref(concept.owner, concept.name),
            pull=lambda refs: self._pull_there(state, refs),
        )

    def near_duplicates(
        self, concept: Concept, mask: ConceptMask, *, at_least: float = 0.9, limit: int = 3
    ) -> list[Similar]:
        """Concepts with nearly the mask of one that was just pushed, by their sketches alone.

        Only from what is on this machine already: nothing is asked of the store, so what others
        pushed since the last read is not among them.

        Args:
            concept, mask: what was pushed.
            at_least: estimated Jaccard index.
            limit: at most so many.
        """
        state = self._ledger.copy.state()
        sketch = FORMAT.sketch(mask)
        if state is None or state.is_empty or not sketch:
            return []
        sketches = self._ledger.memory.sketches(state, concept.base)
        found = sketches.nearest(sketch, limit, Ref(concept.owner, concept.name))
        return [
            Similar(str(ref), jaccard, None, exact=False)
            for ref, jaccard in found
            if jaccard >= at_least
        ]

    def base(self, fingerprint: str) -> Base:
        """What is known of a base model: its layer table and source; `NotFoundError` if nothing."""
        return self._bases.get(fingerprint)
