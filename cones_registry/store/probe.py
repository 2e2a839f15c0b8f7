"""Probe: whether a store keeps the three promises that a registry is built on, tried on the spot.

A create of what is there already is refused, also of several at one moment; a listing shows what
was just written, and no more what was just deleted; and the store's clock is near this machine's.
What is written for it lies below ``probe/`` and is removed.
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ulid import ULID

from cones_registry.errors import NotFoundError, StoreUnavailableError
from cones_registry.store.base import KeyExistsError, Store

FOLDER: Final = "probe/"
RACERS: Final = 8
MOST_SECONDS_APART: Final = 60.0
"""Above that the clocks are said to differ. Graces are hours, so there is room."""


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        what: "conditional create", "listing", "clock", "deletion" or "delete".
        ok: whether the store does what a registry needs; None: it could not be tried.
        said: what was seen, and what to do about it.
    """

    what: str
    ok: bool | None
    said: str


def probe(store: Store) -> list[Finding]:
    """Try a store; some 20 requests.

    Raises:
        NotFoundError: the place (a bucket) is not there.
        StoreUnavailableError: it does not answer.
    """
    prefix = f"{FOLDER}{ULID()}/"
    first = f"{prefix}first"
    before = time.time()
    try:
        store.put_new(first, os.urandom(32))
    except NotFoundError:
        store.require_place()
        raise
    except StoreUnavailableError as error:
        if not str(error).startswith("may not"):
            raise
        return [Finding("conditional create", None, "not tried: these credentials may not write")]
    after = time.time()
    written = [first]
    try:
        listed = {entry.key: entry for entry in store.list(prefix)}
        entry = listed.get(first) or store.head(first)
        findings = [_creates(store, prefix, first, written)]
        findings.append(_clock(entry.modified if entry else 0.0, before, after))
    finally:
        removed = _remove(store, written)
    findings.insert(1, _listing(store, prefix, first in listed, removed))
    if kept := store.keeps_deleted():
        said = f"the store keeps {kept}: a purge takes effect when its lifecycle rule lets those go"
        findings.append(Finding("deletion", None, said))
    findings += (
        []
        if removed
        else [
            Finding(
                "delete",
                None,
                f"not allowed, so {len(written)} small objects stay below {prefix}. Append-only "
                "credentials can push; prune, purge and compact need others",
            )
        ]
    )
    return findings


def _creates(store: Store, prefix: str, first: str, written: list[str]) -> Finding:
    what = "conditional create"
    with contextlib.suppress(KeyExistsError):
        store.put_new(first, os.urandom(32))
        return Finding(
            what,
            False,
            "a second create replaced the first object: two writers would be given one version "
            "number. Keep no registry here that more than one process writes; see "
            "schema/backends.md for stores that are known to be good",
        )
    raced = f"{prefix}raced"
    written.append(raced)
    bodies = [os.urandom(32) for _ in range(RACERS)]

    def create(body: bytes) -> bytes | None:
        try:
            store.put_new(raced, body)
            return body
        except KeyExistsError:
            return None

    with ThreadPoolExecutor(RACERS) as pool:
        won = [body for body in pool.map(create, bodies) if body is not None]
    if won != [store.get(raced)]:
        return Finding(
            what,
            False,
            f"{len(won)} of {RACERS} creates of one key at one moment believe that they won: two "
            "writers would be given one version number. Keep no registry here",
        )
    return Finding(what, True, f"refused when there; one of {RACERS} at one moment won")


def _listing(store: Store, prefix: str, is_listed: bool, removed: bool) -> Finding:
    if not is_listed:
        return Finding(
            "listing",
            False,
            "an object that was just written is not listed: readers would miss what was "
            "acknowledged. Use a store whose listings are consistent",
        )
    if removed and store.list(prefix):
        return Finding("listing", False, "objects that were just deleted are still listed")
    return Finding("listing", True, "shows what was just written" + " and deleted" * removed)


def _clock(modified: float, before: float, after: float) -> Finding:
    if not modified:
        return Finding("clock", None, "the store does not say when an object was written")
    # Stores say whole seconds, rounded down.
    apart = modified - before if modified < before - 1 else max(0.0, modified - after)
    if abs(apart) <= MOST_SECONDS_APART:
        return Finding("clock", True, f"within {max(1, round(abs(apart)))} s of the store's")
    way = "behind" if apart > 0 else "ahead of"
    return Finding(
        "clock",
        False,
        f"this machine's is {abs(apart):,.0f} s {way} the store's: what it removes or tags may be "
        "taken for older or newer than it is. Set it (NTP) before anything is changed from here",
    )


def _remove(store: Store, written: list[str]) -> bool:
    try:
        for key in written:
            store.delete(key)
    except StoreUnavailableError:
        return False
    store.tidy(FOLDER)
    return True
