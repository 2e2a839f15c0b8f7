"""Damaged and hostile bytes: an error that says so, never a crash, a hang, or another mask."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones_registry.codec import LAYOUTS, class_, decode, encode, gaps, read_footer
from cones_registry.codec.container import Column, binary_column, write_container
from cones_registry.codec.footer import Footer
from cones_registry.codec.kernels import load_kernels
from cones_registry.codec.layout import layer_columns
from cones_registry.errors import CorruptDataError
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TABLE = LayerTable.from_shapes({"a": (40, 50), "b": (3, 30)})


def example(precision: Any = "binary") -> ConceptMask:
    mask = ConceptMask.from_indices(
        TABLE, {"a": np.arange(99, 2000, 100), "b": np.array([0, 1, 2, 8])}
    )
    if precision == "binary":
        return mask
    return ConceptMask(TABLE, mask.words, np.linspace(0, 1, 24).astype(np.float32), precision)


FILES = {
    f"{layout}-{precision}": (encode(example(precision), layout=layout), example(precision))
    for layout in LAYOUTS
    for precision in ("binary", "2bit", "float16")
}
FOOTER_STARTS = {name: data.index(b'{"format"') for name, (data, _) in FILES.items()}


def survives(data: bytes, mask: ConceptMask) -> None:
    """`data` is refused, or it is the mask it was made from."""
    try:
        again = decode(data)
    except CorruptDataError:
        return
    assert again == mask


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_gives_another_mask(name: str) -> None:
    data, mask = FILES[name]
    rng = np.random.default_rng(0)
    for position in range(0, len(data), 2):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        survives(bytes(damaged), mask)


def test_a_dictionary_that_claims_to_be_empty_is_refused() -> None:
    damaged = bytearray((GOLDEN / "mask-1-plain-binary.parquet").read_bytes())
    damaged[20] ^= 1 << 3  # The number of entries, in the header of the dictionary's page.

    with pytest.raises(CorruptDataError, match="column 'layer' does not agree"):
        decode(bytes(damaged))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*-binary.parquet")), ids=lambda p: p.stem)
def test_no_flip_of_any_bit_gives_another_mask(path: Path) -> None:
    data = path.read_bytes()
    mask = decode(data)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        survives(bytes(damaged), mask)


@pytest.mark.parametrize("name", FILES)
def test_a_flip_in_a_page_is_caught_without_the_digest(name: str) -> None:
    data, mask = FILES[name]
    pages_end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for position in range(4, pages_end, 5):
        damaged = bytearray(data)
        damaged[position] ^= 1
        try:
            again = decode(bytes(damaged), verify=False)
        except CorruptDataError:
            continue
        # What a page header says beside the sizes may change without a consequence.
        assert again == mask


@pytest.mark.parametrize("name", FILES)
def test_no_cut_off_file_is_read(name: str) -> None:
    data, _ = FILES[name]
    for length in range(0, len(data), 31):
        with pytest.raises(CorruptDataError):
            decode(data[:length])


@given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 8), st.binary(max_size=8)),
        min_size=1,
        max_size=4,
    ),
)
def test_any_edit_is_refused_or_harmless(name: str, edits: list[tuple[int, int, bytes]]) -> None:
    data, mask = FILES[name]
    for position, removed, inserted in edits:
        position %= len(data)
        data = data[:position] + inserted + data[position + removed :]

    survives(data, mask)


def read_both_ways(data: bytes) -> ConceptMask | None:
    """The mask, or None for a file that is refused: compiled code finds the same, and says so."""
    found: list[ConceptMask | None] = []
    said = []
    for chosen in (lambda byte_count: None, lambda byte_count: load_kernels()):
        with (
            patch.object(gaps, "compiled_kernels", chosen),
            patch.object(class_, "compiled_kernels", chosen),
        ):
            try:
                found.append(decode(data, verify=False))
                said.append("")
            except CorruptDataError as error:
                found.append(None)
                said.append(str(error))
    assert found[0] == found[1]
    assert said[0] == said[1]
    return found[0]


CELLS = st.binary(max_size=40)


@given(
    gaps=st.tuples(CELLS, CELLS),
    low=st.tuples(CELLS, CELLS),
    encodings=st.tuples(
        *[st.sampled_from(["gap8", "gap5", "gap4:2", "gap8:7", "gap8:24", "bitmap"])] * 2
    ),
    counts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_any_cells_in_a_sound_file_are_refused_or_hold_what_they_say(
    gaps: tuple[bytes, bytes],
    low: tuple[bytes, bytes],
    encodings: tuple[str, str],
    counts: tuple[int, int],
) -> None:
    columns = layer_columns(example()) | {
        "n": Column(pa.array(counts, pa.int32())),
        "encoding": Column(pa.array(encodings, pa.string())),
        "low": binary_column(low),
        "gaps": binary_column(gaps),
    }
    footer = Footer("gap8", "binary", TABLE.digest, example().digest, 2090, sum(counts))

    mask = read_both_ways(write_container(columns, footer))
    if mask is None:
        return
    assert mask.counts.tolist() == list(counts)
    assert ConceptMask(TABLE, mask.words) == mask


SMALL = LayerTable.from_shapes({"a": (4, 5)})
STREAMS = ("bits", "gaps_4", "gaps_8", "gaps_64", "low")


@given(
    classes=st.tuples(st.sampled_from([1, 2, 3, 17]), st.sampled_from([0, 1, 2])),
    shift=st.sampled_from([0, 1, 25]),
    streams=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    labels=st.tuples(st.binary(max_size=3), st.binary(max_size=3)),
    cells=st.fixed_dictionaries({name: st.binary(max_size=5) for name in STREAMS}),
    count=st.integers(0, 20),
)
def test_any_blocks_in_a_sound_file_are_refused_or_hold_what_they_say(
    classes: tuple[int, int],
    shift: int,
    streams: list[int],
    labels: tuple[bytes, bytes],
    cells: dict[str, bytes],
    count: int,
) -> None:
    tables = {
        "blocks": bytes((*classes, shift, *streams)),
        "row_classes": labels[0],
        "col_classes": labels[1],
    }
    columns = layer_columns(ConceptMask.empty(SMALL)) | {"n": Column(pa.array([count], pa.int32()))}
    columns |= {name: binary_column([cell]) for name, cell in (tables | cells).items()}
    empty = ConceptMask.empty(SMALL)
    footer = Footer("class", "binary", SMALL.digest, empty.digest, 20, count)

    mask = read_both_ways(write_container(columns, footer))
    if mask is None:
        return
    assert len(mask) == count
    assert ConceptMask(SMALL, mask.words) == mask


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    for each in (data, b"PAR1" + data + len(data).to_bytes(4, "little") + b"PAR1"):
        with pytest.raises(CorruptDataError):
            decode(each)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = sorted(Footer("gap8", "binary", "", "", 1, 0).to_json())


@hypothesis.example("layer_table", [float("inf")])
@hypothesis.example("concept", {"note": float("nan")})
@given(st.sampled_from([*KEYS, "layer_table", "concept"]), JSON)
def test_any_footer_value_is_refused_or_read(key: str, value: Any) -> None:
    known = Footer("gap8", "binary", TABLE.digest, example().digest, 2090, 24).to_json()
    text = json.dumps(known | {key: value}).encode()

    try:
        footer = Footer.parse(text)
    except CorruptDataError:
        return
    assert Footer.parse(*footer.to_metadata().values()) == footer


@given(JSON)
def test_json_that_is_no_footer_is_refused(value: Any) -> None:
    with pytest.raises(CorruptDataError):
        Footer.parse(json.dumps(value).encode())


def hostile_low_bits() -> bytes:
    """A file whose low bits, all 0, are as many as its size allows."""
    count = 200_000
    table = LayerTable.from_shapes({"a": (count, 1)})
    mask = ConceptMask.from_dense({"a": np.ones((count, 1), np.bool_)})
    columns = layer_columns(mask) | {
        "encoding": Column(pa.array(["gap8:24"])),
        "low": binary_column([bytes(3 * count)]),
        "gaps": binary_column([bytes(count)]),
    }
    filler = {"note": np.random.default_rng(0).bytes(9000).hex()}
    footer = Footer("gap8", "binary", table.digest, mask.digest, count, count, concept=filler)
    return write_container(columns, footer)


def hostile_sides() -> bytes:
    """A file of layout `class` with one column and very many rows, all of one class."""
    table = LayerTable.from_shapes({"a": (4_000_000, 1)})
    mask = ConceptMask.empty(table)
    cells = {"blocks": bytes((1, 1, 0, 0)), "row_classes": b"", "col_classes": b""}
    columns = layer_columns(mask) | {name: binary_column([cell]) for name, cell in cells.items()}
    footer = Footer("class", "binary", table.digest, mask.digest, 4_000_000, 0)
    return write_container(columns, footer)


@pytest.mark.parametrize("make", [hostile_low_bits, hostile_sides])
def test_no_small_file_makes_a_reader_allocate_much(make: Callable[[], bytes]) -> None:
    data = make()
    neurons = read_footer(data)["table_neuron_count"]
    tracemalloc.start()
    try:
        decode(data, verify=False)
    except CorruptDataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert peak <= 64 * len(data) + neurons // 8 + (2 << 20)


def test_decoding_allocates_no_more_than_the_bitmap_and_a_multiple_of_the_file() -> None:
    table = LayerTable.from_shapes({f"layer-{i}": (1280, 768) for i in range(4)})
    rng = np.random.default_rng(0)
    flags = {name: rng.random((1280, 768)) < 0.1 for name in table.names}
    mask = ConceptMask.from_dense(flags)
    for layout in LAYOUTS:
        data = encode(mask, layout=layout)
        pool_before = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            decode(data, verify=False)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert peak <= 64 * len(data) + table.neuron_count // 8
        assert pa.total_allocated_bytes() - pool_before <= 64 * len(data) + table.neuron_count // 8
