"""Sketches: small, comparable without the masks, and as exact as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones_registry import ConceptMask, LayerTable
from cones_registry.resolver.sketch import FORMAT, SketchFormat, _Shuffle

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (320, 768), "a.attn2.to_v.weight": (64, 77)})


def mask_of(chosen: np.ndarray) -> ConceptMask:
    """A mask of the first layer from bool [320 * 768]."""
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.flatnonzero(chosen)})


def rows(*sketches: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), -1)


@pytest.mark.parametrize("jaccard", [0.0, 0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("density", [0.0005, 0.01, 0.2])
def test_an_estimate_is_within_its_stated_error(jaccard: float, density: float) -> None:
    generator = np.random.default_rng(1)
    errors = []
    for _ in range(8):
        # The union falls into three kinds: shared with probability `jaccard`, else of one alone.
        kind = generator.random(320 * 768)
        union = generator.random(320 * 768) < density
        shared, half = kind < jaccard, kind < jaccard + (1 - jaccard) / 2
        one, other = mask_of(union & half), mask_of(union & (shared | ~half))
        found = FORMAT.estimates(FORMAT.sketch(one), rows(FORMAT.sketch(other)))[0]
        errors.append(found - one.jaccard(other))
    # Buckets that borrow from others count twice: few members, larger errors.
    borrowed = 2 if density < 0.001 else 1
    assert abs(np.mean(errors)) < 3 * borrowed * FORMAT.error(jaccard) / np.sqrt(len(errors)) + 0.01
    assert max(map(abs, errors)) < 4 * borrowed * FORMAT.error(jaccard) + 0.01


def test_a_sketch_has_256_bytes_and_equal_masks_have_equal_ones() -> None:
    chosen = np.random.default_rng(0).random(320 * 768) < 0.1
    assert len(FORMAT.sketch(mask_of(chosen))) == FORMAT.byte_count == 256
    assert FORMAT.sketch(mask_of(chosen)) == FORMAT.sketch(mask_of(chosen.copy()))
    assert FORMAT.estimates(
        FORMAT.sketch(mask_of(chosen)), rows(FORMAT.sketch(mask_of(chosen)))
    ) == [1]


def test_a_sketch_never_changes() -> None:
    few = ConceptMask.from_indices(TABLE, {TABLE.names[1]: np.arange(0, 4928, 7)})
    many = mask_of(np.arange(320 * 768) % 3 == 0)
    assert FORMAT.sketch(few)[:8].hex() == "d6de306a7d3b08fa"
    assert FORMAT.sketch(many)[:8].hex() == "0c98e23f62732caa"


@given(st.sets(st.integers(0, 320 * 768 - 1), min_size=1, max_size=2000))
def test_both_ways_to_find_first_members_agree(members: set[int]) -> None:
    flags = np.zeros(320 * 768, np.bool_)
    flags[list(members)] = True
    mask = mask_of(flags)
    shuffle = _Shuffle.over(64 * mask.words.size, FORMAT.buckets)
    walked = FORMAT._walked(mask, shuffle, 64)
    assert (walked == FORMAT._sorted(mask, shuffle)).all()


@given(st.integers(1, 40), st.lists(st.integers(0, 2**40 - 1), min_size=1))
def test_the_shuffle_is_a_permutation(width: int, values: list[int]) -> None:
    shuffle = _Shuffle(width)
    neurons = np.array(values, np.int64) % shuffle.size
    places = shuffle.places(neurons)
    assert (shuffle.neurons(places) == neurons).all()
    assert places.min() >= 0
    assert places.max() < shuffle.size


def test_the_empty_mask_has_no_sketch() -> None:
    assert FORMAT.sketch(ConceptMask.empty(TABLE)) == b""


def test_more_bits_a_bucket_or_more_buckets_err_less() -> None:
    assert SketchFormat(512, 8).error(0.1) < SketchFormat(512, 4).error(0.1)
    assert SketchFormat(1024, 4).error(0.1) < SketchFormat(512, 4).error(0.1)
