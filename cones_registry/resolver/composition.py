"""Composition: what several concepts come to, ready to draw with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cones_registry import bitmap
from cones_registry.digest import Digest, sha256_bytes
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.record import Concept, Scope
from cones_registry.resolver.counting import OverlapCounts, count_overlaps
from cones_registry.weighting import format_weighted


@dataclass(frozen=True)
class Member:
    """One concept of a composition.

    Attributes:
        concept: its record.
        mask: what is shut: the concept's mask, or the best-ranking share of it.
        weight: that share, in (0, 1].
    """

    concept: Concept
    mask: ConceptMask
    weight: float = 1.0

    @property
    def ref(self) -> str:
        """`"owner/name:version"`, with `*weight` where it is not 1."""
        return format_weighted(self.concept.ref, self.weight)


@dataclass(frozen=True)
class Part:
    """One mask of a composition and the rows it acts on.

    Attributes:
        mask: what is shut.
        scope: "prompt": in every row of K and V; "subject": in the rows of `tokens` alone.
        tokens: words of the placeholder token and of the class noun; empty for scope "prompt".
        refs: the concepts it stands for, sorted; several where they share one mask or are merged.
        token, class_noun: as the concept has them; None for a part that merges several.
    """

    mask: ConceptMask
    scope: Scope
    tokens: tuple[str, ...]
    refs: tuple[str, ...]
    token: str | None
    class_noun: str | None

    @property
    def mask_digest(self) -> Digest:
        """Identity of the mask."""
        return self.mask.digest


@dataclass(frozen=True)
class Contribution:
    """What one concept adds.

    Attributes:
        ref, scope, weight, mask_digest: which concept, and the mask that stands for it.
        neuron_count: members of that mask.
        density: members / neurons of the layer table.
        exclusive_count: members that no other concept of the composition shuts.
        exclusive_share: exclusive_count / neuron_count, 0 for an empty mask.
        shared_count: members that another concept of the composition shuts too.
    """

    ref: str
    scope: Scope
    weight: float
    mask_digest: Digest
    neuron_count: int
    density: float
    exclusive_count: int
    exclusive_share: float
    shared_count: int


@dataclass(frozen=True)
class Overlap:
    """What two concepts share.

    Attributes:
        first, second: refs, first < second.
        shared_count: neurons both shut.
        jaccard: shared / union, in [0, 1]; 1 for two empty masks.
        expected_count: neurons two masks with these members a layer would share if they were
            independent and uniform within each layer: the sum of n_first * n_second / N over
            layers.
        expected_jaccard: the same as a Jaccard index.
    """

    first: str
    second: str
    shared_count: int
    jaccard: float
    expected_count: float
    expected_jaccard: float


@dataclass(frozen=True)
class Composition:
    """What several concepts come to. Equal whatever the order of the refs it was made from.

    What drawing needs is there at once; digest, contributions and overlaps are counted when they
    are first asked for.

    Attributes:
        base: fingerprint of the one base model.
        table: its layers.
        members: the concepts, sorted by ref.
        parts: one merged part of scope "prompt" (if any), then those of scope "subject".
        density: neurons that any part shuts / neurons of the table.
        density_by_layer: the same for each layer.
    """

    base: Digest
    table: LayerTable
    members: tuple[Member, ...] = field(repr=False)
    parts: tuple[Part, ...]
    density: float
    density_by_layer: Mapping[str, float] = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"Composition({', '.join(self.refs)}: {self.density:.2%} of "
            f"{self.table.neuron_count:,} neurons, base {self.base[:19]}…)"
        )

    @property
    def refs(self) -> tuple[str, ...]:
        """The concepts, sorted; `resolve` of them gives this composition again.

        (Of those that were only named in a prompt, `resolve(named=…)`.)
        """
        return tuple(member.ref for member in self.members)

    @property
    def mask(self) -> ConceptMask:
        """Union of the masks of scope "prompt"; the empty mask if there are none."""
        for part in self.parts:
            if part.scope == "prompt":
                return part.mask
        return ConceptMask.empty(self.table)

    @cached_property
    def digest(self) -> Digest:
        """Of base and parts without names: the cache key of whatever is made from them."""
        lines: list[tuple[Scope, Digest, str]] = sorted(
            (part.scope, part.mask_digest, " ".join(part.tokens).casefold()) for part in self.parts
        )
        head = ["cones composition 1", self.base, self.table.digest]
        return sha256_bytes("\n".join([*head, *map("\t".join, lines)]).encode("utf-8"))

    @cached_property
    def contributions(self) -> tuple[Contribution, ...]:
        """What each concept adds, in the order of `refs`."""
        return tuple(
            Contribution(
                ref=member.ref,
                scope=member.concept.scope,
                weight=member.weight,
                mask_digest=member.mask.digest,
                neuron_count=len(member.mask),
                density=member.mask.density,
                exclusive_count=exclusive,
                exclusive_share=exclusive / len(member.mask) if exclusive else 0.0,
                shared_count=len(member.mask) - exclusive,
            )
            for member, exclusive in zip(self.members, self._counts.exclusive.tolist(), strict=True)
        )

    @cached_property
    def overlaps(self) -> tuple[Overlap, ...]:
        """What each pair of concepts shares, in the order of `refs`."""
        sizes = np.array([layer.neuron_count for layer in self.table.layers], dtype=np.float64)
        counts = np.stack([member.mask.counts for member in self.members])
        expected = counts @ (counts / sizes).T
        return tuple(
            _overlap(
                (self.members[first], self.members[second]),
                int(self._counts.shared[first, second]),
                float(expected[first, second]),
            )
            for first in range(len(self.members))
            for second in range(first + 1, len(self.members))
        )

    @cached_property
    def shared_by(self) -> tuple[int, ...]:
        """Element k = neurons that exactly k of the concepts shut; element 0 the rest."""
        return tuple(self._counts.histogram.tolist())

    @cached_property
    def _counts(self) -> OverlapCounts:
        return count_overlaps(
            [member.mask.words for member in self.members], self.table.neuron_count
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the masks themselves, as JSON values."""
        return {
            "digest": self.digest,
            "base": self.base,
            "refs": list(self.refs),
            "density": self.density,
            "parts": [
                {
                    "scope": part.scope,
                    "tokens": list(part.tokens),
                    "refs": list(part.refs),
                    "mask_digest": part.mask_digest,
                    "neuron_count": len(part.mask),
                }
                for part in self.parts
            ],
            "contributions": [dict(vars(each)) for each in self.contributions],
            "overlaps": [dict(vars(each)) for each in self.overlaps],
            "density_by_layer": dict(self.density_by_layer),
            "shared_by": list(self.shared_by),
        }


def density_of(table: LayerTable, masks: list[ConceptMask]) -> tuple[float, dict[str, float]]:
    """(share of the table's neurons that any of the masks shuts, the same for each layer)."""
    union = masks[0].words
    for mask in masks[1:]:
        union = union | mask.words
    counts = bitmap.popcounts(union, table.word_starts) if len(masks) > 1 else masks[0].counts
    by_layer = {
        layer.name: count / layer.neuron_count
        for layer, count in zip(table.layers, counts.tolist(), strict=True)
    }
    return int(counts.sum()) / table.neuron_count, by_layer


def _overlap(pair: tuple[Member, Member], shared: int, expected: float) -> Overlap:
    total = len(pair[0].mask) + len(pair[1].mask)
    return Overlap(
        first=pair[0].ref,
        second=pair[1].ref,
        shared_count=shared,
        jaccard=shared / (total - shared) if total > shared else 1.0,
        expected_count=expected,
        expected_jaccard=expected / (total - expected) if total > expected else 1.0,
    )
