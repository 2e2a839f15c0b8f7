"""Composition: what several concepts come to, ready to draw with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cones_registry.digest import Digest
from cones_registry.layers import LayerTable
from cones_registry.manifest import Scope
from cones_registry.mask import ConceptMask


@dataclass(frozen=True)
class Part:
    """One mask of a composition and the rows it acts on.

    Attributes:
        mask: what is shut.
        scope: "prompt": in every row of K and V; "subject": in the rows of `tokens` alone.
        tokens: words of the placeholder token and of the class noun; empty for scope "prompt".
        refs: the concepts it stands for, sorted; several where they share one mask or are merged.
        token, class_noun: as the concept has them; None for a part that merges several.
        mask_digest: identity of the mask.
    """

    mask: ConceptMask
    scope: Scope
    tokens: tuple[str, ...]
    refs: tuple[str, ...]
    token: str | None
    class_noun: str | None
    mask_digest: Digest


@dataclass(frozen=True)
class Contribution:
    """What one concept adds.

    Attributes:
        ref, scope, mask_digest: which concept.
        neuron_count: members of its mask.
        density: members / neurons of the layer table.
        exclusive_count: members that no other concept of the composition shuts.
        exclusive_share: exclusive_count / neuron_count, 0 for an empty mask.
    """

    ref: str
    scope: Scope
    mask_digest: Digest
    neuron_count: int
    density: float
    exclusive_count: int
    exclusive_share: float


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

    Attributes:
        base: fingerprint of the one base model.
        table: its layers.
        refs: the concepts, sorted.
        parts: one merged part of scope "prompt" (if any), then those of scope "subject".
        digest: of base and parts without names: the cache key of whatever is made from it.
        contributions: one for each ref, in order.
        overlaps: one for each pair of refs.
        density: neurons that any part shuts / neurons of the table.
        density_by_layer: the same for each layer.
        shared_by: element k = neurons that exactly k of the concepts shut; element 0 the rest.
    """

    base: Digest
    table: LayerTable
    refs: tuple[str, ...]
    parts: tuple[Part, ...]
    digest: Digest
    contributions: tuple[Contribution, ...]
    overlaps: tuple[Overlap, ...]
    density: float
    density_by_layer: Mapping[str, float] = field(repr=False)
    shared_by: tuple[int, ...] = field(repr=False)

    @cached_property
    def mask(self) -> ConceptMask:
        """Union of the masks of scope "prompt"; the empty mask if there are none."""
        for part in self.parts:
            if part.scope == "prompt":
                return part.mask
        return ConceptMask.empty(self.table)

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
