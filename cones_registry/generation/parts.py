"""From a request to the masked rows of its prompt and of its unconditional prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cones_registry.attention import MaskedPart, RequestParts, find_phrases, subject_rows
from cones_registry.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from cones_registry.attention import Phrase, RowChoice
    from cones_registry.attention.composed import ComposedPart
    from cones_registry.base_model import BaseModel
    from cones_registry.generation.prompt import Place
    from cones_registry.generation.request import Reading, Request


@dataclass(frozen=True)
class Branches:
    """Masked rows of one request in the two branches of classifier-free guidance."""

    conditional: RequestParts
    unconditional: RequestParts


def branches(
    request: Request,
    base: BaseModel,
    *,
    rows: int,
    mask_unconditional: bool,
    include_padding: bool,
) -> Branches:
    """The masked rows of one request; ``rows`` is T, as ``row_count`` says.

    Scope ``prompt`` acts on every row of both branches (the paper masks the model), or of the
    conditional one alone without ``mask_unconditional``. Scope ``subject`` acts on the rows of the
    concept's own tokens, in the negative prompt too if it names them.
    Concepts that the prompt names act where their words were put in; the tokens of the others are
    looked for.
    Raises NotFoundError if a prompt does not name a subject, UsageError if a subject has no token.
    """
    if request.mask is not None:
        whole = RequestParts((MaskedPart(request.mask),))
        return Branches(whole, whole if mask_unconditional else RequestParts())
    choice: RowChoice = "padding" if include_padding else "phrase"
    conditional: list[MaskedPart] = []
    unconditional: list[MaskedPart] = []
    for part in request.composition.parts if request.composition is not None else ():
        if part.scope == "prompt":
            conditional.append(MaskedPart(part.mask))
            if mask_unconditional:
                unconditional.append(MaskedPart(part.mask))
            continue
        found = _phrases(part, request.text, request.reading, negative=False)
        own = subject_rows(base, request.text, found, choice=choice, length=rows)
        conditional.append(MaskedPart(part.mask, own))
        if mask_unconditional and request.negative_text:
            found = _phrases(part, request.negative_text, request.reading, negative=True)
            if found:
                own = subject_rows(base, request.negative_text, found, length=rows, negative=True)
                unconditional.append(MaskedPart(part.mask, own))
    return Branches(RequestParts(tuple(conditional)), RequestParts(tuple(unconditional)))


def _phrases(
    part: ComposedPart, text: str, reading: Reading | None, *, negative: bool
) -> tuple[Phrase, ...]:
    """Where one part of a composition acts in a prompt: where it is named, and at its token.

    A token that another concept's name put there is not its own. In the negative prompt there may
    be no such place.
    """
    if part.scope != "subject":
        raise UsageError(f"unknown scope {part.scope!r}. Expected 'prompt' or 'subject'")
    places: tuple[Place, ...] = ()
    if reading is not None:
        places = (reading.negative_prompt if negative else reading.prompt).places
    named = tuple(place.phrase for place in places if place.ref in part.refs)
    if reading is not None and reading.only_named.issuperset(part.refs) and part.refs:
        return named
    if not part.token:
        raise UsageError(
            f"{', '.join(part.refs) or 'a part'} has scope 'subject' but no token. Push the "
            "concept with the token it was learnt with"
        )
    searched = find_phrases(
        text, token=part.token, class_noun=part.class_noun, required=not (negative or named)
    )
    taken = [place.phrase for place in places]
    free = tuple(
        phrase
        for phrase in searched
        if not any(phrase.start < other.end and other.start < phrase.end for other in taken)
    )
    if not (free or named or negative):
        raise NotFoundError(
            f"token {part.token!r} is in the prompt {text!r} only where other concepts are named. "
            f"Name {', '.join(part.refs)} too: <{part.refs[0]}>"
        )
    return (*named, *free)
