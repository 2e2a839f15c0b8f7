"""Rebuild: the catalogue again, from reservations and the footers of blobs."""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Final

from cones_registry.catalog import chain, segments
from cones_registry.catalog.events import RECORD_KEYS, Event, check_event
from cones_registry.catalog.fold import Key
from cones_registry.catalog.reader import versions_where
from cones_registry.catalog.runs import read_run
from cones_registry.catalog.tables import TABLES
from cones_registry.codec import decode, read_footer
from cones_registry.digest import Digest, require_digest
from cones_registry.errors import CorruptDataError, NotFoundError
from cones_registry.registry import reservations
from cones_registry.registry.blob_cache import digest_of_key
from cones_registry.registry.check_report import CheckReport
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.moves import Moves
from cones_registry.registry.pruning import blob_entries
from cones_registry.registry.push_keys import decided_versions
from cones_registry.resolver.sketch import FORMAT
from cones_registry.store import Entry

_PER_COMMIT: Final = 5000


class Rebuilder:
    """Puts back into the catalogue of one registry what it lost."""

    def __init__(self, ledger: Ledger, report: CheckReport) -> None:
        self._ledger = ledger
        self._report = report

    def rebuild(self) -> None:
        """Put every version back whose reservation or footer is there and whose blob is whole.

        Versions come back as they were pushed: with their tags then, not removed. Aliases come back
        from their reservations. Damaged log segments are removed; what they said is made again as
        far as it can be. What the catalogue still knows is left as it is.
        """
        ledger = self._ledger
        ledger.require_writable()
        self._discard_damaged_log()
        ledger.copy.forget()
        state = ledger.fresh_now()
        known = {
            (v.record["owner"], v.record["name"], v.record["version"])
            for v in versions_where(state, "true")
        }
        blobs = blob_entries(ledger)
        moves = Moves.of(ledger.store)
        found: dict[Key, Event] = {}
        aliases: dict[tuple[str, str, str], Event] = {}
        reserved = list(self._from_reservations())
        told = known | {_key_of(event) for _, event in reserved if event["type"] == "push"}
        footers = self._without_losers(self._from_footers(blobs), told)
        decided = decided_versions(reserved)
        for event in [*(event for _, event in reserved), *footers]:
            if event["type"] == "alias":
                name = (event["owner"], event["name"], event["alias"])
                if event["generation"] > aliases.get(name, {"generation": 0})["generation"]:
                    aliases[name] = event
                continue
            record, key = event["concept"], _key_of(event)
            if decided.get((*key[:2], event["push"]), key[2]) != key[2]:
                continue  # another push with the same key was first
            blob = moves.find(record["blob_digest"], blobs)
            if key not in known and blob is not None:
                record.update(blob_digest=blob, blob_bytes=blobs[blob].size)
                found.setdefault(key, event)
        events = [found[key] for key in sorted(found)]
        events += [
            event
            for _, event in sorted(aliases.items())
            if (event["owner"], event["name"], event["version"]) in known | found.keys()
        ]
        self._reserve_again(found.values())
        for start in range(0, len(events), _PER_COMMIT):
            ledger.commit(events[start : start + _PER_COMMIT])
        self._report.rebuilt = len(events)

    def _discard_damaged_log(self) -> None:
        store = self._ledger.store
        for key, data in store.get_many(segments.commit_keys(store)):
            try:
                if data is not None:
                    segments.decode_segment(key, data)
            except CorruptDataError:
                store.delete(key)
                self._report.discarded.append(key)
        for number in self._ledger.chain.numbers():
            try:
                manifest = self._ledger.chain.read(number)
                for name, found in manifest.tables.items() if manifest else ():
                    for run in found:
                        for _ in read_run(TABLES[name], run, lambda part: store.get(part.key)):
                            pass
            except (CorruptDataError, NotFoundError):
                key = chain.manifest_key(number)
                store.delete(key)
                self._report.discarded.append(key)

    def _from_reservations(self) -> Iterator[tuple[str, Event]]:
        store = self._ledger.store
        keys = [entry.key for entry in store.list(reservations.PREFIX)]
        for key, data in store.get_many(keys):
            if data is not None:
                with self._report.noting(key):
                    yield key, reservations.decode_reservation(key, data)

    def _from_footers(self, blobs: dict[Digest, Entry]) -> Iterator[Event]:
        for key, data in self._ledger.store.get_many(entry.key for entry in blobs.values()):
            digest = digest_of_key(key) or ""
            if data is None:
                continue
            with self._report.noting(key):
                require_digest(data, digest, "the blob")
                event = event_of_footer(data, digest)
                if event is not None:
                    yield event

    def _without_losers(self, events: Iterable[Event], told: Container[Key]) -> list[Event]:
        """One event a version, of footers: the number is the first one's who asked for it.

        Who finds a number taken writes the blob again with the next, so the same push under a
        higher number tells that a footer was not the winner's. Where nothing tells, no catalogue
        and no reservation (`told`) either, the older one is taken and the report says so.
        """
        found: dict[Key, list[Event]] = {}
        highest: dict[tuple[str, str, str, str], int] = {}
        for event in events:
            record = event["concept"]
            found.setdefault(_key_of(event), []).append(event)
            push = _push_of(record)
            highest[push] = max(record["version"], highest.get(push, 0))
        kept = []
        for (owner, name, version), claims in sorted(found.items()):
            won = [each for each in claims if highest[_push_of(each["concept"])] == version]
            won.sort(key=lambda each: (each["concept"]["created"], each["concept"]["blob_digest"]))
            if len(won) > 1 and (owner, name, version) not in told:
                self._report.note(
                    "ambiguous",
                    f"{owner}/{name}:{version}",
                    f"{len(won)} blobs say that they are it and no reservation is left to tell; "
                    f"taken: {won[0]['concept']['blob_digest']}, the oldest",
                )
            kept += won[:1]
        return kept

    def _reserve_again(self, events: Iterable[Event]) -> None:
        """A version whose reservation was lost too must not be given twice."""
        store = self._ledger.store
        for event in events:
            record = event["concept"]
            key = reservations.version_key(record["owner"], record["name"], record["version"])
            if store.head(key) is None:
                store.put_new(key, reservations.encode_reservation(event))


def _key_of(event: Event) -> Key:
    """The version that a push is."""
    concept = event["concept"]
    return concept["owner"], concept["name"], concept["version"]


def _push_of(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What the blobs of one push have in common, whatever number they say."""
    return record["owner"], record["name"], record["mask_digest"], record["created"]


def event_of_footer(data: bytes, digest: Digest) -> Event | None:
    """The push that a blob's footer tells of, None if it was not written by a registry."""
    footer = read_footer(data)
    concept = footer.get("concept")
    if not isinstance(concept, dict) or "version" not in concept:
        return None
    concept = dict(concept)
    push = concept.pop("push", "")
    provenance = concept.get("provenance")
    history = bool(provenance.get("history")) if isinstance(provenance, dict) else False
    if isinstance(provenance, dict):
        concept["provenance"] = {**provenance, "history": []}
    concept.update(blob_digest=digest, blob_bytes=len(data), layout=footer["layout"])
    record = {name: concept[name] for name in RECORD_KEYS if name in concept}
    event = {"type": "push", "concept": record, "push": push, "history": history}
    sketch = FORMAT.sketch(decode(data))
    return check_event(event | {"sketch": base64.b64encode(sketch).decode("ascii")})
