"""Record: all that is known of one version of a concept but its mask. One class says what that is.

``Record`` is what a push says, once and for ever. From its fields come the stored JSON object, the
push event in the log, the columns of the catalogue, ``Concept`` (what users see) and the JSON
Schemas. A new field is one line here.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from cones_registry.digest import Digest, quote
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.factors import Precision
from cones_registry.refs import MAX_VERSION, Ref, check_name

Scope = Literal["prompt", "subject"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
"""Where a mask acts: every row of K and V, or only the rows of the concept's own tokens."""

TUNED: Final = "tune"
"""``Provenance.method`` of what joint tuning makes."""

MAX_TAGS: Final = 1000
MAX_TAG_LENGTH: Final = 200
MAX_NOTE_LENGTH: Final = 100_000
MAX_WORD_LENGTH: Final = 200
MAX_SKETCH_BYTES: Final = 4096
MAX_PREVIEWS: Final = 100

HIDDEN: Final = {"shown": False}
"""Metadata of fields that are kept, but not shown to users."""

Sha256 = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
Number = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
Count = Annotated[int, Meta(ge=0, le=2**40)]
Short = Annotated[str, Meta(max_length=200)]
Time = Annotated[str, Meta(max_length=40, extra_json_schema={"format": "date-time"})]
"""UTC in ISO 8601, with Z."""

T = TypeVar("T")


@dataclass(frozen=True)
class Provenance:
    """How a mask was made: enough to make it again.

    Attributes:
        method: "gates", "cones", "first-order", "import", …
        seed: random seed of the extraction.
        parameters: every hyper-parameter, JSON values.
        image_digests: sha256 of each reference image's bytes.
        history: one JSON object per logged step (loss, density, …).
        versions: library name -> version.
        prompt: the prompt of the concept-implanting loss.
        created: UTC, ISO 8601.
        parents: refs or digests of the masks this one was made from.
    """

    method: str
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    image_digests: tuple[Digest, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    created: str | None = None
    parents: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key per attribute."""
        return _plain_object(self)

    @classmethod
    def from_json(cls, value: Any) -> Provenance:
        """Inverse of ``to_json``; unknown keys are ignored. ``CorruptDataError`` otherwise."""
        return parse(value, cls, "a provenance")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One version of one concept, as it was pushed.

    Attributes:
        owner, name, version: who it belongs to, what it is called, its number from 1.
        base: fingerprint of the base model the mask was made for.
        mask_digest: identity of the mask; equal masks have equal digests.
        blob_digest, blob_bytes: the stored mask object.
        neuron_count: members of the mask.
        table_neuron_count: neurons of the layer table.
        density: members / neurons of the layer table.
        precision: "binary", "2bit", "float16" or "float32".
        layout: how the object is encoded: "gap8", "plain", …
        scope: "prompt" or "subject".
        token, class_noun: the placeholder word and the class word the concept was learnt with.
        tags: search keywords, sorted.
        note: free text.
        created: UTC, ISO 8601.
        provenance: how it was made.
        ranked: whether the object also says how the members rank, so that the mask can be cut.
        previews: sha256 of pictures of it that the registry keeps.
        key: the idempotency key of its push, or "".
        history_steps: length of ``provenance.history``, which the catalogue leaves out.
        sketch: what ``similar`` compares masks by, before it reads them.
    """

    owner: str
    name: str
    version: Number
    base: Sha256
    mask_digest: Sha256
    blob_digest: Sha256
    blob_bytes: Count
    neuron_count: Count
    table_neuron_count: Annotated[int, Meta(ge=1, le=2**40)]
    density: float
    precision: Precision
    layout: Annotated[str, Meta(max_length=50)]
    scope: Scope
    token: str | None = None
    class_noun: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    created: Time = ""
    provenance: Provenance | None = None
    ranked: bool = False
    previews: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_PREVIEWS)] = ()
    key: Short = ""
    history_steps: Count = 0
    sketch: Annotated[bytes, Meta(max_length=MAX_SKETCH_BYTES)] = field(
        default=b"", metadata=HIDDEN, repr=False
    )

    def __post_init__(self) -> None:
        check_name(self.owner, "owner")
        check_name(self.name, "name")
        check_words(self.tags, self.note, self.token, self.class_noun)
        if self.neuron_count > self.table_neuron_count:
            raise UsageError(f"neuron_count is {self.neuron_count}, more than the table has")
        if not abs(self.density - self.neuron_count / self.table_neuron_count) <= 1e-9:
            raise UsageError("density is not neuron_count / table_neuron_count")
        if not self.layout.isprintable():
            raise UsageError(f"layout is {quote(self.layout)}")
        if self.created and not _is_time(self.created):
            raise UsageError(f"created is {quote(self.created)}; expected UTC in ISO 8601")

    @property
    def ref(self) -> str:
        """``"owner/name:version"``."""
        return f"{self.owner}/{self.name}:{self.version}"

    @property
    def usage(self) -> str:
        """How a prompt says it in words, ``"a sks dog"``; empty for a concept without words."""
        words = " ".join(word for word in (self.token, self.class_noun) if word)
        return f"a {words}" if words else ""

    @property
    def place(self) -> tuple[str, str, int]:
        """(owner, name, version)."""
        return self.owner, self.name, self.version

    @classmethod
    def from_json(cls: type[T], value: Any) -> T:
        """Inverse of ``dump``; unknown keys are ignored.

        Raises:
            CorruptDataError: a value of the wrong type, or one that is not allowed.
        """
        return parse(value, cls, "a concept record")

    def dump(self) -> dict[str, Any]:
        """The stored JSON object, one key per field."""
        return _plain_object(self)

    def without_history(self) -> Record:
        """What log and catalogue say of it: everything but the loss history."""
        if self.provenance is None or not self.provenance.history:
            return self
        short = dataclasses.replace(self.provenance, history=())
        return dataclasses.replace(self, provenance=short)


