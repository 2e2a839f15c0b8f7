"""Registry: the façade. Every verb of the command line is a method here."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt

from cones_registry.catalog.history import Happening
from cones_registry.catalog.keys import preview_key
from cones_registry.catalog.reader import DEFAULT_TIMEOUT, run_query, versions_where
from cones_registry.catalog.syncing import SyncReport
from cones_registry.digest import require_digest
from cones_registry.errors import UsageError
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks
from cones_registry.record import TUNED, Concept, Provenance, Scope
from cones_registry.refs import Ref, check_name
from cones_registry.registry import archive, check, claims, compaction, export, history, prune
from cones_registry.registry.aliases_and_tags import Changes
from cones_registry.registry.bases import Base, Bases
from cones_registry.registry.check import Checker, CheckReport
from cones_registry.registry.compaction import CompactReport
from cones_registry.registry.drafts import Pushable
from cones_registry.registry.find import NEWEST_FIRST, AnyRef, as_ref, find
from cones_registry.registry.mask_files import CachedBlob
from cones_registry.registry.memory import DEFAULT_BYTES
from cones_registry.registry.plan_files import Plan, load_plan, save_plan
from cones_registry.registry.prune import PrunePlan
from cones_registry.registry.pull import Puller
from cones_registry.registry.purge import PurgePlan, plan_purge
from cones_registry.registry.push import Pusher
from cones_registry.registry.quotas import Quota, Quotas, usage
from cones_registry.registry.session import OnProgress, Session, create_root, read_root
from cones_registry.registry.similar import Similar, nearest
from cones_registry.registry.statistics import Statistics, statistics
from cones_registry.registry.sync import SyncPlan, plan_sync
from cones_registry.registry.tuned import tuned_for
from cones_registry.resolver import DEFAULT_MAX_DENSITY, Composition, Member, resolve
from cones_registry.resolver.sketch import FORMAT
from cones_registry.store import Store, open_store
from cones_registry.weighting import check_weight, parse_weighted

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_OWNER: Final = "local"
"""Owner of refs that name none."""


class Registry:
    """Concepts under one URL; any number of machines may read and write it at once, with no server.

    Every read sees all that was acknowledged before it began, unless `max_staleness` allows less.
    Safe to use from several threads. Make one with `create` or `open`.

    Attributes:
        url: where it is.
        id: random text, made with the registry.
        read_only: whether changes are refused.
        default_owner: owner of refs that name none.
    """

    def __init__(self, session: Session, default_owner: str) -> None:
        self.default_owner = check_name(default_owner, "owner")
        self._session = session
        self._bases = Bases(session.store)
        self._quotas = Quotas(session)
        self._pusher = Pusher(session, self._bases, self._quotas, default_owner)
        self._changes = Changes(session, default_owner)
        self._puller = Puller(session, self._bases, default_owner)

    # -- opening ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str] | Store,
        *,
        default_owner: str = DEFAULT_OWNER,
        cache: str | os.PathLike[str] | None = None,
        max_staleness: float = 0.0,
        memory: int = DEFAULT_BYTES,
        **storage_options: Any,
    ) -> Registry:
        """Make an empty registry and open it; arguments as for `open`.

        Raises:
            ConflictError: there is one already.
            StoreUnavailableError: the place cannot be written.
        """
        store = open_store(url, **storage_options)
        registry_id = create_root(store)
        session = Session(
            store,
            registry_id,
            read_only=False,
            cache=cache,
            max_staleness=max_staleness,
            memory=memory,
        )
        return cls(session, default_owner)

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str] | Store,
        *,
        read_only: bool = False,
        default_owner: str = DEFAULT_OWNER,
        cache: str | os.PathLike[str] | None = None,
        max_staleness: float = 0.0,
        memory: int = DEFAULT_BYTES,
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
            memory: bytes of decoded masks and compositions that are kept for the next read.
            storage_options: handed to the file system: credentials, endpoint_url, …

        Raises:
            NotFoundError: no registry is there.
            CorruptDataError: its `cones.json` is damaged or of a later version.
            StoreUnavailableError: the store does not answer.
        """
        store = open_store(url, **storage_options)
        session = Session(
            store,
            read_root(store),
            read_only=read_only,
            cache=cache,
            max_staleness=max_staleness,
            memory=memory,
        )
        return cls(session, default_owner)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._session.store.url

    @property
    def id(self) -> str:
        """Random text, made with the registry."""
        return self._session.registry_id

    @property
    def read_only(self) -> bool:
        """Whether changes are refused."""
        return self._session.read_only

    @property
    def on_progress(self) -> OnProgress | None:
        """Is told of long work: ``(what, done, total)``, as ("exporting", 3, 20)."""
        return self._session.on_progress

    @on_progress.setter
    def on_progress(self, told: OnProgress | None) -> None:
        self._session.on_progress = told

    def __repr__(self) -> str:
        mode = ", read only" if self.read_only else ""
        return f"Registry({self.url!r}{mode})"

    def close(self) -> None:
        """Close the local copy."""
        self._session.close()

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
        mask: ConceptMask | Pushable,
        *,
        base: Any = None,
        scope: Scope | None = None,
        tags: Sequence[str] = (),
        note: str = "",
        token: str | None = None,
        class_noun: str | None = None,
        provenance: Provenance | None = None,
        key: str | None = None,
        scores: Mapping[str, npt.NDArray[Any]] | Ranks | None = None,
        previews: Sequence[bytes] = (),
    ) -> Concept:
        """Keep a mask as the next version of a concept.

        An `Extraction` or a `Tuning` brings along what belongs to it: base, scope, words,
        provenance; what is given here takes its place. Of a `Tuning` with several masks the first
        one's version is returned; they are pushed together.

        Args:
            ref: `[owner/]name`.
            mask: what is kept: a mask, an `Extraction` or a `Tuning`.
            base: what the mask was made for: a BaseModel or its fingerprint. None: the layer table
                alone is recorded, the weights are not pinned.
            scope: where it acts: "prompt" or "subject". A bare mask needs it.
            tags, note: to find it again.
            token, class_noun: the placeholder and the class word it was learnt with.
            provenance: how it was made.
            key: any text of your own that names this push: pushing with it again, from anywhere,
                at the same moment or later, returns the version that the first push made. (A push
                repeated on the same handle after StoreUnavailableError needs none.)
            scores: what the neurons were chosen by, as `Extraction.scores`: layer name -> float
                [out, in]. Four bits a neuron of it are kept, so that the mask can be cut later.
            previews: pictures of it, each the bytes of a WebP file of at most 1 MiB.

        Raises:
            UsageError: a ref with a version or alias, a name, tag or value that cannot be; a bare
                mask without its scope.
            BaseModelMismatchError: mask and base have different layers.
            LimitExceededError: above the owner's quota.
            ConflictError: `key` was used with another mask, or its version was removed since.
            StoreUnavailableError: the store does not answer; repeat the same push.
        """
        given = {
            "base": base,
            "scope": scope,
            "tags": tags,
            "note": note,
            "token": token,
            "class_noun": class_noun,
            "provenance": provenance,
            "key": key,
            "scores": scores,
            "previews": previews,
        }
        options = {name: value for name, value in given.items() if value is not None}
        return self._pusher.push_many([(str(ref), mask, options)])[0]

    def push_many(self, items: Iterable[Any]) -> list[Concept]:
        """Push several masks in one commit: all become visible at once, or none.

        Args:
            items: `Push` objects, `(ref, mask)`, `(ref, mask, {options})` or dicts of `push`'s
                arguments; an `Extraction` or a `Tuning` may stand for a mask.

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

    # -- reading ---------------------------------------------------------------------------------

    def sync(self) -> SyncReport:
        """Bring the local copy up to the store: one listing and the objects that are new."""
        return self._session.sync()

    def get(self, ref: AnyRef) -> Concept:
        """The record of one version, with its whole provenance.

        Raises:
            NotFoundError: no such concept, version, alias or mask, or it was removed.
        """
        (concept,) = self._puller.records(self._session.fresh_unless_cold(), [ref])
        if concept.history_steps:
            record = claims.read_record(self._session.store, *concept.place)
            concept = dataclasses.replace(concept, provenance=record.provenance)
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
            self._session.fresh(),
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
        return run_query(self._session.fresh(), sql, params, timeout=timeout, as_text=as_text)

    def resolve(
        self,
        *refs: AnyRef,
        named: Sequence[AnyRef] = (),
        max_density: float = DEFAULT_MAX_DENSITY,
        tuned: bool = False,
    ) -> Composition:
        """What several concepts come to; the order of the refs does not matter.

        Args:
            refs: `"alice/dog"`, or `"alice/dog*0.7"`: only the 70 % of its neurons that rank
                highest; for concepts that were pushed with scores.
            named: concepts whose places in the prompt are known, because they are named there
                (`generation.read_request`): they may share a token with others.
            max_density: largest share of the neurons that all together may shut.
            tuned: where joint tuning made masks for exactly these (`Extractor.tune`), and they were
                pushed, resolve to those; else to the concepts themselves.

        Raises:
            NotFoundError, CorruptDataError: as `pull`.
            UsageError: a weight outside (0, 1], or of a concept without scores.
            BaseModelMismatchError, ConflictError, LimitExceededError: they do not go together; see
                `cones_registry.resolver.resolve`.
        """
        state = self._session.fresh() if tuned else self._session.fresh_unless_cold()
        wanted = [self._weighted(ref) for ref in refs]
        placed = [self._weighted(ref) for ref in named]

        records = self._puller.records(state, [ref for ref, _ in (*wanted, *placed)])
        weights = [weight for _, weight in (*wanted, *placed)]
        pinned = list(zip(records, weights, strict=True))
        composition = self.resolve_pinned(
            pinned[: len(wanted)], named=pinned[len(wanted) :], max_density=max_density
        )
        if not tuned:
            return composition
        candidates = find(self._session.state(), method=TUNED, base=composition.base)
        derived = self._puller.records(state, tuned_for(composition, candidates))
        if not derived:
            return composition
        return self.resolve_pinned([(each, 1.0) for each in derived], max_density=max_density)

    def resolve_pinned(
        self,
        concepts: Sequence[tuple[Concept, float]],
        *,
        named: Sequence[tuple[Concept, float]] = (),
        max_density: float = DEFAULT_MAX_DENSITY,
    ) -> Composition:
        """What versions come to whose records were read before; the catalogue is not asked again.

        A version names one mask for ever, so this is what a run goes on with that began with these
        versions, whatever their names stand for by now.

        Args:
            concepts: (record, weight) of each; the weight is the share of the neurons that is shut,
                (0, 1].
            named: those whose places in the prompt are known; see `resolve`.
            max_density: largest share of the neurons that all together may shut.

        Raises:
            CorruptDataError: the stored bytes are gone, or hold another mask than the record says.
            UsageError, BaseModelMismatchError, ConflictError, LimitExceededError: as `resolve`.
        """
        every = (*concepts, *named)

        def make() -> Composition:
            masks = self._puller.masks([concept for concept, _ in every])
            members = [
                Member(concept, self._puller.share(concept, mask, weight), weight)
                for (concept, weight), mask in zip(every, masks, strict=True)
            ]
            count = len(concepts)
            return resolve(members[:count], named=members[count:], max_density=max_density)

        blobs = tuple(sorted({concept.blob_digest for concept, _ in every}))
        key = (_identities(concepts), _identities(named), max_density)
        return self._session.memory.composition(blobs, key, make)

    def _weighted(self, ref: AnyRef) -> tuple[Ref, float]:
        """`REF*WEIGHT` in its two parts."""
        plain, weight = parse_weighted(ref) if isinstance(ref, str) else (ref, 1.0)
        return as_ref(plain, self.default_owner), weight

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
        state = self._session.fresh()
        ((concept, mask),) = self._puller.pull(state, [ref])
        return nearest(
            self._session.memory.sketches(state, concept.base),
            mask,
            limit=limit,
            leave_out=Ref(concept.owner, concept.name),
            pull=lambda refs: self._puller.pull_there(state, refs),
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
        state = self._session.copy.state()
        sketch = FORMAT.sketch(mask)
        if state is None or state.is_empty or not sketch:
            return []
        sketches = self._session.memory.sketches(state, concept.base)
        found = sketches.nearest(sketch, limit, Ref(concept.owner, concept.name))
        return [
            Similar(str(ref), jaccard, None, exact=False)
            for ref, jaccard in found
            if jaccard >= at_least
        ]

    def preview(self, digest: str) -> bytes:
        """The bytes of a picture that a version's ``previews`` names, checked.

        Raises:
            NotFoundError: there is none.
            CorruptDataError: its bytes are not those that were pushed.
        """
        data = self._session.store.get(preview_key(digest))
        require_digest(data, digest, f"preview {digest}")
        return data

    def history(
        self,
        ref: AnyRef | None = None,
        *,
        owner: str | None = None,
        actor: str | None = None,
        since: datetime.datetime | None = None,
        limit: int | None = None,
    ) -> list[Happening]:
        """Who did what when, the newest first.

        Args:
            ref: of one concept, or one version of it.
            owner, actor: of one owner, by one actor.
            since: not earlier.
            limit: at most so many.
        """
        wanted = None if ref is None else as_ref(ref, self.default_owner)
        return history.history(
            self._session, ref=wanted, owner=owner, actor=actor, since=since, limit=limit
        )

    def base(self, fingerprint: str) -> Base:
        """What is known of a base model: its layer table and source; `NotFoundError` if nothing."""
        return self._bases.get(fingerprint)

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
        ((concept, mask),) = self._puller.pull(self._session.fresh_unless_cold(), [ref])
        if density is None:
            return mask
        if not 0 <= density <= mask.density:
            raise UsageError(
                f"cannot cut {concept.ref} to density {density:g}; expected 0 to its own, "
                f"{mask.density:g}. For more, extract it again"
            )
        return self._puller.cut(concept, mask, mask.table.count_within(density))

    def pull_many(self, refs: Iterable[AnyRef]) -> list[ConceptMask]:
        """The masks of several versions, in order; equal masks are one object."""
        return [mask for _, mask in self._puller.pull(self._session.fresh_unless_cold(), refs)]

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
        ((concept, mask),) = self._puller.pull(self._session.fresh_unless_cold(), [ref])
        return self._puller.share(concept, mask, weight)

    def pull_ranks(self, ref: AnyRef) -> Ranks | None:
        """How the members of a version's mask compare; None if it was pushed without scores.

        Raises:
            NotFoundError, CorruptDataError: as `pull`.
        """
        (concept,) = self._puller.records(self._session.fresh_unless_cold(), [ref])
        return self._puller.ranks(concept)

    # -- upkeep ----------------------------------------------------------------------------------

    def compact(
        self, *, grace: float = compaction.DEFAULT_GRACE, minimum: int = 1
    ) -> CompactReport:
        """Fold the log into a new snapshot, and remove what was folded before the grace.

        Safe anywhere, at any time, by several at once.

        Args:
            grace: seconds; longer than clocks differ and readers take.
            minimum: segments below which no snapshot is made.
        """
        return compaction.compact(self._session, grace=grace, minimum=minimum)

    def check(self, *, read_data: bool = False, rebuild: bool = False) -> CheckReport:
        """Compare catalogue, blobs and reservations.

        Args:
            read_data: read everything and verify every digest.
            rebuild: first put back, from the records, what the catalogue lost.
        """
        report = CheckReport()
        if rebuild:
            check.rebuild(self._session, report)
        return Checker(self._session, self._bases, report).check(read_data=read_data)

    def plan_prune(self, *, grace: float = prune.DEFAULT_GRACE) -> PrunePlan:
        """What can be deleted: `.freed_bytes`, `.condemned_bytes`, `.execute()`.

        Args:
            grace: seconds between removal and condemning, and between condemning and deleting. With
                0 both happen at once: only where nobody else writes.
        """
        return prune.plan_prune(self._session, grace)

    def plan_purge(
        self, *, owner: str | None = None, ref: str | Ref | Concept | None = None
    ) -> PurgePlan:
        """What a purge of an owner or of one concept would remove for good; `.execute()` does it.

        Raises:
            UsageError: both or neither given, or a ref with a version.
            NotFoundError: there is nothing of it.
        """
        wanted = None
        if isinstance(ref, Concept):
            wanted = Ref(ref.owner, ref.name)
        elif ref is not None:
            wanted = as_ref(ref, self.default_owner)
        return plan_purge(self._session, owner, wanted)

    def plan_sync(
        self, dest: Registry, *, filters: Sequence[str] = (), delete: bool = False
    ) -> SyncPlan:
        """What `dest` lacks of what is here; `.execute()` copies it: a backup, and the way back.

        Versions keep their numbers, tags, aliases and provenance. What only `dest` has stays, and
        numbers that stand for something else there are reported, not overwritten.

        Args:
            dest: another registry, on any store.
            filters: only versions that fit all of these, as ``owner=alice`` (`cones list --help`).
                Quotas are copied only without any.
            delete: hide there what is not in use here (`restore` shows it again), and take back
                tags, aliases and quotas that were changed there.

        Raises:
            UsageError: both are at one place, or a filter that cannot be read.
        """
        return plan_sync(self._session, dest._session, filters, delete=delete)

    def save_plan(self, plan: Plan, path: str | os.PathLike[str]) -> None:
        """Write a plan to a JSON file, so that somebody else can look it over and apply it.

        Raises:
            ConflictError: the file is there already.
        """
        save_plan(self._session, plan, path)

    def load_plan(self, path: str | os.PathLike[str], *, dest: Registry | None = None) -> Plan:
        """A plan that was saved; `.execute()` does what of it still holds.

        Args:
            path: the file; lines may have been struck out of it.
            dest: the destination, for a plan of a sync.

        Raises:
            NotFoundError, CorruptDataError: there is no such file, or it is no plan.
            UsageError: it was made for another registry.
            ConflictError: something came since to what it purges.
        """
        return load_plan(self._session, path, None if dest is None else dest._session)

    @property
    def mask_lookups(self) -> tuple[int, int]:
        """How many masks this handle had in memory when it needed them, and how many it read."""
        memory = self._session.memory
        return memory.hits, memory.misses

    def stats(self, *, list_store: bool = False) -> Statistics:
        """What the registry holds, and what the same concepts would take in other forms.

        Args:
            list_store: list every object too, for the bytes of log, snapshots and reservations: one
                request a thousand objects.
        """
        return statistics(self._session, self._bases, list_store=list_store)

    # -- quotas -----------------------------------------------------------------------------------

    def set_quota(
        self, owner: str, *, concepts: int | None = None, bytes: int | None = None
    ) -> Quota:
        """Limit what an owner may keep; None: no limit. Enforced at push, by every writer."""
        return self._quotas.put(owner, concepts, bytes)

    def quota(self, owner: str) -> Quota:
        """The limits of one owner."""
        return self._quotas.get(owner)

    def quotas(self) -> list[Quota]:
        """The limits of every owner that has any."""
        return self._quotas.all()

    def usage(self, owner: str) -> tuple[int, int]:
        """(concepts, bytes) that count against an owner's quota."""
        return usage(self._session.fresh(), owner)

    # -- other places -----------------------------------------------------------------------------

    def export_archive(
        self,
        path: str | os.PathLike[str],
        refs: Iterable[str | Ref | Concept] | None = None,
    ) -> archive.ArchiveReport:
        """Write concepts as one self-contained `.tar.zst`; all that are in use without `refs`."""
        return archive.export_archive(self._session, self._bases, path, refs, self.default_owner)

    def import_archive(
        self, path: str | os.PathLike[str], *, owner: str | None = None
    ) -> list[Concept]:
        """Push every concept of an archive, in one commit, each as the next version of its name.

        What is here already is not pushed again: of each concept the oldest versions, as far as
        they are here in the same order, with equal mask, base, scope, token and class noun.

        Args:
            path: the archive; every digest in it is checked, nothing is unpacked to disk.
            owner: whose they become; else whose they were.
        """
        return archive.import_archive(self._session, self._pusher, path, owner)

    def export_catalog(self, url: str, *, format: str, **storage_options: Any) -> int:
        """Write the table of concepts for other engines; the number of rows.

        Args:
            url: a file or folder; for "delta" a table, to which each export adds one version.
            format: "parquet", "jsonl" or "delta".
            storage_options: for a URL of another store.
        """
        return export.export_catalog(self._session.fresh(), url, format, storage_options)

    def cached_blobs(self) -> list[CachedBlob]:
        """What the local blob cache holds, last used first."""
        return self._session.masks.list()

    def prune_cache(self, limit: int = 0) -> int:
        """Shrink the local blob cache to `limit` bytes; bytes freed."""
        return self._session.masks.prune(limit)

    def removed(self) -> list[str]:
        """Refs that can be restored."""
        found = versions_where(self._session.fresh(), "removed AND NOT pruned", rest="ORDER BY ref")
        return [version.record.ref for version in found]


def _identities(chosen: Sequence[tuple[Concept, float]]) -> frozenset[tuple[Any, ...]]:
    """All that decides what concepts come to, in any order: their records and weights.

    A provenance cannot be a key, and changes nothing.
    """
    names = [each.name for each in dataclasses.fields(Concept) if each.name != "provenance"]
    return frozenset(
        (*(getattr(concept, name) for name in names), concept.provenance is None, weight)
        for concept, weight in chosen
    )
