"""Resolve: check several concepts against each other and merge them into one Composition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cones_registry.errors import (
    BaseModelMismatchError,
    ConflictError,
    LimitExceededError,
    UsageError,
)
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.record import Concept
from cones_registry.resolver.composition import Composition, Member, Part, density_of
from cones_registry.weighting import check_weight

DEFAULT_MAX_DENSITY: Final = 0.5
"""Largest share of the layer table that a composition may shut, unless the caller says otherwise.

Four concepts learnt with gates at their usual 10 to 20 % fit below it; a base model with more than
half of its cross-attention shut is no longer the model whose prompts the user knows.
"""


class TokenClashError(ConflictError):
    """Two different concepts bind one placeholder token."""


class DensityLimitError(LimitExceededError):
    """The concepts together shut more than the limit."""


def resolve(
    concepts: Iterable[tuple[Concept, ConceptMask] | Member],
    *,
    named: Iterable[tuple[Concept, ConceptMask] | Member] = (),
    max_density: float = DEFAULT_MAX_DENSITY,
) -> Composition:
    """The composition of concepts, the same for every order of them.

    Args:
        concepts: (record, mask) of each, or a Member where a weight is not 1; one named twice
            counts once.
        named: those that a prompt names; as their places are known, they may share tokens, and
            one of scope ``subject`` may be there with several weights.
        max_density: largest share of the table's neurons that all masks together may shut, (0, 1].

    Raises:
        UsageError: no concepts, one with two weights, a weight or a limit outside (0, 1].
        BaseModelMismatchError: concepts of different base models.
        TokenClashError: two different concepts with one token.
        DensityLimitError: more is shut than `max_density`.
    """
    if not 0 < max_density <= 1:
        raise UsageError(f"max_density is {max_density}; expected a share above 0 and up to 1")
    searched = _members(concepts)
    members = _with_named(searched, named)
    _require_one_base(members)
    _reject_token_clashes(searched)
    base, table = members[0].concept.base, members[0].mask.table
    parts = (*_merged(members), *_scoped(members))
    density, density_by_layer = density_of(table, [part.mask for part in parts])
    if density > max_density:
        raise _too_dense(members, density, max_density, table)
    return Composition(
        base=base,
        table=table,
        members=members,
        parts=parts,
        density=density,
        density_by_layer=density_by_layer,
    )


def _members(concepts: Iterable[tuple[Concept, ConceptMask] | Member]) -> tuple[Member, ...]:
    """The concepts, sorted, each once."""
    chosen: dict[str, Member] = {}
    for each in concepts:
        member = each if isinstance(each, Member) else Member(*each)
        check_weight(member.weight, member.ref)
        other = chosen.setdefault(member.concept.ref, member)
        if other.weight != member.weight:
            raise UsageError(
                f"{member.concept.ref} is named with the weights {other.weight:g} and "
                f"{member.weight:g}; name it once"
            )
    return tuple(member for _, member in sorted(chosen.items()))


def _with_named(
    searched: tuple[Member, ...], named: Iterable[tuple[Concept, ConceptMask] | Member]
) -> tuple[Member, ...]:
    """All concepts, sorted; each once with each of its weights."""
    chosen = {(member.concept.ref, member.weight): member for member in searched}
    for each in named:
        member = each if isinstance(each, Member) else Member(*each)
        check_weight(member.weight, member.ref)
        chosen.setdefault((member.concept.ref, member.weight), member)
    if not chosen:
        raise UsageError("nothing to resolve; name at least one concept")
    members = tuple(member for _, member in sorted(chosen.items()))
    _members(member for member in members if member.concept.scope == "prompt")
    return members


def _require_one_base(members: tuple[Member, ...]) -> None:
    first = members[0]
    for member in members[1:]:
        if member.concept.base != first.concept.base or member.mask.table != first.mask.table:
            raise BaseModelMismatchError(
                f"cannot combine {first.ref!r}, made for base {first.concept.base}, with "
                f"{member.ref!r}, made for base {member.concept.base}. Concepts combine only on "
                f"one base model. See: cones show {member.concept.ref}"
            )


def _reject_token_clashes(members: tuple[Member, ...]) -> None:
    bound: dict[str, Member] = {}
    for member in members:
        concept = member.concept
        if concept.token is None:
            continue
        # CLIP's tokenizers fold case, so `Sks` and `sks` are one token.
        first = bound.setdefault(concept.token.casefold(), member)
        other = first.concept
        same_noun = (other.class_noun or "").casefold() == (concept.class_noun or "").casefold()
        same_place = other.scope == concept.scope and (same_noun or concept.scope == "prompt")
        # By the records, not the masks: a batch checks its lines before it has fetched any.
        same_mask = (other.mask_digest, first.weight) == (concept.mask_digest, member.weight)
        if not (same_mask and same_place):
            raise TokenClashError(
                f"{other.ref!r} and {concept.ref!r} both bind the token {concept.token!r}, so one "
                "prompt cannot tell them apart. Extract one of them again with another token and "
                f"push it: cones extract IMAGES --token OTHER …, cones push {concept.owner}/"
                f"{concept.name}; or resolve only one of the two"
            )


def _merged(members: tuple[Member, ...]) -> Iterable[Part]:
    """The one part of scope "prompt", if there is any."""
    prompt = [member for member in members if member.concept.scope == "prompt"]
    if not prompt:
        return
    masks = {member.mask.digest: member.mask for member in prompt}
    # Floating-point products depend on their order: always that of the digests.
    digests = sorted(masks)
    merged = masks[digests[0]]
    for digest in digests[1:]:
        merged = merged | masks[digest]
    yield Part(merged, "prompt", (), tuple(member.ref for member in prompt), None, None)


def _scoped(members: tuple[Member, ...]) -> Iterable[Part]:
    """Parts of scope "subject"; concepts with equal masks and words share one."""
    groups: dict[tuple[str, str, str], list[Member]] = {}
    for member in members:
        concept = member.concept
        if concept.scope == "subject":
            words = ((concept.token or "").casefold(), (concept.class_noun or "").casefold())
            groups.setdefault((member.mask.digest, *words), []).append(member)
    shared: dict[str, ConceptMask] = {}
    for (digest, _, _), group in sorted(groups.items()):
        one = group[0].concept
        yield Part(
            shared.setdefault(digest, group[0].mask),
            "subject",
            (*(one.token or "").split(), *(one.class_noun or "").split()),
            tuple(member.ref for member in group),
            one.token,
            one.class_noun,
        )


def _too_dense(
    members: tuple[Member, ...], density: float, limit: float, table: LayerTable
) -> DensityLimitError:
    largest = sorted(members, key=lambda member: -len(member.mask))[:5]
    listed = ", ".join(f"{member.ref} {member.mask.density:.1%}" for member in largest)
    return DensityLimitError(
        f"the {len(members)} concepts together shut {density:.1%} of {table.neuron_count} "
        f"neurons; the limit is {limit:.1%}. Largest: {listed}. Leave one out, extract it at a "
        "lower density, or raise the limit (max_density)"
    )
