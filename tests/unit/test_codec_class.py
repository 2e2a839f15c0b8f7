"""Layout `class`: which blocks go where, what it saves, and that compiled code changes nothing."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cones_registry.codec import class_, decode, decode_layer, encode, gaps, kernels, read_footer
from cones_registry.codec.clusters import MAX_CLASSES, find_clusters
from cones_registry.codec.labels import pack_labels, unpack_labels
from cones_registry.errors import UsageError
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

SHAPE = (320, 256)
TABLE = LayerTable.from_shapes({f"{i}.attn2.to_{k}.weight": SHAPE for i in range(3) for k in "kv"})


def crowded(seed: int = 0, density: float = 0.02) -> ConceptMask:
    """A mask whose rows and columns differ in density, log-normally."""
    rng = np.random.default_rng(seed)
    flags = {}
    for name in TABLE.names:
        chance = np.outer(rng.lognormal(0, 1.2, SHAPE[0]), rng.lognormal(0, 0.8, SHAPE[1]))
        flags[name] = rng.random(SHAPE) < density * chance / chance.mean()
    return ConceptMask.from_dense(flags)


def uniform(density: float = 0.02) -> ConceptMask:
    rng = np.random.default_rng(0)
    return ConceptMask.from_dense({name: rng.random(SHAPE) < density for name in TABLE.names})


@pytest.fixture(params=["numpy", "compiled"])
def either_way(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Decode with numpy alone, then with compiled kernels."""
    if request.param == "numpy":
        for module in (gaps, class_):
            monkeypatch.setattr(module, "compiled_kernels", lambda byte_count: None)
    elif kernels.load_kernels() is None:
        pytest.skip("numba is not installed (extra 'fast')")
    yield


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("layout", ["gap8", "class"])
@pytest.mark.parametrize("density", [0, 0.0005, 0.02, 0.3, 1])
def test_masks_survive_with_and_without_compiled_kernels(layout: str, density: float) -> None:
    for mask in (crowded(density=density), uniform(density)):
        data = encode(mask, layout=layout)
        assert decode(data) == mask
        for name in TABLE.names[:2]:
            assert np.array_equal(decode_layer(data, name), mask.indices(name))


def test_nothing_waits_for_kernels_before_loading_them_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "_decoded", 0)  # whatever other tests have decoded
    kernels.load_kernels.cache_clear()

    assert kernels.compiled_kernels(1000) is None
    assert kernels.compiled_kernels(64 << 20) is kernels.load_kernels()
    assert kernels.compiled_kernels(1) is kernels.load_kernels()


def test_class_is_smaller_where_members_crowd_and_is_then_chosen() -> None:
    mask = crowded(density=0.1)
    gap8, by_class = (len(encode(mask, layout=layout)) for layout in ("gap8", "class"))

    assert by_class < 0.9 * gap8
    assert read_footer(encode(mask))["layout"] == "class"


def test_layers_too_large_for_classes_are_written_in_another_layout() -> None:
    mask = ConceptMask.from_dense({"a": np.arange(90_000).reshape(9000, 10) % 30 < 3})

    assert read_footer(encode(mask))["layout"] == "gap8"
    with pytest.raises(UsageError, match="at most 8192 rows and columns"):
        encode(mask, layout="class")


def test_class_is_not_even_tried_where_members_lie_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("class was tried")

    monkeypatch.setattr(class_.Class, "columns", fail)

    assert read_footer(encode(uniform()))["layout"] == "gap8"


def test_no_classes_are_made_where_there_is_no_structure() -> None:
    rows, cols = np.nonzero(np.random.default_rng(0).random(SHAPE) < 0.02)

    clusters = find_clusters(rows, cols, SHAPE)

    assert (clusters.row_classes, clusters.col_classes) == (1, 1)


def test_classes_find_the_rows_and_columns_that_differ() -> None:
    chance = np.full(SHAPE, 0.01)
    chance[::4] = 0.2
    rows, cols = np.nonzero(np.random.default_rng(0).random(SHAPE) < chance)

    clusters = find_clusters(rows, cols, SHAPE)

    crowded_rows = clusters.rows[::4]
    assert len(set(crowded_rows.tolist()) & set(clusters.rows[1::4].tolist())) == 0


def test_blocks_go_to_the_stream_of_their_density() -> None:
    flags = np.zeros(SHAPE, np.bool_)
    flags[:40] = np.random.default_rng(0).random((40, SHAPE[1])) < 0.6
    flags[40:160] = np.random.default_rng(1).random((120, SHAPE[1])) < 1 / 12
    mask = ConceptMask.from_dense({"a": flags})

    table = pq.read_table(io.BytesIO(encode(mask, layout="class"))).to_pylist()[0]

    streams = {name for name in class_.STREAMS if table.get(name)}
    assert streams == {"bits", "gaps_8"}
    assert len(table["bits"]) == 40 * SHAPE[1] // 8
    assert table["row_classes"] != b""
    assert 0 in table["blocks"][3:]


@pytest.mark.parametrize("classes", range(1, MAX_CLASSES + 1))
def test_labels_survive_packing(classes: int) -> None:
    for count in (1, 2, 9, 320):
        labels = np.random.default_rng(count).integers(classes, size=count)

        packed = np.frombuffer(pack_labels(labels, classes), np.uint8)

        assert np.array_equal(unpack_labels(packed, classes, count), labels)
