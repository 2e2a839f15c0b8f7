"""ConceptMask: making one, looking into it, its identity, and what is refused."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from cones_registry.errors import BaseModelMismatchError, NotFoundError, UsageError
from cones_registry.layers import WORD_BITS, LayerTable
from cones_registry.mask import ConceptMask

TABLE = LayerTable.from_shapes({"a": (5, 7), "b": (1, 1), "c": (8, 16), "d": (3, 50)})
INDICES = {"a": [0, 3, 34], "c": [63, 64, 127], "d": [149]}
FACTORS = {"a": [0.0, 0.25, 0.5], "c": [1.0, 0.75, 0.125], "d": [0.5]}


def make(indices: Any = INDICES, factors: Any = None, precision: Any = None) -> ConceptMask:
    return ConceptMask.from_indices(
        TABLE,
        {name: np.array(values, np.int32) for name, values in indices.items()},
        factors and {name: np.array(values, np.float32) for name, values in factors.items()},
        precision=precision,
    )


def test_members_come_back_as_indices_and_as_dense_arrays() -> None:
    mask = make()

    for name in TABLE.names:
        layer = TABLE.layer(name)
        dense = np.zeros(layer.neuron_count, np.bool_)
        dense[INDICES.get(name, [])] = True
        assert mask.indices(name).tolist() == INDICES.get(name, [])
        assert mask.indices(name).dtype == np.int32
        assert np.array_equal(mask.to_dense(name), dense.reshape(layer.rows, layer.cols))
        assert mask.count(name) == len(INDICES.get(name, []))


def test_length_and_density_count_members() -> None:
    assert len(make()) == 7
    assert make().density == 7 / TABLE.neuron_count
    assert len(ConceptMask.empty(TABLE)) == 0


def test_dense_and_indices_make_the_same_mask() -> None:
    mask = make()

    assert ConceptMask.from_dense({n: mask.to_dense(n) for n in TABLE.names}) == mask
    assert ConceptMask.from_dense({n: mask.to_dense(n) for n in INDICES}, table=TABLE) == mask


def test_words_start_anew_with_every_layer_and_count_from_the_lowest_bit() -> None:
    mask = make({"a": [0, 34], "b": [0], "c": [64], "d": [149]})

    assert TABLE.word_starts == (0, 1, 2, 4)
    assert mask.words.tolist() == [1 | 1 << 34, 1, 0, 1, 0, 0, 1 << 21]
    assert mask.layer_words("c").tolist() == [0, 1]
    assert mask.words.itemsize * 8 == WORD_BITS


def test_a_member_is_multiplied_by_its_factor_and_the_rest_by_one() -> None:
    binary, graded = make(), make(factors=FACTORS)

    assert binary.multiplier("a").dtype == np.float32
    for name in TABLE.names:
        expected = np.ones(TABLE.layer(name).neuron_count, np.float32)
        expected[INDICES.get(name, [])] = 0
        assert np.array_equal(binary.multiplier(name).reshape(-1), expected)
        expected[INDICES.get(name, [])] = FACTORS.get(name, [])
        assert np.array_equal(graded.multiplier(name).reshape(-1), expected)


def test_factors_stand_in_index_order_over_the_whole_table() -> None:
    mask = make(factors=FACTORS)

    assert mask.factors is not None
    assert mask.factors.tolist() == [*FACTORS["a"], *FACTORS["c"], *FACTORS["d"]]
    assert mask.layer_factors("c").tolist() == FACTORS["c"]
    assert mask.layer_factors("b").tolist() == []
    assert make().layer_factors("a").tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [
        ("2bit", np.float32, [0, np.float32(1 / 3), np.float32(2 / 3)]),
        ("float16", np.float16, [0, 0.25, np.float16(0.6)]),
        ("float32", np.float32, [0, 0.25, np.float32(0.6)]),
    ],
)
def test_factors_are_rounded_to_the_precision(precision: Any, dtype: Any, expected: Any) -> None:
    mask = make({"a": [0, 3, 34]}, {"a": [0, 0.25, 0.6]}, precision)

    assert mask.precision == precision
    assert mask.factors is not None
    assert mask.factors.dtype == dtype
    assert mask.factors.tolist() == np.array(expected, dtype).tolist()


def test_precision_follows_the_factors_unless_it_is_given() -> None:
    half = {name: np.array(values, np.float16) for name, values in FACTORS.items()}
    indices = {name: np.array(values) for name, values in INDICES.items()}

    assert make().precision == "binary"
    assert make(factors=FACTORS).precision == "float32"
    assert ConceptMask.from_indices(TABLE, indices, half).precision == "float16"


@pytest.mark.parametrize("precision", [None, "2bit", "float16", "float32"])
def test_a_mask_whose_factors_are_all_zero_is_the_binary_mask(precision: Any) -> None:
    zero = make(factors={"a": [0, -0.0, 0]}, precision=precision)

    assert zero == make()
    assert zero.digest == make().digest
    assert zero.precision == "binary"
    assert zero.factors is None


def test_equal_factor_values_are_one_mask_at_any_precision() -> None:
    half, single = make(factors=FACTORS, precision="float16"), make(factors=FACTORS)

    assert half == single
    assert half.digest == single.digest
    assert hash(half) == hash(single)


def test_digest_tells_members_factors_and_tables_apart() -> None:
    other = LayerTable.from_shapes({"a": (7, 5), "b": (1, 1), "c": (8, 16), "d": (3, 50)})
    masks = [
        make(),
        make({"a": [0]}),
        make(factors=FACTORS),
        make(factors=FACTORS | {"d": [0.25]}),
        ConceptMask.empty(TABLE),
        ConceptMask.empty(other),
    ]

    assert len({mask.digest for mask in masks}) == len(masks)
    assert len(set(masks)) == len(masks)


def test_digest_is_what_it_always_was() -> None:
    # Stored registries hold these digests: a change here breaks every one of them.
    binary = "sha256:625d5c7602406982c2447015c2bd78d4478a6b694614502b11e5df820fba09e1"
    graded = "sha256:d47c2da79484d6b4bb391be11687205d9939a4bd72efd870613ba4ceaeaabba4"

    assert make().digest == binary
    assert make(factors=FACTORS, precision="float16").digest == graded


def test_a_mask_cannot_be_changed() -> None:
    mask = make(factors=FACTORS)

    with pytest.raises(AttributeError):
        mask.words = mask.words.copy()  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        mask.words[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        mask.layer_words("a")[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        mask.layer_factors("a")[0] = 1


def test_a_mask_does_not_follow_the_array_it_was_made_from() -> None:
    words = make().words.copy()
    mask = ConceptMask(TABLE, words)

    words[:] = 0

    assert mask == make()


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copy_is_the_same_mask_and_as_immutable(clone: Any) -> None:
    mask = clone(make(factors=FACTORS, precision="float16"))

    assert mask == make(factors=FACTORS)
    assert mask.precision == "float16"
    assert not mask.words.flags.writeable
    assert not mask.factors.flags.writeable


def test_repr_says_how_much_is_shut() -> None:
    assert repr(make()) == "ConceptMask(7 of 314 neurons in 4 layers, binary, density 2.229%)"


@pytest.mark.parametrize(
    ("indices", "fact"),
    [
        ({"a": np.array([3, 1])}, "layer 'a': index 1 follows 3"),
        ({"a": np.array([1, 1])}, "layer 'a': index 1 follows 1"),
        ({"a": np.array([-1, 1])}, "layer 'a': there is no neuron -1"),
        ({"a": np.array([35])}, "layer 'a': there is no neuron 35; indices run from 0 to 34"),
        ({"a": np.array([2**40])}, "there is no neuron 1099511627776"),
        ({"a": np.array([2**63], np.uint64)}, "there is no neuron 9223372036854775808"),
        ({"a": np.array([1.0])}, "indices are float64"),
        ({"a": np.array([True])}, "indices are bool"),
        ({"a": np.array([[1, 2]])}, "expected integers"),
        ({"a": np.array(3)}, "expected integers"),
    ],
)
def test_bad_indices_name_the_layer_and_the_value(indices: Any, fact: str) -> None:
    with pytest.raises(UsageError, match="layer 'a'") as caught:
        ConceptMask.from_indices(TABLE, indices)

    assert fact in str(caught.value)


def test_layers_that_are_not_there_are_not_found() -> None:
    for make_one in (
        lambda: make({"x": [1]}),
        lambda: make(factors={"x": []}),
        lambda: ConceptMask.from_dense({"x": np.zeros((1, 1), np.bool_)}, table=TABLE),
        lambda: make().indices("x"),
        lambda: make().multiplier("x"),
    ):
        with pytest.raises(NotFoundError, match="no layer 'x'"):
            make_one()


@pytest.mark.parametrize(
    ("factors", "precision", "fact"),
    [
        ({"a": [0.5, 0.5]}, None, "layer 'a' has 3 indices but factors float32"),
        ({"b": [0.5]}, None, "layer 'b' has 0 indices"),
        ({"a": [0.5, np.nan, 0]}, None, "NaN or infinite"),
        ({"a": [0.5, np.inf, 0]}, None, "NaN or infinite"),
        ({"a": [0.5, 0, 0]}, "binary", "some factors are not 0"),
        ({"a": [0.5, 1.5, 0]}, "2bit", "lie in [0, 1]"),
        ({"a": [0.5, -0.1, 0]}, "2bit", "lie in [0, 1]"),
        ({"a": [0.5, 1e6, 0]}, "float16", "too large for float16"),
        ({"a": [0.5, 0, 0]}, "int8", "no precision 'int8'"),
    ],
)
def test_bad_factors_say_what_is_wrong(factors: Any, precision: Any, fact: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(factors=factors, precision=precision)

    assert fact in str(caught.value)


@pytest.mark.parametrize(
    "flags", [np.zeros((7, 5), np.bool_), np.zeros(35, np.bool_), np.zeros((5, 7), np.uint8)]
)
def test_dense_arrays_must_be_bool_of_the_layers_shape(flags: Any) -> None:
    with pytest.raises(UsageError, match="layer 'a' gave"):
        ConceptMask.from_dense({"a": flags}, table=TABLE)


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (np.zeros(6, np.uint64), "words must be uint64 of shape"),
        (np.zeros(7, np.int64), "words must be uint64"),
        (np.array([1 << 35, 0, 0, 0, 0, 0, 0], np.uint64), "layer 'a' has bits set beyond"),
        (np.array([0, 2, 0, 0, 0, 0, 0], np.uint64), "layer 'b' has bits set beyond"),
    ],
)
def test_words_must_fit_the_table(words: Any, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        ConceptMask(TABLE, words)


@pytest.mark.parametrize("operation", ["__or__", "__and__", "__sub__", "jaccard"])
def test_masks_of_two_tables_do_not_combine(operation: str) -> None:
    other = ConceptMask.empty(LayerTable.from_shapes({"a": (5, 7)}))

    with pytest.raises(BaseModelMismatchError, match="only on one base model"):
        getattr(make(), operation)(other)
    assert make() != other


@pytest.mark.parametrize("operation", ["__or__", "__and__", "__sub__"])
def test_a_mask_combines_only_with_a_mask(operation: str) -> None:
    assert getattr(make(), operation)({1, 2}) is NotImplemented
    assert make() != {1, 2}


class TestComposition:
    """Of graded masks: `|` multiplies factors, `&` keeps the larger, `-` keeps the left ones."""

    first = make({"a": [0, 3, 34]}, {"a": [0.5, 0.25, 0]})
    second = make({"a": [3, 7, 34]}, {"a": [0.5, 2.0, 0.75]})

    def test_union_multiplies_factors(self) -> None:
        union = self.first | self.second

        assert union.indices("a").tolist() == [0, 3, 7, 34]
        assert union.layer_factors("a").tolist() == [0.5, 0.125, 2.0, 0]

    def test_union_multiplies_what_the_weights_are_multiplied_by(self) -> None:
        union = self.first | self.second

        for name in TABLE.names:
            product = self.first.multiplier(name) * self.second.multiplier(name)
            assert np.array_equal(union.multiplier(name), product)

    def test_what_a_binary_mask_shuts_stays_shut(self) -> None:
        union = self.second | make({"a": [7]})

        assert union.layer_factors("a").tolist() == [0.5, 0, 0.75]
        assert union.precision == "float32"

    def test_intersection_keeps_the_larger_factor(self) -> None:
        both = self.first & self.second

        assert both.indices("a").tolist() == [3, 34]
        assert both.layer_factors("a").tolist() == [0.5, 0.75]

    def test_difference_keeps_the_left_factors(self) -> None:
        rest = self.first - make({"a": [3]})

        assert rest.indices("a").tolist() == [0, 34]
        assert rest.layer_factors("a").tolist() == [0.5, 0]

    def test_precision_of_a_result_holds_its_factors(self) -> None:
        half = make({"a": [0]}, {"a": [0.1]}, "float16")
        two_bit = make({"a": [0]}, {"a": [1 / 3]}, "2bit")
        binary = make({"a": [1]})

        assert (half | binary).precision == "float16"
        assert (two_bit | binary).precision == "2bit"
        assert (two_bit | two_bit).precision == "float32"
        assert (two_bit & two_bit).precision == "2bit"
        assert (two_bit & half).precision == "float32"
        assert (half - binary).precision == "float16"

    def test_a_product_that_leaves_float32_is_an_error(self) -> None:
        huge = make({"a": [0]}, {"a": [1e30]})

        with pytest.raises(UsageError, match="infinite"):
            _ = huge | huge
