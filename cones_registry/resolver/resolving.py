"""Resolve: check several concepts against each other and merge them into one Composition."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

import numpy as np

from cones_registry import bitmap
from cones_registry.digest import Digest, sha256_bytes
from cones_registry.errors import (
    BaseModelMismatchError,
    ConflictError,
    LimitExceededError,
    UsageError,
)
from cones_registry.layers import LayerTable
from cones_registry.manifest import Concept, Scope
from cones_registry.mask import ConceptMask
from cones_registry.resolver.composition import Composition, Contribution, Overlap, Part
from cones_registry.resolver.counting import (
    in_exactly_one,
    occurrence_histogram,
    occurrence_planes,
)

DEFAULT_MAX_DENSITY: Final = 0.5
"""Largest share of the layer table that a composition may shut, unless the caller says otherwise.

Four concepts learnt with gates at their usual 10 to 20 % fit below it; a base model with more than
half of its cross-attention shut is no longer the model whose prompts the user knows.
"""

Pair = tuple[Concept, ConceptMask]


class TokenClashError(ConflictError):
    """Two different concepts bind one placeholder token."""


class DensityLimitError(LimitExceededError):
    """The concepts together shut more than the limit."""


def resolve(concepts: Iterable[Pair], *, max_density: float = DEFAULT_MAX_DENSITY) -> Composition:
    """The composition of concepts, the same for every order of them.

    Args:
        concepts: (record, mask) of each; one named twice counts once.
        max_density: largest share of the table's neurons that all masks together may shut, (0, 1].

    Raises:
        UsageError: no concepts, or a limit outside (0, 1].
        BaseModelMismatchError: concepts of different base models.
        TokenClashError: two different concepts with one token.
        DensityLimitError: more is shut than `max_density`.
    """
    if not 0 < max_density <= 1:
        raise UsageError(f"max_density is {max_density}; expected a share above 0 and up to 1")
    pairs = sorted({concept.ref: (concept, mask) for concept, mask in concepts}.items())
    chosen = [pair for _, pair in pairs]
    if not chosen:
        raise UsageError("nothing to resolve; name at least one concept")
    _require_one_base(chosen)
    _reject_token_clashes(chosen)
    table = chosen[0][1].table
    distinct = {concept.mask_digest: mask for concept, mask in chosen}
    parts = _parts(chosen, distinct)
    union = np.bitwise_or.reduce([mask.words for mask in distinct.values()])
    density = bitmap.popcount(union) / table.neuron_count
    contributions, shared_by = _contributions(chosen, table)
    if density > max_density:
        raise _too_dense(contributions, density, max_density, table)
    counts = bitmap.popcounts(union, table.word_starts)
    base = chosen[0][0].base
    return Composition(
        base=base,
        table=table,
        refs=tuple(concept.ref for concept, _ in chosen),
        parts=parts,
        digest=_digest(base, table, parts),
        contributions=contributions,
        overlaps=_overlaps(chosen, table),
        density=density,
        density_by_layer={
            layer.name: int(count) / layer.neuron_count
            for layer, count in zip(table.layers, counts, strict=True)
        },
        shared_by=shared_by,
    )


def _require_one_base(chosen: list[Pair]) -> None:
    first, first_mask = chosen[0]
    for concept, mask in chosen[1:]:
        if concept.base != first.base or mask.table != first_mask.table:
            raise BaseModelMismatchError(
                f"cannot combine {first.ref!r}, made for base {first.base}, with {concept.ref!r}, "
                f"made for base {concept.base}. Concepts combine only on one base model. "
                f"See: cones show {concept.ref}"
            )


def _reject_token_clashes(chosen: list[Pair]) -> None:
    bound: dict[str, Concept] = {}
    for concept, _ in chosen:
        if concept.token is None:
            continue
        # CLIP's tokenizers fold case, so `Sks` and `sks` are one token.
        other = bound.setdefault(concept.token.casefold(), concept)
        same_noun = (other.class_noun or "").casefold() == (concept.class_noun or "").casefold()
        same_place = other.scope == concept.scope and (same_noun or concept.scope == "prompt")
        if other.mask_digest != concept.mask_digest or not same_place:
            raise TokenClashError(
                f"{other.ref!r} and {concept.ref!r} both bind the token {concept.token!r}, so one "
                "prompt cannot tell them apart. Extract one of them again with another token and "
                f"push it: cones extract IMAGES --token OTHER …, cones push {concept.owner}/"
                f"{concept.name}; or resolve only one of the two"
            )


def _parts(chosen: list[Pair], distinct: dict[Digest, ConceptMask]) -> tuple[Part, ...]:
    parts: list[Part] = []
    prompt = [concept for concept, _ in chosen if concept.scope == "prompt"]
    if prompt:
        # Floating-point products depend on their order: always that of the digests.
        digests = sorted({concept.mask_digest for concept in prompt})
        merged = distinct[digests[0]]
        for digest in digests[1:]:
            merged = merged | distinct[digest]
        refs = tuple(concept.ref for concept in prompt)
        parts.append(Part(merged, "prompt", (), refs, None, None, merged.digest))
    groups: dict[tuple[str, str, str], list[Concept]] = {}
    for concept, _ in chosen:
        if concept.scope == "subject":
            key = (
                concept.mask_digest,
                (concept.token or "").casefold(),
                (concept.class_noun or "").casefold(),
            )
            groups.setdefault(key, []).append(concept)
    for (digest, _, _), members in sorted(groups.items()):
        one = members[0]
        parts.append(
            Part(
                distinct[digest],
                "subject",
                (*(one.token or "").split(), *(one.class_noun or "").split()),
                tuple(concept.ref for concept in members),
                one.token,
                one.class_noun,
                digest,
            )
        )
    return tuple(parts)


def _digest(base: Digest, table: LayerTable, parts: tuple[Part, ...]) -> Digest:
    lines: list[tuple[Scope, Digest, str]] = sorted(
        (part.scope, part.mask_digest, " ".join(part.tokens).casefold()) for part in parts
    )
    text = "\n".join(["cones composition 1", base, table.digest, *map("\t".join, lines)])
    return sha256_bytes(text.encode("utf-8"))


def _contributions(
    chosen: list[Pair], table: LayerTable
) -> tuple[tuple[Contribution, ...], tuple[int, ...]]:
    planes = occurrence_planes([mask.words for _, mask in chosen])
    alone = in_exactly_one(planes, chosen[0][1].words)
    contributions = []
    for concept, mask in chosen:
        exclusive = bitmap.popcount(mask.words & alone)
        count = len(mask)
        contributions.append(
            Contribution(
                concept.ref,
                concept.scope,
                concept.mask_digest,
                count,
                count / table.neuron_count,
                exclusive,
                exclusive / count if count else 0.0,
            )
        )
    return tuple(contributions), occurrence_histogram(planes, table.neuron_count, len(chosen))


def _overlaps(chosen: list[Pair], table: LayerTable) -> tuple[Overlap, ...]:
    sizes = np.array([layer.neuron_count for layer in table.layers], dtype=np.float64)
    overlaps = []
    for (first, left), (second, right) in itertools.combinations(chosen, 2):
        shared = bitmap.popcount(left.words & right.words)
        total = len(left) + len(right)
        expected = float((left.counts * (right.counts / sizes)).sum())
        overlaps.append(
            Overlap(
                first.ref,
                second.ref,
                shared,
                shared / (total - shared) if total > shared else 1.0,
                expected,
                expected / (total - expected) if total > expected else 1.0,
            )
        )
    return tuple(overlaps)


def _too_dense(
    contributions: tuple[Contribution, ...], density: float, limit: float, table: LayerTable
) -> DensityLimitError:
    largest = sorted(contributions, key=lambda each: -each.neuron_count)[:5]
    listed = ", ".join(f"{each.ref} {each.density:.1%}" for each in largest)
    return DensityLimitError(
        f"the {len(contributions)} concepts together shut {density:.1%} of {table.neuron_count} "
        f"neurons; the limit is {limit:.1%}. Largest: {listed}. Leave one out, extract it at a "
        "lower density, or raise the limit (max_density)"
    )
