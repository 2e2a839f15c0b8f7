"""What is asked for: one prompt, one seed, and the concepts that act on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from cones_registry.errors import BaseModelMismatchError, NotFoundError, UsageError
from cones_registry.generation.prompt import PLAIN, ReadPrompt, read_prompt
from cones_registry.seed import MAX_SEED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cones_registry.attention.composed import Composed, Drawable
    from cones_registry.base_model import BaseModel
    from cones_registry.mask import ConceptMask
    from cones_registry.record import Concept


class ConceptSource(Protocol):
    """What reading a prompt needs of a registry."""

    def get(self, ref: str, /) -> Concept: ...
    def resolve(self, *refs: str, named: Sequence[str]) -> Composed: ...


@dataclass(frozen=True)
class Reading:
    """What was read of a request's prompts; its composition holds the concepts they name.

    Attributes:
        prompt, negative_prompt: with the concepts' words in place of their names.
        only_named: exact refs of concepts that act where they are named and nowhere else; the
            others' tokens are looked for.
    """

    prompt: ReadPrompt
    negative_prompt: ReadPrompt
    only_named: frozenset[str] = frozenset()

    def without_unknown(self) -> Reading:
        """The same where words in <> that are no concept are nobody's business."""
        return replace(
            self,
            prompt=replace(self.prompt, unknown=()),
            negative_prompt=replace(self.negative_prompt, unknown=()),
        )

    @property
    def refs(self) -> tuple[str, ...]:
        """Exact refs of all concepts that are named, each once."""
        return tuple(dict.fromkeys([*self.prompt.refs, *self.negative_prompt.refs]))


def read_prompts(
    prompt: str,
    negative_prompt: str,
    concept_of: Callable[[str], Concept | None],
    given: Iterable[str] = (),
) -> Reading:
    """Read both prompts of a request; see ``prompt.read_prompt`` for ``concept_of`` and errors.

    given: exact refs of concepts that were given beside the prompts.
    Raises UsageError also for a concept of scope ``prompt`` in the negative prompt.
    """
    wanted = read_prompt(prompt, concept_of)
    unwanted = read_prompt(negative_prompt, concept_of, what="negative prompt")
    if unwanted.whole:
        raise UsageError(
            f"the negative prompt names {unwanted.whole[0]}, which acts on whole prompts. Only "
            "concepts of scope 'subject' can be moved away from by name"
        )
    only = frozenset([*wanted.refs, *unwanted.refs]) - frozenset(given)
    return Reading(wanted, unwanted, only)


@dataclass(frozen=True)
class Request:
    """One picture.

    prompt: what to draw; ``<alice/dog>`` in it stands for that concept (``generation.prompt``).
    mask: neurons to shut at every row of the prompt (scope ``prompt``).
    composition: what ``registry.resolve`` returned; either this or ``mask`` or neither.
    seed: 0 ≤ seed < 2**63; the noise comes from a CPU generator of this seed alone, so the same
        request starts from the same noise on every device and at every place in a batch.
    negative_prompt: what guidance moves away from; it may name concepts too.
    reading: what was read of the prompts, put there by ``read_request``; leave it out.
    Raises UsageError for a prompt that is no text, a seed out of range, or both a mask and a
    composition.
    """

    prompt: str
    mask: ConceptMask | None = field(default=None, kw_only=True)
    composition: Drawable | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    negative_prompt: str = field(default="", kw_only=True)
    reading: Reading | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not isinstance(self.negative_prompt, str):
            raise UsageError(
                f"prompt {self.prompt!r} and negative prompt {self.negative_prompt!r} must be text"
            )
        for text in (self.prompt, self.negative_prompt):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UsageError(f"prompt {text!r} is not valid Unicode text (a lone surrogate)")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UsageError(f"seed {self.seed!r} is no whole number")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed {self.seed} is out of range. Expected 0 … {MAX_SEED}")
        if self.mask is not None and self.composition is not None:
            raise UsageError(
                "a request has either a mask or a composition, not both. Resolve all concepts "
                "together: registry.resolve('a', 'b')"
            )

    @property
    def text(self) -> str:
        """The prompt that the text encoder reads."""
        return self.prompt if self.reading is None else self.reading.prompt.text

    @property
    def negative_text(self) -> str:
        """The negative prompt that the text encoder reads."""
        return self.negative_prompt if self.reading is None else self.reading.negative_prompt.text


