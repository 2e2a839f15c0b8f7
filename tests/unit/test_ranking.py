"""Ranks: coarse, kept in every layout, and what a mask is cut by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones_registry import ConceptMask, LayerTable, decode, encode
from cones_registry.codec import LAYOUTS, read_ranks
from cones_registry.errors import UsageError
from cones_registry.ranking import LEVELS, cut, ranks_of

TABLE = LayerTable.from_shapes({"a": (40, 77), "b": (1, 3), "c": (64, 64)})


def scored(seed: int = 0, density: float = 0.2) -> tuple[ConceptMask, dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    scores = {
        layer.name: generator.random((layer.rows, layer.cols), np.float32) for layer in TABLE.layers
    }
    flags = {name: values > 1 - density for name, values in scores.items()}
    return ConceptMask.from_dense(flags, table=TABLE), scores


def member_scores(mask: ConceptMask, scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([scores[name].reshape(-1)[mask.indices(name)] for name in TABLE.names])


def test_levels_are_shares_of_the_mask() -> None:
    mask, scores = scored()
    ranks = ranks_of(mask, scores)
    for level in range(LEVELS):
        assert (ranks >= level).sum() == pytest.approx(len(mask) * 2 ** (-level / 2), abs=1)
    order = member_scores(mask, scores).argsort()
    assert (np.diff(ranks[order].astype(int)) >= 0).all()


def test_equal_scores_have_equal_levels() -> None:
    mask, _ = scored()
    ones = {layer.name: np.ones((layer.rows, layer.cols), np.float32) for layer in TABLE.layers}
    assert set(ranks_of(mask, ones).tolist()) == {0}


@pytest.mark.parametrize("layout", [*LAYOUTS, "smallest"])
@pytest.mark.parametrize("density", [0, 0.0005, 0.3])
def test_ranks_survive_in_every_layout_and_change_no_mask(layout: str, density: float) -> None:
    mask, scores = scored(density=density)
    ranks = ranks_of(mask, scores)
    data = encode(mask, layout=layout, ranks=ranks)
    assert decode(data) == mask
    assert (read_ranks(data) == ranks).all()
    assert read_ranks(encode(mask, layout=layout)) is None


@given(st.integers(0, 3), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_a_smaller_cut_is_part_of_a_larger_and_of_the_best(seed: int, shares: list[float]) -> None:
    mask, scores = scored(seed)
    ranks = ranks_of(mask, scores)
    small, large = sorted(round(share * len(mask)) for share in shares)
    one, other = cut(mask, ranks, small), cut(mask, ranks, large)
    assert (len(one), len(other)) == (small, large)
    assert one & other == one
    assert other & mask == other
    if small:
        # What is left out is never of a higher level than what is kept.
        dropped = mask - one
        kept = ranks_of(mask, scores)[_members_of(one, mask)]
        gone = ranks_of(mask, scores)[_members_of(dropped, mask)]
        assert kept.min() >= gone.max(initial=0)


def _members_of(part: ConceptMask, mask: ConceptMask) -> np.ndarray:
    """Which of the members of `mask` a part of it has, bool [n]."""
    return np.concatenate([np.isin(mask.indices(name), part.indices(name)) for name in TABLE.names])


def test_a_cut_keeps_factors_with_their_members() -> None:
    mask, scores = scored()
    factors = np.linspace(0.1, 1, len(mask), dtype=np.float32)
    graded = ConceptMask(TABLE, mask.words, factors, "float32")
    part = cut(graded, ranks_of(mask, scores), 100)
    for name in TABLE.names:
        whole = dict(zip(graded.indices(name), graded.layer_factors(name), strict=True))
        for index, factor in zip(part.indices(name), part.layer_factors(name), strict=True):
            assert whole[index] == factor


def test_equal_levels_are_cut_from_all_layers_alike() -> None:
    mask, _ = scored(density=0.5)
    half = cut(mask, np.zeros(len(mask), np.uint8), len(mask) // 2)
    assert half.count("a") / mask.count("a") == pytest.approx(0.5, abs=0.05)
    assert half.count("c") / mask.count("c") == pytest.approx(0.5, abs=0.05)


def test_scores_that_do_not_fit_are_refused() -> None:
    mask, scores = scored()
    with pytest.raises(UsageError, match=r"layer 'a' are float32 \(3, 3\); expected floats"):
        ranks_of(mask, scores | {"a": np.zeros((3, 3), np.float32)})
    with pytest.raises(UsageError, match="layer 'c'"):
        ranks_of(mask, {"a": scores["a"], "b": scores["b"]})
    with pytest.raises(UsageError, match="NaN"):
        ranks_of(mask, scores | {"a": np.full((40, 77), np.nan, np.float32)})
    with pytest.raises(UsageError, match="to 100000"):
        cut(mask, ranks_of(mask, scores), 100_000)
    with pytest.raises(UsageError, match="expected uint8"):
        encode(mask, ranks=np.zeros(3, np.uint8))
