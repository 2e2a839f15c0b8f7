"""Registry: the façade. Every verb of the command line is a method here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import numpy.typing as npt

from cones_registry.manifest import Concept, Provenance, Ref, Scope, check_name
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks
from cones_registry.registry.bases import Bases
from cones_registry.registry.changes import Changes
from cones_registry.registry.drafts import Push
from cones_registry.registry.ledger import Ledger, create_root, read_root
from cones_registry.registry.pushing import Pusher
from cones_registry.registry.quotas import Quotas
from cones_registry.registry.reading import AnyRef, Reading
from cones_registry.registry.upkeep import Upkeep
from cones_registry.store import Store, open_store

DEFAULT_OWNER: Final = "local"
"""Owner of refs that name none."""


class Registry(Reading, Upkeep):
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
        url: str | os.PathLike[str] | Store,
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
        url: str | os.PathLike[str] | Store,
        *,
        read_only: bool = False,
        default_owner: str = DEFAULT_OWNER,
        cache: str | os.PathLike[str] | None = None,
        max_staleness: float = 0.0,
        **storage_options: Any,
    ) -> Registry:
        """Open a registry.

        Args:
            url: a folder, or a URL: `file://`, `memory://`, `s3://`, `gs://`, `az://`; or a Store.
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
        scores: Mapping[str, npt.NDArray[Any]] | Ranks | None = None,
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
                at the same moment or later, returns the version that the first push made. (A push
                repeated on the same handle after StoreUnavailableError needs none.)
            scores: what the neurons were chosen by, as `Extraction.scores`: layer name -> float
                [out, in]. Four bits a neuron of it are kept, so that the mask can be cut later.

        Raises:
            UsageError: a ref with a version or alias, a name, tag or value that cannot be.
            BaseModelMismatchError: mask and base have different layers.
            LimitExceededError: above the owner's quota.
            ConflictError: `key` was used with another mask, or its version was removed since.
            StoreUnavailableError: the store does not answer; repeat the same push.
        """
        item = Push(
            str(ref), mask, base, scope, tags, note, token, class_noun, provenance, key, scores
        )
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
