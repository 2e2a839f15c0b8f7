"""Stock calls of a user's own pipeline, with the concepts that their prompts name."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cones_registry.attention import installed, names_token, row_count, unservable_reason
from cones_registry.base_model import BaseModel
from cones_registry.errors import UsageError
from cones_registry.generation.parts import branches
from cones_registry.generation.prompt import find_names
from cones_registry.generation.request import (
    ConceptSource,
    Reading,
    Request,
    check_base,
    check_unknown,
    read_request,
)
from cones_registry.generation.view import PlannedModel
from cones_registry.refs import parse_ref
from cones_registry.weighting import parse_weighted

if TYPE_CHECKING:
    from cones_registry.attention.composed import Composed
    from cones_registry.record import Concept

# Texts beside the prompt, which second and third text encoders may be given.
_OTHER_TEXTS = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")


@contextmanager
def calls_with_concepts(
    pipeline: Any, source: ConceptSource, refs: Sequence[str] = ()
) -> Iterator[Any]:
    """While the block runs, calls of ``pipeline`` draw the concepts that their prompts name.

    See ``cones_registry.concepts``. On leaving, also by an error, the pipeline is as it was.

    Args:
        pipeline: a diffusers pipeline; it is the one that changes its behaviour.
        source: where concepts are looked up.
        refs: versions that plain names stand for; each acts also where a prompt has its token, and
            one of scope ``prompt`` in every call.
    """
    base = BaseModel.from_pipeline(pipeline)
    reason = unservable_reason(base.denoiser)
    if reason is not None:
        raise UsageError(f"concepts cannot act in this pipeline's calls: {reason}")
    pinned = _Pinned(source, refs)
    kind = type(pipeline)
    named = _with_names(kind, base, pinned)
    with installed(base.denoiser):
        pipeline.__class__ = named
        try:
            yield pipeline
        finally:
            pipeline.__class__ = kind


class _Pinned:
    """A source in which some plain names stand for given versions."""

    def __init__(self, source: ConceptSource, refs: Sequence[str]) -> None:
        self._source = source
        self.given: dict[str, Concept] = {}
        for text in refs:
            ref, weight = parse_weighted(text)
            concept = source.get(ref)
            self.given[concept.ref if weight == 1 else f"{concept.ref}*{weight:g}"] = concept
        self._named = {(each.owner, each.name): each for each in self.given.values()}

    def get(self, ref: str, /) -> Concept:
        parsed = parse_ref(ref)
        if (parsed.version, parsed.alias, parsed.digest) == (None, None, None):
            found = self._named.get((parsed.owner or "", parsed.name))
            if found is not None:
                return found
        return self._source.get(ref)

    def resolve(self, *refs: str, named: Sequence[str]) -> Composed:
        return self._source.resolve(*refs, named=named)


def _with_names(kind: type, base: BaseModel, source: _Pinned) -> type:
    """The pipeline's class with a ``__call__`` that reads its prompts."""
    stock: Any = kind.__call__
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        arguments = dict(bound.arguments)
        own = next(iter(signature.parameters))
        del arguments[own]
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        requests = _requests(arguments, source)
        for request in requests:
            check_base(request, base)
            check_unknown(request, base)
        rows = row_count(base, arguments.get("max_sequence_length"))
        planned = [
            branches(each, base, rows=rows, mask_unconditional=True, include_padding=False)
            for each in requests
            for _ in range(arguments.get("num_images_per_prompt") or 1)
        ]
        view = copy.copy(self)
        view.__class__ = kind
        view.__dict__[base.denoiser_name] = PlannedModel(base.denoiser, planned)
        return stock(view, **arguments)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _requests(arguments: dict[str, Any], source: _Pinned) -> list[Request]:
    """One request per prompt of a call; its texts become what is to be read."""
    prompt = arguments.get("prompt")
    if prompt is None:
        raise UsageError(
            "concepts act where a prompt has their words, so the prompt must be given as text, not "
            "as embeddings"
        )
    for name in _OTHER_TEXTS:
        text = arguments.get(name)
        for each in [text] if isinstance(text, str) else text or ():
            if find_names(each):
                raise UsageError(f"{name} names a concept; name it in the prompt, which all read")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negative = arguments.get("negative_prompt")
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative or ())
    negatives = negatives or [""] * len(prompts)
    if len(negatives) != len(prompts):
        raise UsageError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
    requests = [
        _with_given(read_request(Request(text, negative_prompt=unwanted or ""), source), source)
        for text, unwanted in zip(prompts, negatives, strict=True)
    ]
    texts = [request.text for request in requests]
    arguments["prompt"] = texts[0] if isinstance(prompt, str) else texts
    if negative is not None:
        unwanted = [request.negative_text for request in requests]
        arguments["negative_prompt"] = unwanted[0] if isinstance(negative, str) else unwanted
    return requests


def _with_given(request: Request, source: _Pinned) -> Request:
    """The request with the given concepts that act though they are not named."""
    reading = request.reading
    if reading is None:
        return request
    beside = [
        ref
        for ref, concept in source.given.items()
        if ref not in reading.refs
        and (concept.scope == "prompt" or names_token(request.text, concept.token or " "))
    ]
    free = [ref for ref in beside if _is_free(reading, source.given[ref])]
    if not free:
        return request
    return replace(request, composition=source.resolve(*free, named=reading.refs))


def _is_free(reading: Reading, concept: Concept) -> bool:
    """Whether a concept's token stands somewhere else than where another one is named."""
    if concept.scope == "prompt":
        return True
    text = list(reading.prompt.text)
    for place in reading.prompt.places:
        text[place.phrase.start : place.phrase.end] = " " * (place.phrase.end - place.phrase.start)
    return names_token("".join(text), concept.token or " ")
