"""Drafts: what is pushed, checked before anything is written."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, get_args

import numpy.typing as npt

from cones_registry.bitmap import keep_positions
from cones_registry.catalog.documents import canonical
from cones_registry.codec import encode_smallest
from cones_registry.digest import Digest, quote, sha256_bytes
from cones_registry.errors import UsageError
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks, ranks_of
from cones_registry.record import MAX_PREVIEWS, Provenance, Record, Scope, check_words
from cones_registry.refs import Ref, parse_ref
from cones_registry.registry.bases import Base, base_for
from cones_registry.resolver.sketch import FORMAT

MAX_KEY_LENGTH: Final = 200
MAX_PREVIEW_BYTES: Final = 2**20


@dataclass(frozen=True)
class Push:
    """One item of ``push_many``, or the arguments of ``push``.

    Attributes:
        ref: ``[owner/]name``; the registry gives the version.
        mask: what is pushed.
        base: fingerprint or BaseModel; None: the layer table alone, the weights not pinned.
        scope: where it acts, "prompt" or "subject"; has to be said.
        tags, note, token, class_noun, provenance: as in ``Concept``.
        key: idempotency key: a second push with it to the same concept returns the first's version,
            and is refused with another mask or when that version was removed.
        scores: what the members compare by, layer name -> float [out, in], or their ``Ranks``;
            None: not kept, so the mask cannot be cut later.
        previews: pictures of it, each the bytes of a WebP file.
    """

    ref: str
    mask: ConceptMask
    base: Any = None
    scope: Scope | None = None
    tags: Sequence[str] = ()
    note: str = ""
    token: str | None = None
    class_noun: str | None = None
    provenance: Provenance | None = None
    key: str | None = None
    scores: Mapping[str, npt.NDArray[Any]] | Ranks | None = None
    previews: Sequence[bytes] = ()


@dataclass
class Draft:
    """A push on its way to a version.

    Attributes:
        push: what was asked for.
        owner, name: of the concept.
        base: what the mask was made for.
        said: the fields of the record that the push says.
        content: the same for two pushes of the same.
        mask_content: the same for two masks that are one object.
        ranks: how the members compare.
        record: once number and mask object are known.
        data: the mask object's bytes, once it was encoded.
        key_generation: the first of its key's that may be free.
    """

    push: Push
    owner: str
    name: str
    base: Base
    said: dict[str, Any]
    content: bytes
    mask_content: tuple[Digest, bytes]
    ranks: Ranks | None = None
    record: Record | None = None
    data: bytes | None = None
    key_generation: int = 1

    @property
    def place(self) -> tuple[str, str]:
        """(owner, name)."""
        return self.owner, self.name

    @property
    def done(self) -> Record:
        """The record, which is known by now."""
        if self.record is None:
            raise AssertionError("a draft has no number yet")
        return self.record

    def encode(self) -> bytes:
        """Bytes of the mask object, made once."""
        if self.data is None:
            mask = self.push.mask
            with keep_positions(mask.words):
                layout, self.data = encode_smallest(mask, ranks=self.ranks)
                self.said["sketch"] = FORMAT.sketch(mask)
            self.said.update(
                blob_digest=sha256_bytes(self.data), blob_bytes=len(self.data), layout=layout
            )
        return self.data

    def share(self, other: Draft) -> None:
        """Take the mask object of a draft with an equal mask."""
        self.data = other.encode()
        for name in ("blob_digest", "blob_bytes", "layout", "sketch"):
            self.said[name] = other.said[name]

    def number(self, version: int) -> Record:
        """The record, with its number."""
        self.record = Record(**self.said, version=version)
        return self.record


class Pushable(Protocol):
    """What knows by itself how it is kept: an `Extraction`, a `Tuning`."""

    def pushes(self, ref: str) -> list[dict[str, Any]]:
        """`push`'s arguments for each mask of it."""
        ...


def parse_pushes(item: Any) -> list[Push]:
    """The pushes that an item of `push_many` stands for.

    item: a `Push`, `(ref, mask)`, `(ref, mask, {options})` or `{"ref": …, "mask": …, …}`; in place
    of the mask a `Pushable`, whose own options hold where none are given.
    """
    try:
        if isinstance(item, Push):
            return [item]
        options: dict[str, Any] = {}
        if isinstance(item, tuple | list) and len(item) in (2, 3):
            options = dict(item[2]) if len(item) == 3 else {}
            options.update(ref=item[0], mask=item[1])
        elif isinstance(item, Mapping):
            options = dict(item)
        what: Any = options.get("mask")
        if what is not None and hasattr(what, "pushes"):
            ref = str(options.pop("ref"))
            del options["mask"]
            return [Push(**own | options) for own in what.pushes(ref)]
        if options:
            return [Push(**options)]
    except TypeError as error:
        raise UsageError(f"cannot push this item: {error}") from error
    raise UsageError(
        f"cannot push {type(item).__name__}; expected a Push, (ref, mask) or (ref, mask, options)"
    )