def read_request(request: Request, registry: ConceptSource | None) -> Request:
    """The request with the concepts that its prompts name: looked up now, and drawn so later.

    A request that was read already is returned as it is.

    Args:
        request: with prompts as written.
        registry: where the concepts are; without one no prompt may name any.

    Raises:
        UsageError: a name that is none, is not closed, or needs a registry; with its column. A
            concept of scope ``prompt`` in the negative prompt. A name beside ``mask``.
        NotFoundError: no such concept; with the column.
        BaseModelMismatchError, LimitExceededError …: the concepts do not go together.
    """
    if request.reading is not None:
        return request
    known: dict[str, Concept | None] = {}

    def concept_of(ref: str) -> Concept | None:
        if ref not in known:
            known[ref] = _looked_up(ref, registry)
        return known[ref]

    given: Any = request.composition
    already = () if given is None else getattr(given, "refs", None)
    reading = read_prompts(request.prompt, request.negative_prompt, concept_of, already or ())
    refs = reading.refs
    if registry is None:  # nobody has said that words in <> might be concepts
        reading = reading.without_unknown()
    if not refs or registry is None:
        return replace(request, reading=reading)
    if request.mask is not None:
        raise UsageError(
            f"a request has either a mask or concepts, and its prompt names {refs[0]}. Push the "
            "mask to the registry and name it too"
        )
    if already is None:
        raise UsageError(
            f"the prompt names {refs[0]}, so the request's composition must be one that "
            "registry.resolve returned"
        )
    return replace(
        request,
        composition=registry.resolve(*already, named=refs),
        reading=reading,
    )


def _looked_up(ref: str, registry: ConceptSource | None) -> Concept | None:
    if registry is None:
        if "/" not in ref:
            return None
        raise UsageError(
            f"a concept is named, but no registry was given. Generator(base, registry=registry) "
            f"looks it up; {PLAIN}"
        )
    try:
        return registry.get(ref)
    except NotFoundError:
        if "/" in ref:
            raise
        return None


def check_unknown(request: Request, base: BaseModel) -> None:
    """Raise NotFoundError for ``<word>`` that is neither a concept nor a token of ``base``."""
    if request.reading is None:
        return
    for word, column in (
        *request.reading.prompt.unknown,
        *request.reading.negative_prompt.unknown,
    ):
        if not all(word in tokenizer.get_vocab() for tokenizer in base.tokenizers):
            raise NotFoundError(
                f"{word!r} at column {column} is no concept of the registry's default owner, and "
                f"the text encoder has no such token. Name the concept's owner, <owner/name>; "
                f"{PLAIN}"
            )


def check_base(request: Request, base: BaseModel) -> None:
    """Raise BaseModelMismatchError unless everything in ``request`` was made for ``base``."""
    table = base.layer_table
    if request.mask is not None and request.mask.table.digest != table.digest:
        raise BaseModelMismatchError(
            f"the mask for prompt {request.prompt!r} indexes into layer table "
            f"{request.mask.table.digest}, base model {base.source!r} has {table.digest}. "
            "Load the base model the concept was made for"
        )
    composition = request.composition
    if composition is None:
        return
    names = ", ".join(sorted({ref for part in composition.parts for ref in part.refs})) or "(empty)"
    if composition.table.digest != table.digest or any(
        part.mask.table.digest != table.digest for part in composition.parts
    ):
        raise BaseModelMismatchError(
            f"composition of {names} indexes into layer table {composition.table.digest}, base "
            f"model {base.source!r} has {table.digest}. Load the base model it was made for"
        )
    if composition.base not in (base.fingerprint, table.digest):
        raise BaseModelMismatchError(
            f"composition of {names} was made for base model {composition.base}, this is "
            f"{base.fingerprint} ({base.source}). The shapes agree, the weights do not: a mask "
            "means nothing on other weights. Load the base model it was made for"
        )
