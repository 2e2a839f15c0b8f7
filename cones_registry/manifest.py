"""The record of one version of a concept, and how its mask was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, get_args

from cones_registry.digest import Digest, parse_digest, quote
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.factors import PRECISIONS, Precision
from cones_registry.refs import Ref as Ref
from cones_registry.refs import check_alias as check_alias
from cones_registry.refs import check_name as check_name
from cones_registry.refs import parse_ref as parse_ref

Scope = Literal["prompt", "subject"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
"""Where a mask acts: every row of K and V, or only the rows of the concept's own tokens."""

TUNED: Final = "tune"
"""`Provenance.method` of what joint tuning makes."""


@dataclass(frozen=True)
class Provenance:
    """How a mask was made: enough to make it again.

    Attributes:
        method: "gates", "cones", "first-order", "import", …
        seed: random seed of the extraction.
        parameters: every hyper-parameter, JSON values.
        image_digests: sha256 of each reference image's bytes.
        history: one JSON object a logged step (loss, density, …).
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
        """A JSON object with one key an attribute."""
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> "Provenance":
        """Inverse of `to_json`; unknown keys are ignored. `CorruptDataError` for anything else."""
        return cls(**_known(cls, value, _PROVENANCE_TYPES))


@dataclass(frozen=True)
class Concept:
    """One version of one concept, as the catalog knows it.

    Attributes:
        owner, name, version: who it belongs to, what it is called, its number from 1.
        base: fingerprint of the base model the mask was made for.
        mask_digest: identity of the mask; equal masks have equal digests.
        blob_digest, blob_bytes: the stored object.
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
        aliases: aliases that point to this version now.
        removed: whether it is hidden from search and resolution.
        provenance: how it was made.
        ranked: whether the object also says how the members rank, so that the mask can be cut.
    """

    owner: str
    name: str
    version: int
    base: Digest
    mask_digest: Digest
    blob_digest: Digest
    blob_bytes: int
    neuron_count: int
    table_neuron_count: int
    density: float
    precision: Precision
    layout: str
    scope: Scope
    token: str | None = None
    class_noun: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    created: str = ""
    aliases: tuple[str, ...] = ()
    removed: bool = False
    provenance: Provenance | None = None
    ranked: bool = False

    @property
    def ref(self) -> str:
        """`"owner/name:version"`."""
        return f"{self.owner}/{self.name}:{self.version}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key an attribute."""
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> "Concept":
        """Inverse of `to_json`; unknown keys are ignored.

        Raises:
            CorruptDataError: a value of the wrong type, or a name, number, digest, scope or
                precision that is not allowed.
        """
        known = _known(cls, value, _CONCEPT_TYPES)
        if known.get("provenance") is not None:
            known["provenance"] = Provenance.from_json(known["provenance"])
        try:
            Ref(known["owner"], known["name"], version=known["version"])
            for key in ("base", "mask_digest", "blob_digest"):
                parse_digest(known[key])
        except UsageError as error:
            raise CorruptDataError(f"bad concept record: {error}") from error
        for key, allowed in (("scope", SCOPES), ("precision", PRECISIONS)):
            if known[key] not in allowed:
                raise CorruptDataError(
                    f"bad concept record: {key} is {quote(known[key])}, "
                    f"expected one of {', '.join(allowed)}"
                )
        return cls(**known)


_PROVENANCE_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "method": str,
    "seed": int,
    "parameters": dict,
    "image_digests": list,
    "history": list,
    "versions": dict,
    "prompt": (str, type(None)),
    "created": (str, type(None)),
    "parents": list,
}
_CONCEPT_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "owner": str,
    "name": str,
    "version": int,
    "base": str,
    "mask_digest": str,
    "blob_digest": str,
    "blob_bytes": int,
    "neuron_count": int,
    "table_neuron_count": int,
    "density": (int, float),
    "precision": str,
    "layout": str,
    "scope": str,
    "token": (str, type(None)),
    "class_noun": (str, type(None)),
    "tags": list,
    "note": str,
    "created": str,
    "aliases": list,
    "removed": bool,
    "provenance": (dict, type(None)),
    "ranked": bool,
}
_ITEM_TYPES: Final = {
    "image_digests": str,
    "history": dict,
    "parents": str,
    "tags": str,
    "aliases": str,
}


def _to_json(record: Provenance | Concept) -> dict[str, Any]:
    """One key a field; tuples become lists, mappings plain dicts, records objects."""

    def convert(value: Any) -> Any:
        if isinstance(value, Provenance):
            return value.to_json()
        if isinstance(value, tuple | list):
            return [convert(item) for item in value]
        if isinstance(value, Mapping):
            return {str(key): convert(item) for key, item in value.items()}
        return value

    return {each.name: convert(getattr(record, each.name)) for each in fields(record)}


def _known(cls: type, value: Any, types: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The keys of a JSON object that `cls` knows, type-checked, lists as tuples."""
    what = f"bad {cls.__name__.lower()} record"
    if not isinstance(value, dict):
        raise CorruptDataError(f"{what}: expected an object, got {quote(value)}")
    known: dict[str, Any] = {}
    for each in fields(cls):
        if each.name not in value:
            continue
        item = value[each.name]
        expected = types[each.name]
        # In JSON true is no number, although bool is an int in Python.
        wrong_bool = isinstance(item, bool) and expected is not bool
        if not isinstance(item, expected) or wrong_bool:
            raise CorruptDataError(f"{what}: {each.name} is {quote(item)}")
        if isinstance(item, list):
            if not all(isinstance(part, _ITEM_TYPES[each.name]) for part in item):
                raise CorruptDataError(f"{what}: {each.name} is {quote(item)}")
            item = tuple(item)
        known[each.name] = item
    try:
        cls(**known)
    except TypeError as error:
        raise CorruptDataError(f"{what}: a field is missing ({error})") from error
    return known
