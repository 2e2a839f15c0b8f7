"""Drafts: what is pushed, checked before anything is written."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy.typing as npt

from cones_registry.catalog.documents import canonical
from cones_registry.catalog.events import Event, check_words
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import concept_of
from cones_registry.digest import Digest, quote
from cones_registry.errors import UsageError
from cones_registry.manifest import Concept, Provenance, Ref, Scope, parse_ref
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks, ranks_of
from cones_registry.registry.bases import Base, base_for
from cones_registry.registry.quotas import Added
from cones_registry.resolver.sketch import FORMAT

MAX_KEY_LENGTH: Final = 200


@dataclass(frozen=True)
class Push:
    """One item of `push_many`, or the arguments of `push`.

    Attributes:
        ref: `[owner/]name`; the registry gives the version.
        mask: what is pushed.
        base: fingerprint or BaseModel; None: the layer table alone, the weights not pinned.
        scope: where it acts, "prompt" or "subject".
        tags, note, token, class_noun, provenance: as in `Concept`.
        key: idempotency key: a second push with it to the same concept returns the first's version,
            and is refused with another mask or when that version was removed.
        scores: what the members compare by, layer name -> float [out, in], or their `Ranks`; None:
            not kept, so the mask cannot be cut later.
    """

    ref: str
    mask: ConceptMask
    base: Any = None
    scope: Scope = "prompt"
    tags: Sequence[str] = ()
    note: str = ""
    token: str | None = None
    class_noun: str | None = None
    provenance: Provenance | None = None
    key: str | None = None
    scores: Mapping[str, npt.NDArray[Any]] | Ranks | None = None


@dataclass
class Draft:
    """A push on its way to a version: `record` lacks version and blob until they are known.

    `sketch` is base64, as the log has it, once `add_sketch` was called. `content` is the same for
    two pushes of the same. `key_generation` is the first of its key's that may be free.
    """

    push: Push
    owner: str
    name: str
    base: Base
    record: dict[str, Any]
    history: tuple[Mapping[str, Any], ...]
    content: bytes
    ranks: Ranks | None = None
    sketch: str | None = None
    data: bytes | None = None
    event: Event | None = None
    key_generation: int = 1

    def add_sketch(self) -> None:
        """Make the sketch, unless that was done: best while the mask's positions are kept."""
        if self.sketch is None:
            self.sketch = base64.b64encode(FORMAT.sketch(self.push.mask)).decode("ascii")


def parse_push(item: Any) -> Push:
    """A `Push`, `(ref, mask)`, `(ref, mask, {options})` or `{"ref": …, "mask": …, …}` as a Push."""
    try:
        if isinstance(item, Push):
            return item
        if isinstance(item, Mapping):
            return Push(**item)
        if isinstance(item, tuple | list) and len(item) in (2, 3):
            return Push(item[0], item[1], **(item[2] if len(item) == 3 else {}))
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
    """Everything that can be refused, refused."""
    ref = pushable(push.ref)
    mask = push.mask
    if not isinstance(mask, ConceptMask):
        raise UsageError(f"cannot push {type(mask).__name__}; expected a ConceptMask")
    if push.scope not in get_args(Scope):
        raise UsageError(f"scope is {quote(push.scope)}; expected one of {get_args(Scope)}")
    if isinstance(push.tags, str):
        raise UsageError("tags is one text; expected a sequence of texts")
    tags = tuple(sorted(set(push.tags)))
    check_words(tags, push.note, push.token, push.class_noun)
    if push.provenance is not None and not isinstance(push.provenance, Provenance):
        raise UsageError(f"provenance is {type(push.provenance).__name__}, not a Provenance")
    if push.key is not None and not (
        isinstance(push.key, str) and 0 < len(push.key) <= MAX_KEY_LENGTH
    ):
        raise UsageError(f"key must be a text of 1 to {MAX_KEY_LENGTH} characters")
    owner = ref.owner or default_owner
    base = base_for(mask, push.base)
    history = push.provenance.history if push.provenance else ()
    provenance = (
        dataclasses.replace(push.provenance, history=()).to_json() if push.provenance else None
    )
    record = {
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
        "tags": list(tags),
        "note": push.note,
        "created": _now(),
        "provenance": provenance,
        "ranked": push.scores is not None,
    }
    same = {"created": "", "key": push.key or "", "provenance": _provenance_json(push.provenance)}
    try:
        content = canonical(record | same)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the provenance must hold only JSON values: {error}") from error
    ranks = push.scores
    if isinstance(ranks, Mapping):
        ranks = ranks_of(mask, ranks)
    return Draft(push, owner, ref.name, base, record, tuple(history), content, ranks)


def content_of(draft: Draft) -> tuple[Digest, bytes, bytes]:
    """What two drafts must have in common to share a blob."""
    ranks = b"" if draft.ranks is None else draft.ranks.tobytes()
    return draft.record["mask_digest"], canonical([dict(each) for each in draft.history]), ranks


def added_by(drafts: Sequence[Draft]) -> dict[str, Added]:
    """What drafts would add to each owner."""
    added: dict[str, Added] = {}
    for draft in drafts:
        entry = added.setdefault(draft.owner, Added())
        entry.names.add(draft.name)
        if draft.data is not None:
            entry.blobs[draft.record["blob_digest"]] = draft.record["blob_bytes"]
    return added


def pushed_concept(draft: Draft) -> Concept:
    concept = concept_of(Version(draft.record))
    return dataclasses.replace(concept, provenance=draft.push.provenance)


def _provenance_json(provenance: Provenance | None) -> dict[str, Any] | None:
    return provenance.to_json() if provenance else None


def _now() -> str:
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)
    return now.isoformat(timespec="microseconds") + "Z"
