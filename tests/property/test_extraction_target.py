"""Selecting neurons by score: so many, the highest, never a harmful one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cones_registry.extraction.target import above, highest
from cones_registry.layers import LayerTable

TABLE = LayerTable.from_shapes(
    {"a.attn2.to_k.weight": (3, 5), "a.attn2.to_v.weight": (3, 5), "b.attn2.to_k.weight": (7, 2)}
)
SCORES = st.lists(
    st.integers(-4, 8).map(lambda value: value / 4),
    min_size=TABLE.neuron_count,
    max_size=TABLE.neuron_count,
)


def by_layer(values: list[float]) -> dict[str, np.ndarray]:
    flat = np.asarray(values, np.float32)
    parts = np.split(flat, np.cumsum([layer.neuron_count for layer in TABLE.layers])[:-1])
    return {
        layer.name: part.reshape(layer.rows, layer.cols)
        for layer, part in zip(TABLE.layers, parts, strict=True)
    }


@given(SCORES, st.floats(0, 1))
def test_the_highest_positive_scores_are_taken(values: list[float], density: float) -> None:
    mask = highest(TABLE, by_layer(values), density)
    inside = np.concatenate([mask.to_dense(name).ravel() for name in TABLE.names])
    scores = np.asarray(values)
    positive = int((scores > 0).sum())
    assert mask.density <= density + 1e-6
    assert len(mask) == positive or (len(mask) + 1) / len(values) > density
    if len(mask):
        assert scores[inside].min() > 0
        assert scores[inside].min() >= scores[~inside & (scores > 0)].max(initial=0)


@given(SCORES, st.floats(0, 1), st.floats(0, 1))
def test_a_lower_density_is_a_part_of_a_higher_one(
    values: list[float], one: float, other: float
) -> None:
    scores = by_layer(values)
    small, large = (highest(TABLE, scores, density) for density in sorted((one, other)))
    assert small & large == small


@given(SCORES, st.integers(0, 8))
def test_tau_takes_exactly_what_scores_above_it(values: list[float], quarters: int) -> None:
    mask = above(TABLE, by_layer(values), quarters / 4)
    assert len(mask) == sum(value > quarters / 4 for value in values)
