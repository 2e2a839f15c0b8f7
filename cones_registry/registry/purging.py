"""Purge: everything of one owner or one concept, gone for good, with proof and a receipt.

Order, so that a kill at any step leaves something a second purge finishes: numbers are reserved
against reuse, blobs shared with others are written again without the purged record, the purge is
committed (from then on no reader shows it), bytes and reservations go, the log is folded into a
snapshot without it, and every object of before goes. Names survive only as salted digests, which
keep numbers from being given again; the receipt has not even those.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field
from typing import Final

from cones_registry.catalog import segments
from cones_registry.catalog.documents import seal
from cones_registry.catalog.events import Event
from cones_registry.catalog.fold import Version, name_digest
from cones_registry.catalog.reader import versions_where
from cones_registry.codec import decode, encode, read_footer, read_ranks
from cones_registry.digest import Digest, sha256_bytes
from cones_registry.errors import (
    ConflictError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.manifest import Ref, check_name
from cones_registry.registry import reservations
from cones_registry.registry.blob_cache import blob_key
from cones_registry.registry.compaction import compact
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.moves import record_move
from cones_registry.registry.pruning import blob_entries
from cones_registry.registry.traces import (
    PurgeReceipt,
    count_log,
    derived_from,
    footer_of,
    mentions,
    named_in,
    rows_in_runs,
    search,
    unfinished_about,
    versions_of,
)
from cones_registry.store.local import LocalStore

_COMPACTIONS: Final = 20


@dataclass(frozen=True)
class PurgePlan:
    """What a purge would do; nothing changes until `execute`.

    Attributes:
        owner, name: whose, and which concept; `name` None: all of the owner.
        names: concept name -> highest version, of everything known or reserved.
        versions: how many versions the catalogue has.
        blobs: blob digest -> bytes, used by nobody else.
        shared: blob digest -> bytes, used by others too: made again without the purged record.
        reserved: keys that go.
        derived: refs of what others made from it, whose provenance names it: they go first.
        residue: segments, lines of runs or unfinished files that still speak of it, where a purge
            or a push was broken off.
    """

    owner: str
    name: str | None
    names: dict[str, int]
    versions: int
    blobs: dict[Digest, int]
    shared: dict[Digest, int]
    reserved: tuple[str, ...]
    derived: tuple[str, ...]
    residue: int
    _ledger: Ledger = field(repr=False, compare=False)

    @property
    def freed_bytes(self) -> int:
        """Bytes that `execute` frees."""
        return sum(self.blobs.values())

    def execute(self) -> PurgeReceipt:
        """Purge, prove it, and keep the receipt.

        Raises:
            ConflictError: concepts of others were made from it and name it, or something of it
                came back while it was purged; purge again.
            StoreUnavailableError: broken off; purge again to finish.
        """
        ledger, store = self._ledger, self._ledger.store
        ledger.require_writable()
        derived = derived_from(ledger.fresh_now(), self.owner, self.name)
        if derived:
            raise ConflictError(
                f"{len(derived)} versions were made from what is to be purged, and say so: "
                f"{', '.join(derived[:5])}. Purge their concepts first"
            )
        for name, highest in self.names.items():
            reservations.reserve_purged(store, ledger.registry_id, self.owner, name, highest)
        events, rewritten = self._rewrite_shared()
        names = {
            name_digest(ledger.registry_id, self.owner, name): highest
            for name, highest in self.names.items()
        }
        removed = sorted({*self.blobs, *self.shared})
        committed = ledger.commit([*events, {"type": "purge", "names": names, "blobs": removed}])
        ledger.forget_other_copies()
        store.delete_many(blob_key(digest) for digest in removed)
        store.delete_many(self.reserved)
        store.tidy(f"{reservations.PREFIX}{self.owner}/" + (f"{self.name}/" if self.name else ""))
        if self.name is None:
            store.tidy(f"quotas/{self.owner}/")
        before = count_log(ledger)
        self._fold_away(committed.stamp)
        if isinstance(store, LocalStore):
            store.sweep_unfinished(float("inf"))
        ledger.sync()
        for digest in removed:
            ledger.blobs.forget(digest)
        after = count_log(ledger)
        return self._receipt(rewritten, before, after)

    def _rewrite_shared(self) -> tuple[list[Event], list[Digest]]:
        """Write shared blobs again, each with the record of one that stays."""
        ledger = self._ledger
        events: list[Event] = []
        for digest in sorted(self.shared):
            stays = [
                version
                for version in _versions_of_blob(ledger, digest)
                if not self._concerns(version.record["owner"], version.record["name"])
            ]
            if not stays:
                continue
            data = ledger.blobs.get(digest)
            old = read_footer(data)
            new = encode(
                decode(data),
                layout=old["layout"],
                footer=footer_of(stays[0], old),
                ranks=read_ranks(data),
            )
            new_digest = sha256_bytes(new)
            ledger.store.put_new(blob_key(new_digest), new)
            # The reservations of those that stay name the old blob for ever.
            record_move(ledger.store, digest, new_digest)
            events.append({"type": "rewrite", "old": digest, "new": new_digest, "bytes": len(new)})
        return events, [event["new"] for event in events]

    def _concerns(self, owner: str, name: str) -> bool:
        return owner == self.owner and self.name in (None, name)

    def _fold_away(self, stamp: str) -> None:
        """Compact until nothing of before the purge is left in log and runs."""
        ledger = self._ledger
        gone = [(self.owner, name, highest) for name, highest in self.names.items()]
        folded: int | None = None
        for attempt in range(_COMPACTIONS):
            # Twice at least: a manifest stays until the one after its successor is there.
            compact(ledger, grace=0, minimum=1, purged=gone, force=True)
            left = [
                key
                for key in segments.commit_keys(ledger.store)
                if segments.parse_name(key)[0] <= stamp
            ]
            if not left:
                folded = folded or ledger.fresh_now().meta.position.number
                if min(ledger.chain.numbers(), default=folded) >= folded:
                    return
            time.sleep(0.05 * attempt)
        raise StoreUnavailableError(
            f"the log could not be folded in {_COMPACTIONS} attempts, since others compact "
            "at the same time. The purge is committed; run it again to finish"
        )

    def _receipt(
        self,
        rewritten: list[Digest],
        before: tuple[int, int],
        after: tuple[int, int],
    ) -> PurgeReceipt:
        ledger = self._ledger
        objects, size, found = search(ledger, self.owner, self.name)
        if found:
            raise ConflictError(
                f"{found} objects still speak of what was purged: it was written again meanwhile. "
                "Stop its writers, then purge again"
            )
        receipt = PurgeReceipt(
            id=ledger.clock.next(),
            registry_id=ledger.registry_id,
            created=datetime.datetime.fromtimestamp(time.time(), datetime.UTC).isoformat(
                timespec="seconds"
            ),
            versions=self.versions,
            removed_blobs=tuple(sorted({*self.blobs, *self.shared})),
            rewritten_blobs=tuple(rewritten),
            reservations=len(self.reserved),
            segments=max(0, before[0] - after[0]),
            runs=max(0, before[1] - after[1]),
            freed_bytes=self.freed_bytes,
            scanned_objects=objects,
            scanned_bytes=size,
            found=0,
        )
        body = receipt.to_json()
        del body["digest"]
        data = seal("receipt", body)
        ledger.store.put_new(f"receipts/{receipt.id}.json", data)
        return PurgeReceipt(**{**receipt.__dict__, "digest": sha256_bytes(data)})


def plan_purge(ledger: Ledger, owner: str | None, ref: Ref | None) -> PurgePlan:
    """What a purge of an owner, or of one concept, would remove; see `PurgePlan`."""
    if (owner is None) == (ref is None):
        raise UsageError("give either owner= or ref= of what is to be purged")
    name = None
    if ref is not None:
        if ref.version is not None or ref.alias is not None or ref.digest is not None:
            raise UsageError(
                f"a purge takes a whole concept; {ref.name!r}, not {str(ref)!r}. "
                "To take one version out of use: cones remove"
            )
        owner, name = ref.owner, ref.name
    check_name(owner or "", "owner")
    whose = owner or ""
    store = ledger.store
    state = ledger.fresh_now()
    versions = versions_of(state, whose, name)
    names: dict[str, int] = {}
    reserved = []
    for entry in store.list(f"{reservations.PREFIX}{whose}/" + (f"{name}/" if name else "")):
        each = reservations.parse_key(entry.key)
        reserved.append(entry.key)
        if each:
            highest = each.number if each.is_version else 0
            names[each.name] = max(highest, names.get(each.name, 0))
    if name is None:
        reserved += [entry.key for entry in store.list(f"quotas/{whose}/")]
    for version in versions:
        record = version.record
        names[record["name"]] = max(record["version"], names.get(record["name"], 0))
    blobs, shared = _blobs_to_go(ledger, versions, whose, name)
    residue = 0
    for key, data in store.get_many(segments.commit_keys(store)):
        residue += data is not None and mentions(segments.decode_segment(key, data), whose, name)
    if not (versions or reserved or blobs or shared or residue):
        # A purge that was broken off late has left nothing but runs of before; a killed writer,
        # nothing but a file that is not finished.
        residue += rows_in_runs(ledger, whose, name)[0]
        residue += unfinished_about(store, whose, name)
    if not (versions or reserved or blobs or shared or residue):
        raise NotFoundError(f"nothing of {whose}{'/' + name if name else ''} is here to be purged")
    derived = derived_from(state, whose, name)
    return PurgePlan(
        whose,
        name,
        names,
        len(versions),
        blobs,
        shared,
        tuple(reserved),
        derived,
        int(residue),
        ledger,
    )


def _blobs_to_go(
    ledger: Ledger, versions: list[Version], owner: str, name: str | None
) -> tuple[dict[Digest, int], dict[Digest, int]]:
    """(blobs used by nobody else, blobs used by others whose footer holds the purged record)."""
    entries = blob_entries(ledger)
    state = ledger.state()
    used_by_others: set[Digest] = set()
    used: set[Digest] = set()
    for version in versions_where(state, "NOT pruned"):
        record = version.record
        used.add(record["blob_digest"])
        if record["owner"] != owner or name not in (None, record["name"]):
            used_by_others.add(record["blob_digest"])
    mine = {version.record["blob_digest"] for version in versions}
    # What pushes that never committed have left can name its owner too.
    suspects = {d for d in entries if d in mine or d not in used}
    blobs, shared = {}, {}
    for key, data in ledger.store.get_many([entries[digest].key for digest in sorted(suspects)]):
        digest = "sha256:" + key.rpartition("/")[2].removesuffix(".parquet")
        named = named_in(data or b"")
        is_named = named[0] == owner and name in (None, named[1])
        if digest in used_by_others:
            if is_named:
                shared[digest] = entries[digest].size
        elif digest in mine or is_named:
            blobs[digest] = entries[digest].size
    return blobs, shared


def _versions_of_blob(ledger: Ledger, digest: Digest) -> list[Version]:
    return versions_where(ledger.state(), "blob_digest = ? AND NOT pruned", [digest])
