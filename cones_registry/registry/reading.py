"""Reading: records, masks, searches, queries, compositions. Mixed into `Registry`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cones_registry.catalog.reader import DEFAULT_TIMEOUT, concepts_of, run_query
from cones_registry.catalog.syncing import SyncReport
from cones_registry.codec import decode
from cones_registry.errors import CorruptDataError
from cones_registry.manifest import Concept, Ref
from cones_registry.mask import ConceptMask
from cones_registry.registry.bases import Base, Bases
from cones_registry.registry.drafts import read_history
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.lookup import NEWEST_FIRST, as_ref, find, find_version
from cones_registry.resolver import DEFAULT_MAX_DENSITY, Composition, resolve

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

    def pull(self, ref: AnyRef) -> ConceptMask:
        """The mask of one version, every byte checked.

        Raises:
            NotFoundError: as `get`.
            CorruptDataError: the stored bytes are not what was pushed.
        """
        return self.pull_many([ref])[0]

    def pull_many(self, refs: Iterable[AnyRef]) -> list[ConceptMask]:
        """The masks of several versions, in order; equal masks are one object."""
        return [mask for _, mask in self._pull(refs)]

    def _pull(self, refs: Iterable[AnyRef]) -> list[tuple[Concept, ConceptMask]]:
        state = self._ledger.fresh()
        versions = [find_version(state, as_ref(ref, self.default_owner)) for ref in refs]
        concepts = concepts_of(state, versions)
        masks: dict[str, ConceptMask] = {}
        by_blob = {concept.blob_digest: concept for concept in concepts}
        for digest, data in self._ledger.blobs.get_many(by_blob):
            concept = by_blob[digest]
            mask = decode(data)
            if mask.digest != concept.mask_digest:
                raise CorruptDataError(
                    f"blob {digest} holds mask {mask.digest}, but {concept.ref} is "
                    f"{concept.mask_digest}. See: cones check --read-data"
                )
            masks[digest] = mask
        for concept in concepts:
            self._bases.require_table(concept.base, masks[concept.blob_digest], concept.ref)
        return [(concept, masks[concept.blob_digest]) for concept in concepts]

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

    def resolve(self, *refs: AnyRef, max_density: float = DEFAULT_MAX_DENSITY) -> Composition:
        """What several concepts come to; the order of the refs does not matter.

        Raises:
            NotFoundError, CorruptDataError: as `pull`.
            BaseModelMismatchError, ConflictError, LimitExceededError: they do not go together; see
                `cones_registry.resolver.resolve`.
        """
        return resolve(self._pull(refs), max_density=max_density)

    def base(self, fingerprint: str) -> Base:
        """What is known of a base model: its layer table and source; `NotFoundError` if nothing."""
        return self._bases.get(fingerprint)
