"""Masks as files: round trips, what a file says about itself, and what other readers see."""

import io
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from cones_registry.codec import (
    LAYOUTS,
    decode,
    decode_indices,
    decode_layer,
    encode,
    load_file,
    read_counts,
    read_footer,
    save_file,
)
from cones_registry.errors import CorruptDataError, NotFoundError, StoreUnavailableError, UsageError
from cones_registry.factors import PRECISIONS, Precision
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

TABLE = LayerTable.from_shapes(
    {"a": (5, 7), "b.to_k.weight": (1, 1), "c": (300, 77), "d": (64, 64)}
)


def random_mask(
    density: float, *, precision: Precision = "binary", table: LayerTable = TABLE, seed: int = 0
) -> ConceptMask:
    rng = np.random.default_rng(seed)
    mask = ConceptMask.from_dense(
        {layer.name: rng.random((layer.rows, layer.cols)) < density for layer in table.layers}
    )
    if precision == "binary":
        return mask
    factors = rng.random(len(mask)).astype(np.float32)
    return ConceptMask(table, mask.words, factors, precision)


@pytest.mark.parametrize("layout", [*LAYOUTS, "smallest"])
@pytest.mark.parametrize("density", [0, 0.003, 1])
def test_a_mask_survives_the_round_trip_through_any_kind_of_bytes(
    layout: str, density: float
) -> None:
    mask = random_mask(density)

    data = encode(mask, layout=layout)

    assert decode(data) == mask
    assert decode(bytearray(data), verify=False).digest == mask.digest
    assert decode(memoryview(data)).table == TABLE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_factors_and_their_precision_survive(layout: str, precision: Precision) -> None:
    mask = random_mask(0.1, precision=precision)

    again = decode(encode(mask, layout=layout))

    assert again == mask
    assert again.precision == precision
    assert again.factors is None or again.factors.dtype == mask.factors.dtype  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_mask_is_always_the_same_bytes(layout: str) -> None:
    assert encode(random_mask(0.1), layout=layout) == encode(random_mask(0.1), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_footer_says_what_the_file_holds(layout: str) -> None:
    mask = random_mask(0.1, precision="2bit")
    concept = {"owner": "alice", "note": "ü", "tags": ["a"], "provenance": {"seed": 1}}

    footer = read_footer(encode(mask, layout=layout, footer=concept))

    assert footer["format"] == 1
    assert footer["layout"] == layout
    assert footer["precision"] == "2bit"
    assert footer["layer_table_digest"] == TABLE.digest
    assert footer["mask_digest"] == mask.digest
    assert footer["table_neuron_count"] == TABLE.neuron_count
    assert footer["neuron_count"] == len(mask)
    assert footer["concept"] == concept


def test_long_values_of_a_concept_are_kept_compressed_and_read_back() -> None:
    history = [{"step": step, "loss": 1 / (step + 1)} for step in range(200)]
    concept = {"owner": "alice", "provenance": {"history": history}, "note": "ü" * 600}

    data = encode(random_mask(0.1), footer=concept)

    metadata = pq.read_metadata(io.BytesIO(data)).metadata
    assert read_footer(data)["concept"] == concept
    assert json.loads(metadata[b"cones"])["concept"] == {"owner": "alice"}
    assert len(metadata[b"cones-long"]) < len(json.dumps(history)) / 2


def test_without_a_concept_the_footer_has_none() -> None:
    assert "concept" not in read_footer(encode(random_mask(0.1)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_and_single_layers_are_read_alone(layout: str) -> None:
    mask = random_mask(0.02)
    data = encode(mask, layout=layout)

    everything = decode_indices(data)

    assert all(np.array_equal(everything[name], mask.indices(name)) for name in TABLE.names)
    assert read_counts(data) == {name: mask.count(name) for name in TABLE.names}
    assert tuple(everything) == TABLE.names
    assert list(decode_indices(data, ["d", "a"])) == ["d", "a"]
    for name in TABLE.names:
        assert decode_layer(data, name).dtype == np.int32
        assert np.array_equal(decode_layer(data, name), mask.indices(name))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_that_is_not_there_is_not_found(layout: str) -> None:
    with pytest.raises(NotFoundError, match="no layer 'x'"):
        decode_layer(encode(random_mask(0.1), layout=layout), "x")


def test_masks_of_one_base_model_share_one_table() -> None:
    assert decode(encode(random_mask(0.1))).table is decode(encode(random_mask(0.2))).table


def test_structure_is_what_any_parquet_reader_sees() -> None:
    mask = random_mask(0.05, precision="float16")

    table = pq.read_table(io.BytesIO(encode(mask, layout="gap8")))

    assert table["layer"].to_pylist() == list(TABLE.names)
    assert table["rows"].to_pylist() == [layer.rows for layer in TABLE.layers]
    assert table["cols"].to_pylist() == [layer.cols for layer in TABLE.layers]
    assert table["n"].to_pylist() == mask.counts.tolist()
    gaps = np.frombuffer(table["gaps"][2].as_py(), np.uint8).astype(int)
    assert np.array_equal(np.cumsum(gaps + (gaps < 255))[gaps < 255] - 1, mask.indices("c"))
    low, high = (table[f"factors_{i}"][2].as_py() for i in (0, 1))
    assert bytes(b for pair in zip(low, high, strict=True) for b in pair) == (
        mask.layer_factors("c").tobytes()
    )


def test_duckdb_reads_the_plain_layout_by_plain_sql(tmp_path: Path) -> None:
    mask = random_mask(0.05, precision="float32")
    path = tmp_path / "mask.parquet"
    save_file(mask, path, layout="plain")

    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT layer, count(*), min(index), max(index), sum(factor) FROM read_parquet(?) "
            "GROUP BY layer ORDER BY layer",
            [str(path)],
        ).fetchall()
        columns = connection.execute(
            "SELECT index // 77 AS row, count(*) FROM read_parquet(?) WHERE layer = 'c' "
            "GROUP BY row ORDER BY row",
            [str(path)],
        ).fetchall()

    used = [name for name in TABLE.names if mask.count(name)]
    assert [row[:4] for row in rows] == [
        (n, mask.count(n), mask.indices(n).min(), mask.indices(n).max()) for n in used
    ]
    assert [row[4] for row in rows] == pytest.approx(
        [float(mask.layer_factors(n).sum(dtype=np.float64)) for n in used]
    )
    dense = mask.to_dense("c").sum(axis=1)
    assert columns == [(row, count) for row, count in enumerate(dense.tolist()) if count]


def test_duckdb_reads_counts_of_every_layout_with_one_row_a_layer(tmp_path: Path) -> None:
    mask = random_mask(0.05)
    path = tmp_path / "mask.parquet"
    query = "SELECT sum(n), sum(rows * cols) FROM read_parquet(?)"

    for layout in ("gap8", "class"):
        save_file(mask, path, layout=layout)
        with duckdb.connect() as connection:
            found = connection.execute(query, [str(path)]).fetchone()
        assert found == (len(mask), TABLE.neuron_count)


def test_layers_are_coded_as_gaps_with_a_shift_where_sparse_and_as_bits_where_dense() -> None:
    flags = {
        name: np.zeros((layer.rows, layer.cols), np.bool_)
        for name, layer in zip(TABLE.names, TABLE.layers, strict=True)
    }
    flags["a"][::2] = True
    flags["c"][::60, ::70] = True
    flags["d"][::4, ::4] = True
    mask = ConceptMask.from_dense(flags)

    data = encode(mask, layout="gap8")

    table = pq.read_table(io.BytesIO(data))
    assert table["encoding"].to_pylist() == ["bitmap", "gap8", "gap8:4", "gap6"]
    assert decode(data) == mask


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_that_compresses_beyond_what_readers_allow_is_still_read(layout: str) -> None:
    table = LayerTable.from_shapes({f"layer-{i}": (200, 300) for i in range(20)})
    ones = ConceptMask.from_dense({name: np.ones((200, 300), np.bool_) for name in table.names})
    halves = ConceptMask(table, ones.words, np.full(len(ones), 0.5, np.float32), "float32")

    for mask in (ones, halves, ConceptMask.empty(table)):
        assert decode(encode(mask, layout=layout)) == mask


def test_large_layers_at_full_density_take_next_to_nothing() -> None:
    table = LayerTable.from_shapes({f"layer-{i}": (1280, 768) for i in range(3)})
    ones = ConceptMask.from_dense({name: np.ones((1280, 768), np.bool_) for name in table.names})

    assert len(encode(ones)) < 2_000


@pytest.mark.parametrize(
    "footer", [{"x": float("nan")}, {"x": {1, 2}}, {"x": b"y"}, {"x": "y" * 2**20}, {"x": "\ud800"}]
)
def test_a_footer_that_is_not_json_or_too_large_is_refused(footer: Any) -> None:
    with pytest.raises(UsageError, match="the footer"):
        encode(random_mask(0.1), footer=footer)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UsageError, match="no layout 'zip'; choose smallest or one of"):
        encode(random_mask(0.1), layout="zip")


class TestFiles:
    def test_save_and_load_give_the_mask_back(self, tmp_path: Path) -> None:
        mask = random_mask(0.1)

        save_file(mask, tmp_path / "mask.parquet", footer={"owner": "alice"})
        save_file(mask, str(tmp_path / "again.parquet"), layout="plain")

        assert load_file(tmp_path / "mask.parquet") == load_file(tmp_path / "again.parquet") == mask
        data = (tmp_path / "mask.parquet").read_bytes()
        assert read_footer(data)["concept"] == {"owner": "alice"}

    def test_saving_replaces_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        for density in (0.1, 0.2):
            save_file(random_mask(density), tmp_path / "mask.parquet")

        assert load_file(tmp_path / "mask.parquet") == random_mask(0.2)
        assert [path.name for path in tmp_path.iterdir()] == ["mask.parquet"]

    def test_a_missing_file_or_folder_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="no file"):
            load_file(tmp_path / "none.parquet")
        with pytest.raises(NotFoundError, match="no folder"):
            save_file(random_mask(0.1), tmp_path / "none" / "mask.parquet")

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailableError, match="cannot read"):
            load_file(tmp_path)
        with pytest.raises(StoreUnavailableError, match="cannot write"):
            save_file(random_mask(0.1), tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreUnavailableError, match="cannot write"):
            save_file(random_mask(0.1), tmp_path / "file" / "mask.parquet")

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "mask.parquet").write_bytes(b"PAR1 nothing PAR1")

        with pytest.raises(CorruptDataError, match=r"mask\.parquet"):
            load_file(tmp_path / "mask.parquet")


def test_the_footer_is_plain_json_under_the_key_cones() -> None:
    data = encode(random_mask(0.1), footer={"owner": "alice"})

    metadata = pq.read_metadata(io.BytesIO(data)).metadata

    assert list(metadata) == [b"cones"]
    assert json.loads(metadata[b"cones"]) == read_footer(data)
