"""A run as others see it: how far it is, and its newest pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cones_registry.batch.drawing import PICTURES, REPORT_KEY
from cones_registry.batch.manifest import KEY, decode_manifest
from cones_registry.batch.output import open_output
from cones_registry.errors import CorruptDataError, NotFoundError
from cones_registry.store import Store


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        total: pictures it shall have.
        done: pictures that are there.
        failed: pictures that could not be drawn; 0 while it goes on.
        newest: names of the newest pictures, the last one first.
    """

    total: int
    done: int
    failed: int
    newest: tuple[str, ...]


def run_state(out: str | Store, *, newest: int = 60) -> RunState:
    """How far the run in a folder or at a URL is.

    Raises:
        NotFoundError: no run is there.
        CorruptDataError: its ``run.json`` or ``report.json`` cannot be read.
    """
    store = open_output(out)
    try:
        manifest = decode_manifest(store.get(KEY))
    except NotFoundError:
        raise NotFoundError(f"no run of cones batch is at {store.url}") from None
    there = sorted(store.list(PICTURES), key=lambda entry: (entry.modified, entry.key))
    names = [entry.key.removeprefix(PICTURES) for entry in there]
    return RunState(manifest.pictures, len(names), _failed(store), tuple(names[: -newest - 1 : -1]))


def run_picture(out: str | Store, name: str) -> bytes:
    """One picture of a run, as ``RunState.newest`` names it.

    Raises:
        NotFoundError: there is none of that name.
    """
    if "/" in name or not name.endswith((".png", ".webp")):
        raise NotFoundError(f"no picture {name[:80]!r} in this run")
    return open_output(out).get(f"{PICTURES}{name}")


def _failed(store: Store) -> int:
    try:
        report = json.loads(store.get(REPORT_KEY))
        return sum(failure.get("number") is not None for failure in report["failures"])
    except NotFoundError:
        return 0
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"{REPORT_KEY} in {store.url} cannot be read: {error!r}") from error
