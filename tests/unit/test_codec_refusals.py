"""What a reader refuses: every rule of schema/mask.md broken once, and hostile sizes."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cones_registry.codec import decode, decode_layer, encode, read_counts, read_footer
from cones_registry.codec.footer import Footer
from cones_registry.errors import CorruptDataError
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

TABLE = LayerTable.from_shapes({"a": (40, 50), "b": (3, 30)})
MASK = ConceptMask.from_indices(TABLE, {"a": np.arange(99, 2000, 100), "b": np.array([0, 1, 2, 8])})
GRADED = ConceptMask(TABLE, MASK.words, np.linspace(0, 1, 24).astype(np.float32), "float32")
TWO_BIT = ConceptMask(TABLE, MASK.words, np.linspace(0, 1, 24).astype(np.float32), "2bit")


def rewrite(
    data: bytes,
    columns: dict[str, Any] | None = None,
    footer: dict[str, Any] | None = None,
    **options: Any,
) -> bytes:
    """The same file with some columns or footer keys replaced (None: left out)."""
    table = pq.read_table(io.BytesIO(data))
    text = json.loads(pq.read_metadata(io.BytesIO(data)).metadata[b"cones"])
    arrays = {name: table[name].combine_chunks() for name in table.column_names} | (columns or {})
    arrays = {name: array for name, array in arrays.items() if array is not None}
    text = {key: value for key, value in (text | (footer or {})).items() if value is not None}
    nullable, rows = options.pop("nullable", False), options.pop("rows", None)
    schema = pa.schema([pa.field(n, a.type, nullable=nullable) for n, a in arrays.items()])
    settings = {
        "compression": "zstd",
        "use_dictionary": False,
        "write_statistics": False,
        "store_schema": False,
        "write_page_checksum": True,
    }
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, **(settings | options)) as writer:
        writer.write_table(pa.table(list(arrays.values()), schema=schema), row_group_size=rows)
        writer.add_key_value_metadata({"cones": json.dumps(text)})
    return sink.getvalue()


GAP8 = encode(MASK, layout="gap8")
PLAIN = encode(MASK, layout="plain")
FLOATS = encode(GRADED, layout="gap8")
LEVELS = encode(TWO_BIT, layout="gap8")


def binary(*cells: bytes) -> pa.Array:
    return pa.array(cells, pa.binary())


def planes(byte: bytes) -> dict[str, pa.Array]:
    return {f"factors_{i}": binary(byte * 20, byte * 4) for i in range(4)}


def index(row: int, value: int) -> pa.Array:
    """The index column of `PLAIN` with one value replaced."""
    values = [*range(99, 2000, 100), 0, 1, 2, 8]
    values[row] = value
    return int32(*values)


def int32(*values: int) -> pa.Array:
    return pa.array(values, pa.int32())


def test_the_rewriting_used_here_is_harmless() -> None:
    for data, mask in ((GAP8, MASK), (PLAIN, MASK), (FLOATS, GRADED), (LEVELS, TWO_BIT)):
        dictionary = ["layer"] if data is PLAIN else False
        assert decode(rewrite(data, use_dictionary=dictionary)) == mask


A_GAPS, B_GAPS = (cell.as_py() for cell in pq.read_table(io.BytesIO(GAP8))["gaps"])

BROKEN_COLUMNS: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("too few", GAP8, {"gaps": binary(A_GAPS[:1], B_GAPS)}, "layer 'a': the gaps hold 1 indices"),
    ("too many", GAP8, {"gaps": binary(A_GAPS + b"\0", B_GAPS)}, "hold more than 20 ind"),
    ("beyond", GAP8, {"gaps": binary(A_GAPS, B_GAPS[:-1] + b"\x60")}, "layer 'b': the gaps lead"),
    ("trailing skip", GAP8, {"gaps": binary(A_GAPS, B_GAPS + b"\x7f")}, "skip that leads to no"),
    ("encoding", GAP8, {"encoding": pa.array(["gap8", "gap9"])}, "unknown encoding 'gap9'"),
    ("shift", GAP8, {"encoding": pa.array(["gap8", "gap8:25"])}, "unknown encoding 'gap8:25'"),
    ("width", GAP8, {"encoding": pa.array(["gap8", "gap3"])}, "unknown encoding 'gap3'"),
    ("too wide", GAP8, {"encoding": pa.array(["gap6", "gap8"])}, "a gap of 99; 6 bits hold 63"),
    ("shift text", GAP8, {"encoding": pa.array(["gap8", "gap8:٣"])}, "unknown encoding"),
    ("low missing", GAP8, {"encoding": pa.array(["gap8", "gap8:2"])}, "low bits take 0 bytes"),
    ("low unasked", GAP8, {"low": binary(b"", b"x")}, "low bits take"),
    ("bitmap length", GAP8, {"encoding": pa.array(["gap8", "bitmap"])}, "the bitmap takes 4 byt"),
    (
        "bitmap count",
        GAP8,
        {"encoding": pa.array(["gap8", "bitmap"]), "gaps": binary(A_GAPS, b"\1" + bytes(11))},
        "holds 1 member",
    ),
    (
        "bitmap tail",
        GAP8,
        {
            "encoding": pa.array(["gap8", "bitmap"]),
            "gaps": binary(A_GAPS, b"\7" + bytes(10) + b"\4"),
        },
        "beyond the last",
    ),
    ("n sum", GAP8, {"n": int32(20, 5)}, "the layers hold 25 members; the footer says 24"),
    ("n negative", GAP8, {"n": int32(25, -1)}, "layer 'b' claims -1 members"),
    ("n large", GAP8, {"n": int32(2001, 4)}, "layer 'a' claims 2001 members"),
    ("rows", GAP8, {"rows": int32(40, 4)}, "not the one that the footer names"),
    ("rows negative", GAP8, {"rows": int32(-40, 3)}, "bad layer table"),
    ("layer twice", GAP8, {"layer": pa.array(["a", "a"])}, "bad layer table"),
    ("layer name", GAP8, {"layer": pa.array(["a", "B"])}, "not the one that the footer names"),
    ("no gaps", GAP8, {"gaps": None}, "no column 'gaps'"),
    ("no n", GAP8, {"n": None}, "no column 'n'"),
    ("n type", GAP8, {"n": pa.array([4, 4])}, "column 'n' is type 2; expected INT32"),
    ("gaps type", GAP8, {"gaps": int32(1, 2)}, "column 'gaps' is INT32"),
    ("nested", GAP8, {"gaps": pa.array([[b"a"], [b"b"]])}, "the schema is nested"),
    ("plane length", FLOATS, {"factors_0": binary(b"123", b"1234")}, "factor plane takes 3 bytes"),
    ("no plane", FLOATS, {"factors_3": None}, "no column 'factors_3'"),
    ("nan", FLOATS, planes(b"\xff"), "NaN"),
    (
        "all zero",
        FLOATS,
        planes(b"\0"),
        "every factor is 0",
    ),
    ("unsorted", PLAIN, {"index": index(1, 98)}, "strictly increasing"),
    ("repeated", PLAIN, {"index": index(0, 199)}, "strictly increasing"),
    ("out of range", PLAIN, {"index": index(19, 2000)}, "row 19 holds index 2000"),
    ("negative", PLAIN, {"index": index(0, -1)}, "row 0 holds index -1"),
    ("layer column", PLAIN, {"layer": pa.array(["a"] * 21 + ["b"] * 3)}, "column 'layer' does not"),
    (
        "layer unknown",
        PLAIN,
        {"layer": pa.array(["a"] * 20 + ["c"] * 4)},
        "column 'layer' does not",
    ),
]


@pytest.mark.parametrize(
    ("data", "columns", "fact"),
    [case[1:] for case in BROKEN_COLUMNS],
    ids=[case[0] for case in BROKEN_COLUMNS],
)
def test_a_broken_column_is_corrupt(data: bytes, columns: dict[str, Any], fact: str) -> None:
    options: dict[str, Any] = {"use_dictionary": ["layer"]} if data is PLAIN else {}

    with pytest.raises(CorruptDataError) as caught:
        decode(rewrite(data, columns, **options), verify=False)

    assert fact in str(caught.value)


DIGEST = "sha256:" + "0" * 64
BROKEN_FOOTERS: list[tuple[bytes, dict[str, Any], str]] = [
    (GAP8, {"format": 2}, "format 2; this version reads format 1. Upgrade cones-registry"),
    (GAP8, {"format": None}, "format is None"),
    (GAP8, {"format": "1"}, "format is '1'"),
    (GAP8, {"format": True}, "format is True"),
    (GAP8, {"layout": "wavelet"}, "layout is 'wavelet'; this version reads"),
    (GAP8, {"layout": 7}, "layout is 7; expected text"),
    (GAP8, {"layout": "plain"}, "needs 1 to 4096 layers under 'layer_table'"),
    (GAP8, {"precision": "int8"}, "precision is 'int8'"),
    (GAP8, {"precision": ["binary"]}, "precision is ['binary']"),
    (GAP8, {"precision": "float16"}, "no column 'factors_0'"),
    (GAP8, {"mask_digest": "sha256:0"}, "mask_digest: 'sha256:0' is not a digest"),
    (GAP8, {"mask_digest": DIGEST}, "but its footer says sha256:0000"),
    (GAP8, {"layer_table_digest": DIGEST}, "not the one that the footer names"),
    (GAP8, {"table_neuron_count": 2091}, "not the one that the footer names"),
    (GAP8, {"table_neuron_count": 2**40}, "table_neuron_count is 1099511627776"),
    (GAP8, {"neuron_count": 25}, "the layers hold 24 members; the footer says 25"),
    (GAP8, {"neuron_count": 3000}, "neuron_count is 3000; expected 0 to 2090"),
    (GAP8, {"neuron_count": 24.0}, "neuron_count is 24.0"),
    (GAP8, {"concept": []}, "concept is []; expected an object"),
    (PLAIN, {"layer_table": {}}, "layer_table is {}; expected a list"),
    (PLAIN, {"layer_table": [["a", 40, 50]]}, "[name, rows, cols, members]"),
    (PLAIN, {"layer_table": [["a", 40, 50, 24], ["b", 3, 30, 0]]}, "column 'layer' does not agree"),
    (PLAIN, {"layer_table": [["a", 40, 50, -(2**70)], ["b", 3, 30, 8]]}, "claims -1 members"),
    (PLAIN, {"layer_table": [["a", 40, 50, 20]]}, "not the one that the footer names"),
    (PLAIN, {"precision": "float32"}, "no column 'factor'"),
]


@pytest.mark.parametrize(("data", "footer", "fact"), BROKEN_FOOTERS)
def test_a_broken_footer_is_corrupt(data: bytes, footer: dict[str, Any], fact: str) -> None:
    options: dict[str, Any] = {"use_dictionary": ["layer"]} if data is PLAIN else {}

    with pytest.raises(CorruptDataError) as caught:
        decode(rewrite(data, footer=footer, **options))

    assert fact in str(caught.value)


@pytest.mark.parametrize("footer", [{"format": 2}, {"layout": "wavelet"}])
@pytest.mark.parametrize("read", [read_footer, read_counts, lambda data: decode_layer(data, "a")])
def test_what_this_version_does_not_know_says_upgrade(
    read: Callable[[bytes], Any], footer: dict[str, Any]
) -> None:
    with pytest.raises(CorruptDataError, match="Upgrade cones-registry"):
        read(rewrite(GAP8, footer=footer))


def test_keys_of_a_later_writer_are_ignored() -> None:
    assert decode(rewrite(GAP8, footer={"colour": "red"})) == MASK


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "not a mask file: 0 bytes"),
        (b"PAR1", "not a mask file"),
        (b"PK\3\4" + bytes(100), "not a mask file"),
        (b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "the metadata claims 2147483647 bytes"),
        (b"PAR1" + b"\xff\xff\0\0" + b"PAR1", "cut off"),
        (b"PAR1" + bytes(15) + b"\1\0\0\0" + b"PAR1", "no key 'cones'"),
        (GAP8[:-1], "not a mask file"),
        (GAP8[:4] + GAP8[40:], "CorruptDataError"),
    ],
)
def test_what_is_no_parquet_file_is_corrupt(data: bytes, fact: str) -> None:
    with pytest.raises(CorruptDataError) as caught:
        decode(data)

    assert fact in repr(caught.value)


def test_a_parquet_file_of_someone_else_is_corrupt() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"layer": ["a"]}), sink)

    with pytest.raises(CorruptDataError, match="no key 'cones'"):
        decode(sink.getvalue())


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"write_page_checksum": False}, "has no checksum"),
        ({"nullable": True}, "is optional"),
        ({"rows": 1}, "has 2 row groups; expected one"),
        ({"data_page_version": "2.0"}, "has a page of type 3"),
    ],
)
def test_a_file_written_in_another_way_is_corrupt(options: dict[str, Any], fact: str) -> None:
    with pytest.raises(CorruptDataError, match=fact):
        decode(rewrite(GAP8, **options))


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{}", b"nope", b"[]", b"\xff"])
def test_a_footer_that_is_no_json_object_is_corrupt(text: bytes) -> None:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.schema([("layer", pa.string())]), store_schema=False) as writer:
        writer.add_key_value_metadata({"cones": text})

    with pytest.raises(CorruptDataError):
        decode(sink.getvalue())


@pytest.mark.parametrize(
    "long",
    [
        b"",
        b"***",
        base64.b64encode(b"not zstd"),
        base64.b64encode(zstandard.compress(b"[]")),
        base64.b64encode(zstandard.compress(b"[" * 100_000)),
        base64.b64encode(zstandard.compress(bytes(1 << 24))),
        base64.b64encode(zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")),
    ],
)
def test_long_values_that_are_no_object_or_too_long_are_corrupt(long: bytes) -> None:
    known = Footer.parse(pq.read_metadata(io.BytesIO(GAP8)).metadata[b"cones"])

    with pytest.raises(CorruptDataError, match="long values of the footer"):
        Footer.parse(known.to_metadata()[b"cones"], long)


class TestHostileSizes:
    def test_a_column_that_expands_a_thousandfold_is_refused_before_it_is_read(self) -> None:
        bomb = rewrite(GAP8, {"gaps": binary(bytes(50_000_000), b"")})
        assert len(bomb) < 10_000

        pa.default_memory_pool().release_unused()
        before = pa.total_allocated_bytes()
        with pytest.raises(CorruptDataError, match="cannot need that many"):
            decode(bomb)

        assert pa.total_allocated_bytes() - before < 1_000_000

    def test_a_row_count_beyond_any_layer_table_is_refused(self) -> None:
        many = 5000
        columns = {
            "layer": pa.array([f"{i}" for i in range(many)]),
            "encoding": pa.array(["gap8"] * many),
            "gaps": binary(*[b""] * many),
        } | dict.fromkeys(("rows", "cols", "n"), int32(*[1] * many))

        with pytest.raises(CorruptDataError, match="5000 rows, one for each layer"):
            decode(rewrite(GAP8, columns))

    def test_factors_that_expand_a_thousandfold_are_refused(self) -> None:
        planes = {f"factors_{i}": binary(bytes(9_000_000), b"") for i in range(4)}

        with pytest.raises(CorruptDataError, match="cannot need that many"):
            decode(rewrite(FLOATS, planes))
