"""Loss histories: kept in the footers of blobs, and not in the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cones_registry.codec import read_footer
from cones_registry.digest import Digest
from cones_registry.errors import CorruptDataError
from cones_registry.registry.ledger import Ledger


def read_history(ledger: Ledger, blob: Digest) -> tuple[Mapping[str, Any], ...]:
    """The loss history in a blob's footer; empty if it has none."""
    return history_of(ledger.blobs.get(blob))


def history_of(data: bytes) -> tuple[Mapping[str, Any], ...]:
    """The loss history in the footer of a blob's bytes."""
    concept = read_footer(data).get("concept") or {}
    provenance = concept.get("provenance") or {}
    history = provenance.get("history", []) if isinstance(provenance, dict) else None
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise CorruptDataError("the footer of a blob has a history that is not a list of objects")
    return tuple(history)
