"""Registry: the façade. Every verb of the command line is a method here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from cones_registry.catalog.reader import DEFAULT_TIMEOUT, concepts_of, run_query
from cones_registry.catalog.syncing import SyncReport
from cones_registry.codec import decode
from cones_registry.errors import CorruptDataError
from cones_registry.manifest import Concept, Provenance, Ref, Scope, check_name
from cones_registry.mask import ConceptMask
from cones_registry.registry.bases import Base, Bases
from cones_registry.registry.changes import Changes
from cones_registry.registry.ledger import Ledger, create_root, read_root
from cones_registry.registry.lookup import NEWEST_FIRST, as_ref, find, find_version
from cones_registry.registry.pushing import Push, Pusher, read_history
from cones_registry.registry.quotas import Quotas
from cones_registry.registry.upkeep import Upkeep
from cones_registry.resolver import DEFAULT_MAX_DENSITY, Composition, resolve
from cones_registry.store import open_store

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_OWNER: Final = "local"
"""Owner of refs that name none."""

AnyRef = str | Ref | Concept


class Registry(Upkeep):
    """Concepts under one URL; any number of machines may read and write it at once, with no server.

    Every read sees all that was acknowledged before it began, unless `max_staleness` allows less.
    Safe to use from several threads. Make one with `create` or `open`.

    Attributes:
        url: where it is.
        id: random text, made with the registry.
        read_only: whether changes are refused.
        default_owner: owner of refs that name none.
    """

    def __init__(self, ledger: Ledger, default_owner: str) -> None:
        self.default_owner = check_name(default_owner, "owner")
        self._ledger = ledger
        self._bases = Bases(ledger.store)
        self._quotas = Quotas(ledger)
        self._pusher = Pusher(ledger, self._bases, self._quotas, default_owner)
        self._changes = Changes(ledger, default_owner)

    # -- opening ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str],
        *,
        default_owner: str = DEFAULT_OWNER,
        cache: str | os.PathLike[str] | None = None,
        max_staleness: float = 0.0,
        **storage_options: Any,
    ) -> Registry:
        """Make an empty registry and open it; arguments as for `open`.

        Raises:
            ConflictError: there is one already.
            StoreUnavailableError: the place cannot be written.
        """
        store = open_store(url, **storage_options)
        registry_id = create_root(store)
        ledger = Ledger(
            store, registry_id, read_only=False, cache=cache, max_staleness=max_staleness
        )
        return cls(ledger, default_owner)

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        *,
        read_only: bool = False,
        default_owner: str = DEFAULT_OWNER,
        cache: str | os.PathLike[str] | None = None,
        max_staleness: float = 0.0,
        **storage_options: Any,
    ) -> Registry:
        """Open a registry.

        Args:
            url: a folder, or a URL: `file://`, `memory://`, `s3://`, `gs://`, `az://`.
            read_only: refuse every change.
            default_owner: owner of refs that name none.
            cache: folder for local copies; else `CONES_CACHE`, else the user's cache folder.
            max_staleness: seconds for which reads may go on without asking the store for news;
                `float("inf")`: until `sync` is called.
            storage_options: handed to the file system: credentials, endpoint_url, …

        Raises:
            NotFoundError: no registry is there.
            CorruptDataError: its `cones.json` is damaged or of a later version.
            StoreUnavailableError: the store does not answer.
        """
        store = open_store(url, **storage_options)
        ledger = Ledger(
            store, read_root(store), read_only=read_only, cache=cache, max_staleness=max_staleness
        )
        return cls(ledger, default_owner)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._ledger.store.url

    @property
    def id(self) -> str:
        """Random text, made with the registry."""
        return self._ledger.registry_id

    @property
    def read_only(self) -> bool:
        """Whether changes are refused."""
        return self._ledger.read_only

    def close(self) -> None:
        """Close the local copy."""
        self._ledger.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- writing ----------------------------------------------------------------------------------

    def push(
        self,
        ref: str | Ref,
        mask: ConceptMask,
        *,
        base: Any = None,
        scope: Scope = "prompt",
        tags: Sequence[str] = (),
        note: str = "",
        token: str | None = None,
        class_noun: str | None = None,
        provenance: Provenance | None = None,
        key: str | None = None,
    ) -> Concept:
        """Keep a mask as the next version of a concept.

        Args:
            ref: `[owner/]name`.
            mask: what is kept.
            base: what the mask was made for: a BaseModel or its fingerprint. None: the layer table
                alone is recorded, the weights are not pinned.
            scope: where it acts: "prompt" or "subject".
            tags, note: to find it again.
            token, class_noun: the placeholder and the class word it was learnt with.
            provenance: how it was made.
            key: any text of your own that names this push: pushing with it again, from anywhere,
                returns the version that the first push made. (A push repeated on the same handle
                after StoreUnavailableError needs none.)

        Raises:
            UsageError: a ref with a version or alias, a name, tag or value that cannot be.
            BaseModelMismatchError: mask and base have different layers.
            LimitExceededError: above the owner's quota.
            ConflictError: `key` was used with another mask.
            StoreUnavailableError: the store does not answer; repeat the same push.
        """
        item = Push(str(ref), mask, base, scope, tags, note, token, class_noun, provenance, key)
        return self._pusher.push_many([item])[0]

    def push_many(self, items: Iterable[Any]) -> list[Concept]:
        """Push several masks in one commit: all become visible at once, or none.

        Args:
            items: `Push` objects, `(ref, mask)`, `(ref, mask, {options})` or dicts of `push`'s
                arguments.

        Raises:
            As `push`; nothing is pushed then.
        """
        return self._pusher.push_many(items)

    def alias(
        self, ref: AnyRef, alias: str, *, expect: int | str | Concept | None = None
    ) -> Concept:
        """Let `alias` name the version that `ref` names.

        Args:
            ref: the version.
            alias: as `prod`.
            expect: move it only if it names this version now; 0: only if it names nothing.

        Raises:
            NotFoundError: no such version.
            ConflictError: the alias does not stand where `expect` says.
        """
        return self._changes.alias(ref, alias, expect)

    def tag(self, ref: AnyRef, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Concept:
        """Add and remove keywords of a version; `NotFoundError` if there is none."""
        return self._changes.tag(ref, add, remove)

    def remove(self, ref: AnyRef) -> Concept:
        """Hide a version from get, find and resolve. Its bytes stay until `plan_prune().execute()`.

        Raises:
            NotFoundError: no such version, or removed already.
        """
        return self._changes.remove(ref)

    def restore(self, ref: AnyRef) -> Concept:
        """Show a removed version again; `NotFoundError` if there is none or it was pruned."""
        return self._changes.restore(ref)

    # -- reading ----------------------------------------------------------------------------------

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
