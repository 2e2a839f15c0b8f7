"""From a request to the masked rows of its prompt and of its unconditional prompt."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cones_registry.attention import MaskedPart, RequestParts, subject_rows
from cones_registry.errors import UsageError

if TYPE_CHECKING:
    from cones_registry.attention.composed import ComposedPart
    from cones_registry.base_model import BaseModel
    from cones_registry.generation.request import Request


@dataclass(frozen=True)
class Branches:
    """Masked rows of one request in the two branches of classifier-free guidance."""

    conditional: RequestParts
    unconditional: RequestParts


def row_count(base: BaseModel, max_sequence_length: int | None = None) -> int:
    """Rows T the text encoder of ``base`` gives for every prompt.

    max_sequence_length: what the stock pipeline is told, where it takes that (PixArt does).
    """
    parameters = inspect.signature(type(base.pipeline).__call__).parameters
    if "max_sequence_length" in parameters:
        return int(max_sequence_length or parameters["max_sequence_length"].default)
    return int(base.tokenizers[0].model_max_length)


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
            own = _subject_rows(base, request.negative_prompt, part, rows, required=False)
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
    required: bool = True,
) -> torch.Tensor:
    """Rows of one part of a composition, bool [T]."""
    if part.scope != "subject":
        raise UsageError(f"unknown scope {part.scope!r}. Expected 'prompt' or 'subject'")
    if not part.token:
        raise UsageError(
            f"{', '.join(part.refs) or 'a part'} has scope 'subject' but no token. Push the "
            "concept with the token it was learnt with"
        )
    return prompt_rows(
        base,
        prompt,
        token=part.token,
        class_noun=part.class_noun,
        rows=rows,
        include_padding=include_padding,
        required=required,
    )


def prompt_rows(
    base: BaseModel,
    prompt: str,
    *,
    token: str,
    class_noun: str | None = None,
    rows: int | None = None,
    include_padding: bool = False,
    required: bool = True,
) -> torch.Tensor:
    """Rows of ``token`` and its noun, bool [T], in ``prompt`` as the pipeline of ``base`` reads it.

    All its tokenizers count. rows: T, by default ``row_count(base)``. The rest, and what is raised,
    is ``attention.subject_rows``'s.
    """
    length = row_count(base) if rows is None else rows
    found = torch.zeros(length, dtype=torch.bool)
    with base.lock:
        for tokenizer in base.tokenizers:
            found |= subject_rows(
                tokenizer,
                _prepared(base.pipeline, prompt, tokenizer),
                token=token,
                class_noun=class_noun,
                length=length,
                include_padding=include_padding,
                required=required,
            )
    return found


def _prepared(pipeline: Any, prompt: str, tokenizer: Any) -> str:
    """The text the pipeline will give to its tokenizer."""
    if hasattr(pipeline, "maybe_convert_prompt"):
        return str(pipeline.maybe_convert_prompt(prompt, tokenizer))
    if hasattr(pipeline, "_text_preprocessing"):
        return str(pipeline._text_preprocessing(prompt, clean_caption=False)[0])
    return prompt
