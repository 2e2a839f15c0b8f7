"""Overlap counts agree with counting one neuron at a time, however many masks there are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones_registry.resolver import counting
from cones_registry.resolver.counting import count_overlaps, occurrence_planes

MASKS = st.lists(
    st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), min_size=1, max_size=20
)


@given(MASKS)
def test_overlap_counts_are_exact(masks: list[list[int]]) -> None:
    words = [np.array(each, dtype=np.uint64) for each in masks]
    members = np.array([np.unpackbits(each.view(np.uint8), bitorder="little") for each in words])
    counts = members.sum(axis=0, dtype=np.int64)
    found = count_overlaps(words, 192)
    assert found.histogram.tolist() == np.bincount(counts, minlength=len(masks) + 1).tolist()
    assert found.exclusive.tolist() == members[:, counts == 1].sum(axis=1).tolist()
    assert (found.shared == members.astype(int) @ members.T).all()


@given(MASKS)
def test_bit_slicing_counts_exactly(masks: list[list[int]]) -> None:
    words = [np.array(each, dtype=np.uint64) for each in masks]
    planes = occurrence_planes(words)
    bits = [np.unpackbits(plane.view(np.uint8), bitorder="little") for plane in planes]
    counts = sum(
        np.unpackbits(each.view(np.uint8), bitorder="little").astype(int) for each in words
    )
    assert (sum(each.astype(int) << place for place, each in enumerate(bits)) == counts).all()


@pytest.mark.parametrize("number", [4, 5])
def test_blocks_do_not_change_counts(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    words = [generator.integers(0, 2**63, 100, dtype=np.uint64) for _ in range(number)]
    whole = count_overlaps(words, 6400)
    monkeypatch.setattr(counting, "BLOCK", 7 * number)
    parts = count_overlaps(words, 6400)
    assert (whole.shared == parts.shared).all()
    assert (whole.exclusive == parts.exclusive).all()
    assert (whole.histogram == parts.histogram).all()
