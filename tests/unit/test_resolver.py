"""Several concepts come to one composition: merged, kept apart, refused, explained."""

import itertools
from typing import Any

import numpy as np
import pytest

from cones_registry.errors import BaseModelMismatchError, LimitExceededError, UsageError
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.record import Concept
from cones_registry.resolver import DensityLimitError, TokenClashError, resolve

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16), "a.attn2.to_v.weight": (5, 13)})
BASE = "sha256:" + "1" * 64


def mask_of(*indices: int, table: LayerTable = TABLE) -> ConceptMask:
    return ConceptMask.from_indices(table, {table.names[0]: np.array(indices, np.int32)})


def pair(ref: str, mask: ConceptMask, **changes: Any) -> tuple[Concept, ConceptMask]:
    owner, _, name = ref.partition("/")
    record: dict[str, Any] = {
        "owner": owner,
        "name": name,
        "version": 1,
        "base": BASE,
        "mask_digest": mask.digest,
        "blob_digest": mask.digest,
        "blob_bytes": 1,
        "neuron_count": len(mask),
        "table_neuron_count": mask.table.neuron_count,
        "density": mask.density,
        "precision": mask.precision,
        "layout": "gap8",
        "scope": "prompt",
    }
    return Concept(**(record | changes)), mask


def test_prompt_masks_are_merged_into_one_part() -> None:
    composition = resolve([pair("a/x", mask_of(1, 2)), pair("a/y", mask_of(2, 3))])
    assert [part.scope for part in composition.parts] == ["prompt"]
    assert composition.mask == mask_of(1, 2, 3)
    assert composition.parts[0].tokens == ()
    assert composition.parts[0].refs == ("a/x:1", "a/y:1")


def test_subject_masks_stay_apart_and_the_prompt_mask_is_then_empty() -> None:
    composition = resolve(
        [
            pair("a/x", mask_of(1), scope="subject", token="sks", class_noun="teddy bear"),
            pair("a/y", mask_of(2), scope="subject", token="zwx", class_noun="dog"),
        ]
    )
    assert {part.tokens for part in composition.parts} == {("sks", "teddy", "bear"), ("zwx", "dog")}
    assert len(composition.mask) == 0


def test_equal_subject_masks_are_stored_once() -> None:
    same = pair("a/x", mask_of(1), scope="subject", token="sks", class_noun="dog")
    twin = pair("b/x", mask_of(1), scope="subject", token="sks", class_noun="dog")
    other = pair("c/x", mask_of(1), scope="subject", token="zwx", class_noun="dog")
    assert len(resolve([same, twin]).parts) == 1
    parts = resolve([same, twin, other]).parts
    assert len(parts) == 2
    assert parts[0].mask is parts[1].mask


def test_the_order_of_refs_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    pairs = []
    for number in range(4):
        indices = np.flatnonzero(generator.random(128) < 0.2).astype(np.int32)
        mask = ConceptMask.from_indices(
            TABLE,
            {TABLE.names[0]: indices},
            {TABLE.names[0]: generator.random(indices.size).astype(np.float32)},
        )
        pairs.append(pair(f"a/c{number}", mask))
    results = {
        (c.digest, c.mask.digest, str(c.to_json()))
        for c in (resolve(order) for order in itertools.permutations(pairs))
    }
    assert len(results) == 1


def test_the_digest_names_content_not_refs() -> None:
    one = resolve([pair("a/x", mask_of(1)), pair("a/y", mask_of(2))])
    renamed = resolve([pair("b/q", mask_of(2)), pair("c/r", mask_of(1), version=7)])
    assert one.digest == renamed.digest
    assert one.digest != resolve([pair("a/x", mask_of(1))]).digest
    assert (
        one.digest
        != resolve(
            [
                pair("a/x", mask_of(1), base="sha256:" + "2" * 64),
                pair("a/y", mask_of(2), base="sha256:" + "2" * 64),
            ]
        ).digest
    )
    scoped = resolve([pair("a/x", mask_of(1), scope="subject", token="sks")])
    assert scoped.digest != resolve([pair("a/x", mask_of(1))]).digest


def test_counts_and_overlaps_are_exact() -> None:
    composition = resolve(
        [
            pair("a/x", mask_of(1, 2, 3, 4)),
            pair("a/y", mask_of(3, 4, 5)),
            pair("a/z", mask_of(4, 9)),
        ]
    )
    exclusive = {each.ref: each.exclusive_count for each in composition.contributions}
    assert exclusive == {"a/x:1": 2, "a/y:1": 1, "a/z:1": 1}
    assert composition.contributions[0].exclusive_share == 0.5
    shared = {(each.first, each.second): each.shared_count for each in composition.overlaps}
    assert shared == {("a/x:1", "a/y:1"): 2, ("a/x:1", "a/z:1"): 1, ("a/y:1", "a/z:1"): 1}
    first = composition.overlaps[0]
    assert first.jaccard == 2 / 5
    assert first.expected_count == pytest.approx(4 * 3 / 128)
    assert composition.shared_by == (TABLE.neuron_count - 6, 4, 1, 1)
    assert composition.density == 6 / TABLE.neuron_count
    assert composition.density_by_layer == {TABLE.names[0]: 6 / 128, TABLE.names[1]: 0.0}


def test_a_concept_named_twice_counts_once() -> None:
    once = resolve([pair("a/x", mask_of(1))])
    twice = resolve([pair("a/x", mask_of(1)), pair("a/x", mask_of(1))])
    assert once.to_json() == twice.to_json()


def test_two_concepts_with_one_token_clash_and_the_error_says_how_to_fix_it() -> None:
    first = pair("a/x", mask_of(1), token="sks", class_noun="dog", scope="subject")
    second = pair("a/y", mask_of(2), token="SKS", class_noun="cat", scope="subject")
    with pytest.raises(TokenClashError, match=r"'a/x:1' and 'a/y:1' both bind .*another token"):
        resolve([first, second])
    assert TokenClashError.exit_code == 11


def test_different_bases_are_refused_and_both_are_named() -> None:
    other = "sha256:" + "2" * 64
    with pytest.raises(BaseModelMismatchError) as caught:
        resolve([pair("a/x", mask_of(1)), pair("b/y", mask_of(2), base=other)])
    for text in ("a/x:1", "b/y:1", BASE, other):
        assert text in str(caught.value)


def test_too_dense_is_refused_with_the_numbers() -> None:
    pairs = [pair("a/x", mask_of(*range(0, 60))), pair("a/y", mask_of(*range(50, 120)))]
    with pytest.raises(DensityLimitError, match=r"62\.2% of 193 neurons; the limit is 50\.0%"):
        resolve(pairs)
    assert resolve(pairs, max_density=0.7).density == 120 / 193
    assert issubclass(DensityLimitError, LimitExceededError)


@pytest.mark.parametrize("limit", [0, -1, 1.5, float("nan")])
def test_a_limit_that_is_no_share_is_refused(limit: float) -> None:
    with pytest.raises(UsageError):
        resolve([pair("a/x", mask_of(1))], max_density=limit)


def test_nothing_to_resolve_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        resolve([])
