"""The algebra of masks, against Python sets and dense arrays."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

SHAPES = st.dictionaries(
    st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=3),
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    min_size=1,
    max_size=4,
)


@st.composite
def masks(draw: Any, count: int, *, graded: bool = False) -> list[ConceptMask]:
    """`count` masks over one table."""
    table = LayerTable.from_shapes(draw(SHAPES))
    made = []
    for _ in range(count):
        indices, factors = {}, {}
        for layer in table.layers:
            members = draw(st.sets(st.integers(0, layer.neuron_count - 1), max_size=30))
            indices[layer.name] = np.array(sorted(members), np.int32)
            values = st.floats(0, 2, width=16)
            size = len(members)
            factors[layer.name] = np.array(
                draw(st.lists(values, min_size=size, max_size=size)), np.float16
            )
        made.append(ConceptMask.from_indices(table, indices, factors if graded else None))
    return made


def members(mask: ConceptMask) -> set[tuple[str, int]]:
    return {(name, int(index)) for name in mask.table.names for index in mask.indices(name)}


@given(masks(2))
def test_operators_are_those_of_sets(pair: list[ConceptMask]) -> None:
    a, b = pair

    assert members(a | b) == members(a) | members(b)
    assert members(a & b) == members(a) & members(b)
    assert members(a - b) == members(a) - members(b)
    assert (a == b) == (members(a) == members(b)) == (a.digest == b.digest)
    assert len(a) == len(members(a))


@given(masks(3))
def test_binary_union_and_intersection_are_a_lattice(three: list[ConceptMask]) -> None:
    a, b, c = three
    empty = ConceptMask.empty(a.table)

    assert a | b == b | a
    assert a & b == b & a
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert a | a == a & a == a
    assert a | (a & b) == a & (a | b) == a
    assert a & (b | c) == (a & b) | (a & c)
    assert a | empty == a
    assert a - a == a & empty == empty
    assert (a - b) | (a & b) == a


@given(masks(2))
def test_jaccard_is_shared_over_union(pair: list[ConceptMask]) -> None:
    a, b = pair
    union = members(a) | members(b)

    expected = len(members(a) & members(b)) / len(union) if union else 1.0

    assert a.jaccard(b) == b.jaccard(a) == expected
    assert a.jaccard(a) == 1.0


@given(masks(1))
def test_every_view_of_a_mask_makes_it_again(one: list[ConceptMask]) -> None:
    (mask,) = one
    names = mask.table.names

    assert ConceptMask.from_indices(mask.table, {n: mask.indices(n) for n in names}) == mask
    assert ConceptMask.from_dense({n: mask.to_dense(n) for n in names}) == mask
    assert ConceptMask(mask.table, mask.words) == mask


@given(masks(2, graded=True))
def test_graded_union_multiplies_multipliers(pair: list[ConceptMask]) -> None:
    a, b = pair

    for name in a.table.names:
        assert np.array_equal((a | b).multiplier(name), a.multiplier(name) * b.multiplier(name))
    assert a | b == b | a
    assert members(a | b) == members(a) | members(b)


@given(masks(2, graded=True))
def test_graded_parts_keep_their_factors(pair: list[ConceptMask]) -> None:
    a, b = pair

    for name in a.table.names:
        only_a = (a - b).to_dense(name)
        shared = (a & b).to_dense(name)
        left, right = a.multiplier(name), b.multiplier(name)
        assert np.array_equal((a - b).multiplier(name)[only_a], left[only_a])
        assert np.array_equal((a & b).multiplier(name)[shared], np.maximum(left, right)[shared])


@given(masks(2, graded=True))
def test_graded_masks_are_equal_when_their_digests_are(pair: list[ConceptMask]) -> None:
    a, b = pair

    same = all(
        np.array_equal(a.indices(n), b.indices(n))
        and np.array_equal(a.layer_factors(n), b.layer_factors(n))
        for n in a.table.names
    )

    assert (a == b) == (a.digest == b.digest) == same