def pushable(ref: str | Ref) -> Ref:
    """A ref that may be pushed to; UsageError if it names a version, an alias or a mask."""
    ref = ref if isinstance(ref, Ref) else parse_ref(ref)
    if ref.version is not None or ref.alias is not None or ref.digest is not None:
        raise UsageError(
            f"cannot push to {str(ref)!r}: the registry gives the version. "
            f"Push to {str(Ref(ref.owner, ref.name))!r}, then set aliases with `alias`"
        )
    return ref


def make_draft(push: Push, default_owner: str) -> Draft:
    """A push whose every argument was checked."""
    ref = pushable(push.ref)
    mask = push.mask
    if not isinstance(mask, ConceptMask):
        raise UsageError(f"cannot push {type(mask).__name__}; expected a ConceptMask")
    if push.scope is None:
        raise UsageError(
            f"a bare mask does not say where it acts, and {push.ref!r} would keep it for ever. "
            "Learnt for its own words: push(ref, mask, scope='subject', token=…, class_noun=…); "
            "for every word of a prompt: push(ref, mask, scope='prompt'). An Extraction or a "
            "Tuning brings its scope along: push(ref, extraction)"
        )
    if push.scope not in get_args(Scope):
        raise UsageError(f"scope is {quote(push.scope)}; expected one of {get_args(Scope)}")
    if isinstance(push.tags, str):
        raise UsageError("tags is one text; expected a sequence of texts")
    tags = tuple(sorted(set(push.tags)))
    check_words(tags, push.note, push.token, push.class_noun)
    provenance = push.provenance
    if provenance is not None and not isinstance(provenance, Provenance):
        raise UsageError(f"provenance is {type(provenance).__name__}, not a Provenance")
    if push.key is not None and not (
        isinstance(push.key, str) and 0 < len(push.key) <= MAX_KEY_LENGTH
    ):
        raise UsageError(f"key must be a text of 1 to {MAX_KEY_LENGTH} characters")
    owner = ref.owner or default_owner
    base = base_for(mask, push.base)
    said: dict[str, Any] = {
        "owner": owner,
        "name": ref.name,
        "base": base.fingerprint,
        "mask_digest": mask.digest,
        "neuron_count": len(mask),
        "table_neuron_count": mask.table.neuron_count,
        "density": mask.density,
        "precision": mask.precision,
        "scope": push.scope,
        "token": push.token,
        "class_noun": push.class_noun,
        "tags": tags,
        "note": push.note,
        "provenance": provenance,
        "ranked": push.scores is not None,
        "previews": tuple(sha256_bytes(each) for each in _previews(push.previews)),
        "key": push.key or "",
        "history_steps": len(provenance.history) if provenance else 0,
    }
    try:
        content = canonical(said | {"provenance": provenance.to_json() if provenance else None})
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the provenance must hold only JSON values: {error}") from error
    said["created"] = _now()
    ranks = push.scores
    if isinstance(ranks, Mapping):
        ranks = ranks_of(mask, ranks)
    mask_content = (mask.digest, b"" if ranks is None else ranks.tobytes())
    return Draft(push, owner, ref.name, base, said, content, mask_content, ranks)


def _previews(pictures: Sequence[bytes]) -> Sequence[bytes]:
    if len(pictures) > MAX_PREVIEWS:
        raise UsageError(f"{len(pictures)} previews; at most {MAX_PREVIEWS} are kept")
    for each in pictures:
        if not isinstance(each, bytes) or each[:4] != b"RIFF" or each[8:12] != b"WEBP":
            raise UsageError("a preview is the bytes of a WebP picture")
        if len(each) > MAX_PREVIEW_BYTES:
            raise UsageError(
                f"a preview has {len(each)} bytes; at most {MAX_PREVIEW_BYTES} are kept"
            )
    return pictures


def _now() -> str:
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)
    return now.isoformat(timespec="microseconds") + "Z"
