"""Any mask survives any layout."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones_registry.codec import LAYOUTS, decode, decode_layer, encode, read_counts
from cones_registry.codec.gaps import MAX_SHIFT, WIDTHS, decode_gaps, encode_gaps, set_gaps
from cones_registry.codec.kernels import load_kernels
from cones_registry.factors import PRECISIONS
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask


@st.composite
def masks(draw: Any) -> ConceptMask:
    names = draw(
        st.lists(st.text("abc.ü", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)
    )
    shapes = {name: draw(st.tuples(st.integers(1, 40), st.integers(1, 40))) for name in names}
    table = LayerTable.from_shapes(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    flags = {}
    for name, shape in shapes.items():
        flags[name] = rng.random(shape) < draw(st.sampled_from([0, 0.001, 0.02, 0.1, 0.5, 0.99, 1]))
    mask = ConceptMask.from_dense(flags)
    precision = draw(st.sampled_from(PRECISIONS))
    if precision == "binary":
        return mask
    return ConceptMask(table, mask.words, rng.random(len(mask)).astype(np.float32), precision)


@given(masks(), st.sampled_from(sorted(LAYOUTS)))
def test_decode_is_the_inverse_of_encode(mask: ConceptMask, layout: str) -> None:
    data = encode(mask, layout=layout)

    again = decode(data)

    assert again == mask
    assert (again.digest, again.precision) == (mask.digest, mask.precision)
    assert read_counts(data) == {name: mask.count(name) for name in mask.table.names}
    for name in mask.table.names:
        assert np.array_equal(decode_layer(data, name), mask.indices(name))


@pytest.fixture(scope="module")
def kernels() -> None:
    """From here on numba decodes, where it is installed."""
    load_kernels()


@pytest.mark.usefixtures("kernels")
@given(
    st.sets(st.integers(0, 100_000), max_size=300),
    st.integers(0, MAX_SHIFT),
    st.sampled_from(WIDTHS),
)
def test_gaps_survive_any_shift_and_width(positions: set[int], shift: int, width: int) -> None:
    expected = np.array(sorted(positions), np.int32)
    gaps = encode_gaps(expected, shift, width)

    parts = list(decode_gaps(gaps, 100_001))
    packed = np.zeros(12_501, dtype=np.uint8)
    set_gaps(packed, gaps, 100_001)

    assert np.array_equal(np.concatenate([np.empty(0, np.int64), *parts]), expected)
    assert np.array_equal(np.flatnonzero(np.unpackbits(packed, bitorder="little")), expected)
