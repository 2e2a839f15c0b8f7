"""Base models the concepts of a registry were made for: `bases/<fingerprint>.json`.

A fingerprint that a file names is hearsay: nobody can tell its layers from it. So whoever comes
with the weights themselves writes `bases/<fingerprint>.loaded.json` beside a record that was made
of hearsay, and from then on that one counts.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.keys import base_key, loaded_base_key
from cones_registry.digest import Digest, parse_digest
from cones_registry.errors import (
    BaseModelMismatchError,
    CorruptDataError,
    NotFoundError,
    UsageError,
)
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.store import KeyExistsError, Store

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Base:
    """A base model as the registry knows it.

    Attributes:
        fingerprint: of its weights; or the digest of its layer table where nobody gave the weights.
        table: its layers.
        source: "demo" or a hub id, None where it was a folder of somebody's machine.
        pinned: whether the fingerprint is of weights.
        parameters: of the whole denoiser, None where nobody recorded it.
        loaded: whether who recorded it had the weights, and not just their fingerprint.
    """

    fingerprint: Digest
    table: LayerTable
    source: str | None
    pinned: bool
    parameters: int | None = None
    loaded: bool = False


def encode_base(base: Base) -> bytes:
    """The record of a base model, as a registry and an archive hold it."""
    body: dict[str, Any] = {
        "fingerprint": base.fingerprint,
        "table": base.table.to_json(),
        "source": base.source,
        "pinned": base.pinned,
    }
    if base.parameters is not None:
        body["parameters"] = base.parameters
    if base.loaded:
        body["loaded"] = True
    return seal("base", body)


def parse_parameters(value: Any) -> int | None:
    """The number of parameters a record speaks of; None unless it can be one."""
    return value if type(value) is int and 0 < value < 2**50 else None


def base_for(mask: ConceptMask, given: Any) -> Base:
    """The base model a mask is pushed for.

    Args:
        mask: what is pushed.
        given: a fingerprint; an object with `fingerprint` and `layer_table`, as a `BaseModel` is,
            and `published_source` where others can load it from there (and `is_said` where a file
            says all that); or None: the layer table alone, the weights are not pinned.

    Raises:
        UsageError: something else.
        BaseModelMismatchError: the given model has other layers than the mask.
    """
    if given is None:
        return Base(mask.table.digest, mask.table, None, pinned=False)
    if isinstance(given, str):
        digest = parse_digest(given)
        return Base(digest, mask.table, None, pinned=digest != mask.table.digest)
    fingerprint = getattr(given, "fingerprint", None)
    table = getattr(given, "layer_table", None)
    if not isinstance(fingerprint, str) or not isinstance(table, LayerTable):
        raise UsageError(
            f"base is {type(given).__name__}; expected a BaseModel or a fingerprint (sha256:…)"
        )
    if table != mask.table:
        raise BaseModelMismatchError(
            f"the mask was made for layer table {mask.table.digest}, the base model "
            f"{fingerprint} has {table.digest}. Give the model the mask was made with"
        )
    source = _public_source(getattr(given, "published_source", None))
    parameters = _parameter_count(given)
    return Base(
        parse_digest(fingerprint),
        table,
        source,
        pinned=True,
        parameters=parameters,
        loaded=not getattr(given, "is_said", False),
    )


def _parameter_count(given: Any) -> int | None:
    """Parameters of the model's denoiser, or as an archive says; None where neither does."""
    if recorded := parse_parameters(getattr(given, "parameters", None)):
        return recorded
    parameters = getattr(getattr(given, "denoiser", None), "parameters", None)
    return sum(each.numel() for each in parameters()) if callable(parameters) else None


def _public_source(source: Any) -> str | None:
    """`source` if it is "demo" or has the form of a hub id, else None.

    The form alone cannot tell a hub id from a relative path: whether a model came from the hub is
    known only where it was loaded (`BaseModel.published_source`).
    """
    is_public = isinstance(source, str) and (source == "demo" or _HUB_ID.fullmatch(source))
    return source if is_public and len(source) <= 200 else None


class Bases:
    """Reads and writes the records of base models; each is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[Digest, Base] = {}

    def ensure(self, base: Base) -> None:
        """Record a base model, or check that its record says the same layers.

        Raises:
            BaseModelMismatchError: the fingerprint is known with other layers.
        """
        known = self._known.get(base.fingerprint)
        if known is None:
            try:
                self._store.put_new(base_key(base.fingerprint), encode_base(base))
                known = base
            except KeyExistsError:
                known = self.get(base.fingerprint)
        if base.loaded and not known.loaded:
            try:
                self._store.put_new(loaded_base_key(base.fingerprint), encode_base(base))
                known = base
            except KeyExistsError:
                known = self._read(base.fingerprint)
        elif known.table != base.table and not known.loaded:
            known = self._read(base.fingerprint)  # somebody may have come with the weights
        self._known[base.fingerprint] = known
        if known.table != base.table:
            raise BaseModelMismatchError(
                f"base {base.fingerprint} has layer table {known.table.digest} in this registry; "
                f"the mask was made for {base.table.digest}. One of the two names another model. "
                + (
                    "The registry knows it from the weights"
                    if known.loaded
                    else "To settle it, push with the weights: base=BaseModel.load(…), --base MODEL"
                )
            )

    def get(self, fingerprint: Digest) -> Base:
        """The record of a base model; `NotFoundError` if there is none."""
        known = self._known.get(fingerprint)
        if known is None:
            known = self._known[fingerprint] = self._read(fingerprint)
        return known

    def _read(self, fingerprint: Digest) -> Base:
        key = base_key(fingerprint)
        found = _decode(key, self._store.get(key), fingerprint)
        if found.pinned and not found.loaded:
            key = loaded_base_key(fingerprint)
            with contextlib.suppress(NotFoundError):
                found = _decode(key, self._store.get(key), fingerprint)
        return found

    def require_table(self, fingerprint: Digest, mask: ConceptMask, ref: str) -> None:
        """`CorruptDataError` unless `mask` has the layers of the base its record names."""
        table = self.get(fingerprint).table
        if table != mask.table:
            self._known[fingerprint] = self._read(fingerprint)
            table = self._known[fingerprint].table
        if table != mask.table:
            raise CorruptDataError(
                f"{ref} is recorded for base {fingerprint} with layer table {table.digest}, but "
                f"its mask has {mask.table.digest}. Push it again"
            )


def _decode(key: str, data: bytes, fingerprint: Digest) -> Base:
    body = unseal("base", data, key)
    if body.get("fingerprint") != fingerprint:
        raise CorruptDataError(f"{key} speaks of {body.get('fingerprint')!r}")
    return Base(
        fingerprint,
        LayerTable.from_json(body.get("table")),
        _public_source(body.get("source")),
        body.get("pinned") is True,
        parse_parameters(body.get("parameters")),
        body.get("loaded") is True,
    )
