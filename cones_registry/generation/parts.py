"""From a request to the masked rows of its prompt and of its unconditional prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cones_registry.attention import MaskedPart, RequestParts, find_phrases, subject_rows
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.attention import RowChoice
    from cones_registry.attention.composed import ComposedPart
    from cones_registry.base_model import BaseModel
    from cones_registry.generation.request import Request


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
    Raises NotFoundError if a prompt does not name a subject, UsageError if a subject has no token.
    """
    if request.mask is not None:
        whole = RequestParts((MaskedPart(request.mask),))
        return Branches(whole, whole if mask_unconditional else RequestParts())
    conditional: list[MaskedPart] = []
    unconditional: list[MaskedPart] = []
    for part in request.composition.parts if request.composition is not None else ():
        if part.scope == "prompt":
            conditional.append(MaskedPart(part.mask))
            if mask_unconditional:
                unconditional.append(MaskedPart(part.mask))
            continue
        own = _subject_rows(base, request.prompt, part, rows, include_padding=include_padding)
        conditional.append(MaskedPart(part.mask, own))
        if mask_unconditional and request.negative_prompt:
            own = _subject_rows(base, request.negative_prompt, part, rows, negative=True)
            if own.any():
                unconditional.append(MaskedPart(part.mask, own))
    return Branches(RequestParts(tuple(conditional)), RequestParts(tuple(unconditional)))


def _subject_rows(
    base: BaseModel,
    prompt: str,
    part: ComposedPart,
    rows: int,
    *,
    include_padding: bool = False,
    negative: bool = False,
) -> torch.Tensor:
    """Rows of one part of a composition, bool [T]."""
    if part.scope != "subject":
        raise UsageError(f"unknown scope {part.scope!r}. Expected 'prompt' or 'subject'")
    if not part.token:
        raise UsageError(
            f"{', '.join(part.refs) or 'a part'} has scope 'subject' but no token. Push the "
            "concept with the token it was learnt with"
        )
    phrases = find_phrases(
        prompt, token=part.token, class_noun=part.class_noun, required=not negative
    )
    choice: RowChoice = "padding" if include_padding else "phrase"
    return subject_rows(base, prompt, phrases, choice=choice, length=rows, negative=negative)
