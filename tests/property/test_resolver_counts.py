"""Bit-sliced counts agree with counting one neuron at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cones_registry.resolver.counting import (
    in_exactly_one,
    occurrence_histogram,
    occurrence_planes,
)


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), max_size=20))
def test_bit_slicing_counts_exactly(masks: list[list[int]]) -> None:
    words = [np.array(each, dtype=np.uint64) for each in masks]
    counts = np.zeros(192, dtype=int)
    for each in words:
        counts += np.unpackbits(each.view(np.uint8), bitorder="little")
    planes = occurrence_planes(words)
    histogram = occurrence_histogram(planes, 192, len(words))
    assert list(histogram) == np.bincount(counts, minlength=len(words) + 1).tolist()
    alone = in_exactly_one(planes, np.zeros(3, dtype=np.uint64))
    assert (np.unpackbits(alone.view(np.uint8), bitorder="little") == (counts == 1)).all()