@dataclass(frozen=True, kw_only=True)
class Concept(Record):
    """One version of one concept, as users see it: its record, and what was changed since.

    ``tags`` are those it has now.

    Attributes:
        aliases: aliases that point to this version now.
        removed: whether it is hidden from search and resolution.
    """

    aliases: tuple[str, ...] = ()
    removed: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key per attribute that is shown."""
        value = _plain_object(self)
        return {each.name: value[each.name] for each in dataclasses.fields(self) if is_shown(each)}


def is_shown(each: dataclasses.Field[Any]) -> bool:
    """Whether users see a field of a record."""
    return bool(each.metadata.get("shown", True))


def concept_from(record: Record, **now: Any) -> Concept:
    """The record as users see it.

    Args:
        record: the record.
        now: what changed since: ``tags``, ``aliases``, ``removed``.
    """
    said = {each.name: getattr(record, each.name) for each in dataclasses.fields(Record)}
    return Concept(**{**said, **now})


def parse(value: Any, kind: type[T], what: str) -> T:
    """A JSON value as an instance of a class with types, checked.

    Args:
        value: dicts, lists, texts, numbers.
        kind: a dataclass.
        what: it is, for the message: "a concept record".

    Raises:
        CorruptDataError: it does not fit the class.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CorruptDataError(f"not {what}: {str(error)[:500]}") from error
    except RecursionError as error:
        raise CorruptDataError(f"not {what}: it is nested too deeply") from error


def json_schema(kind: type[Any], title: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a dataclass."""
    schema = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


def check_words(tags: tuple[str, ...], note: str, token: str | None, noun: str | None) -> None:
    """``UsageError`` if the free texts of a concept are too long, or not text."""
    if len(tags) > MAX_TAGS:
        raise UsageError(f"{len(tags)} tags; at most {MAX_TAGS} are allowed")
    for tag in tags:
        check_tag(tag)
    if not isinstance(note, str) or len(note) > MAX_NOTE_LENGTH or not _encodable(note):
        raise UsageError(f"a note is text of at most {MAX_NOTE_LENGTH} characters")
    for what, word in (("token", token), ("class_noun", noun)):
        if word is not None and (
            not isinstance(word, str)
            or not 0 < len(word) <= MAX_WORD_LENGTH
            or not word.isprintable()
        ):
            raise UsageError(
                f"{what} is {quote(word)}; expected 1 to {MAX_WORD_LENGTH} printable characters"
            )


def check_tag(tag: str) -> str:
    """Return ``tag`` if it can be one, else raise ``UsageError``."""
    if (
        not isinstance(tag, str)
        or not 0 < len(tag) <= MAX_TAG_LENGTH
        or not tag.isprintable()
        or tag.strip() != tag
    ):
        raise UsageError(
            f"{quote(tag)} is not a tag; expected 1 to {MAX_TAG_LENGTH} printable characters "
            "without space around them"
        )
    return tag


def ref_of(record: Record) -> Ref:
    """The exact ref of a version."""
    return Ref(record.owner, record.name, version=record.version)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_time(text: str) -> bool:
    try:
        return text.endswith("Z") and bool(datetime.datetime.fromisoformat(text))
    except ValueError:
        return False


def _plain_object(value: Provenance | Record) -> dict[str, Any]:
    """JSON values, one key per field; bytes are base64."""
    found: dict[str, Any] = _lists(msgspec.to_builtins(value, str_keys=True))
    return found


def _lists(value: Any) -> Any:
    """The same with lists in place of tuples, as JSON has them."""
    if isinstance(value, list | tuple):
        return [_lists(each) for each in value]
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return value
