"""Mask files of every version are read for ever; schema/ shows what is one and what is not."""

import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest

from cones_registry.codec import LAYOUTS, decode, encode, read_footer
from cones_registry.codec.footer import FORMAT, Footer
from cones_registry.errors import CorruptDataError
from cones_registry.factors import PRECISIONS

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted(Path(__file__).parent.glob("mask-*.parquet"))
EXAMPLES = ROOT / "schema" / "examples"
BAD = ROOT / "schema" / "bad"
SCHEMA = json.loads((ROOT / "schema" / "mask-footer.schema.json").read_text())

DIGESTS = {
    "example": {
        "binary": "sha256:f8c5fb84cc2002fe91608b981ed0d6fbf48dc6cc1b365beb4a8b935d5fc3acaa",
        "2bit": "sha256:76ee6f4b24693d0b56444ddcacd040b60c81c909288912bf3459b2eb94c0f3fa",
        "float16": "sha256:8e5c20500eae1632180dde8cf0cd498868bf5f4405b29b6b5156f6f904321d9c",
        "float32": "sha256:49e7426cd11cd4e348d06188d81780bba5ba773387268dcab999adb612ebbf8a",
    },
    "crowded": {
        "binary": "sha256:82cb582afe08fadafbe9d2c8482ab93c3ad7e0647208b2e24d1de95019272114",
        "2bit": "sha256:a7fe205ccff289e70baf09e0083d8781e27d8eb17f0db30f20bdbd73fae19dfb",
        "float16": "sha256:a5521cc132323818184585e90820a0d0a879412116bc02eae7b5f3621fc3563f",
        "float32": "sha256:1b5737844e994b0597f1c3fa07356b14ac80a10b859646ac60595b030a67ad11",
    },
}
"""Digest of the golden masks at each precision. These never change."""

REASONS = {
    "index-out-of-range": "the gaps lead to index",
    "fewer-indices-than-n": "the gaps hold 16 indices; the row says 17",
    "skip-at-the-end": "end with a skip that leads to no index",
    "bits-beyond-the-last-neuron": "bits set beyond the last neuron",
    "unknown-encoding": "unknown encoding 'gap9'",
    "gap-wider-than-its-encoding": "a gap of 255; 6 bits hold 63",
    "n-not-the-footers": "the layers hold 39 members; the footer says 38",
    "layer-table-not-the-footers": "the layer table is not the one that the footer names",
    "unknown-layout": "layout is 'wavelet'; this version reads",
    "newer-format": "written in format 2; this version reads format 1",
    "mask-digest-of-another": "but its footer says sha256:0000",
    "page-expands-too-far": "cannot need that many",
    "page-without-checksum": "has no checksum",
    "nullable-columns": "is optional",
    "cut-off": "do not start and end with 'PAR1'",
    "factor-not-finite": "a factor is NaN or infinite",
    "class-no-such-stream": "does not give every block one of the streams",
    "class-label-beyond-the-classes": "a label is not one of",
    "class-labels-too-few": "labels take",
    "class-too-few-members": "the blocks hold",
    "class-bits-too-long": "bytes of packed bits",
    "plain-not-increasing": "not in strictly increasing order",
    "plain-index-negative": "row 0 holds index -1",
    "plain-layer-not-the-footers": "column 'layer' does not agree",
}
"""Rule that a file in schema/bad/ breaks -> part of the message that says so."""

FOOTER_REASONS = {
    "format-not-a-number": "format is '1'",
    "layout-missing": "layout is None",
    "precision-unknown": "precision is 'int8'",
    "digest-too-short": "mask_digest: 'sha256:12ab' is not a digest",
    "digest-in-capitals": "layer_table_digest:",
    "neuron-count-negative": "neuron_count is -1",
    "neuron-count-not-whole": "neuron_count is 1.5",
    "table-neuron-count-too-large": "table_neuron_count is 8589934592",
    "concept-not-an-object": "concept is ['alice', 'dog']",
}


@pytest.fixture(scope="module")
def make_golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", ROOT / "tools" / "make_golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_file_of_an_older_version_is_read_as_ever(path: Path) -> None:
    _, version, layout, precision, *crowded = path.stem.split("-")
    data = path.read_bytes()

    mask = decode(data)

    name = "crowded" if layout == "class" or crowded else "example"
    assert mask.digest == DIGESTS[name][precision]
    assert mask.precision == precision
    assert (read_footer(data)["format"], read_footer(data)["layout"]) == (int(version), layout)


def test_there_is_a_golden_file_of_every_layout_and_precision() -> None:
    expected = {f"mask-{FORMAT}-{layout}-{p}" for layout in LAYOUTS for p in PRECISIONS}

    assert expected <= {path.stem for path in GOLDEN}


def test_golden_masks_are_what_the_tool_makes(make_golden: ModuleType) -> None:
    for name, digests in DIGESTS.items():
        for precision, digest in digests.items():
            assert getattr(make_golden, name)(precision).digest == digest


def test_the_example_and_its_twin_agree(make_golden: ModuleType) -> None:
    data = (EXAMPLES / "mask.parquet").read_bytes()

    assert make_golden.describe(data) == (EXAMPLES / "mask.txt").read_text()
    assert read_footer(data) == json.loads((EXAMPLES / "mask-footer.json").read_text())
    assert decode((EXAMPLES / "mask-plain.parquet").read_bytes()) == decode(data)


def test_the_page_shows_the_footer_of_the_example() -> None:
    page = (ROOT / "schema" / "mask.md").read_text()

    assert (EXAMPLES / "mask-footer.json").read_text() in page


@pytest.mark.parametrize("path", [each for each in GOLDEN if "-class-" in each.stem])
def test_the_reader_on_the_page_reads_layout_class(path: Path) -> None:
    page = (ROOT / "schema" / "mask.md").read_text()
    reader: dict[str, Any] = {}
    exec(page.partition("```python class-reader\n")[2].partition("```")[0], reader)
    mask = decode(path.read_bytes())

    for row in pq.read_table(path).to_pylist():
        assert reader["read_members"](row) == mask.indices(row["layer"]).tolist()


def test_the_page_describes_every_layout() -> None:
    page = (ROOT / "schema" / "mask.md").read_text()

    for layout in LAYOUTS:
        assert f"## Layout `{layout}`" in page
    assert SCHEMA["properties"]["layout"]["enum"] == sorted(LAYOUTS)
    assert SCHEMA["properties"]["precision"]["enum"] == list(PRECISIONS)
    assert SCHEMA["properties"]["format"]["const"] == FORMAT


@pytest.mark.parametrize("path", sorted(BAD.glob("mask-*.parquet")), ids=lambda path: path.stem)
def test_a_bad_mask_is_refused_for_the_rule_it_is_named_after(path: Path) -> None:
    reason = REASONS[path.stem.removeprefix("mask-")]

    with pytest.raises(CorruptDataError) as caught:
        decode(path.read_bytes())

    assert reason in str(caught.value)


@pytest.mark.parametrize("path", sorted(BAD.glob("mask-footer-*.json")), ids=lambda path: path.stem)
def test_a_bad_footer_is_refused_by_schema_and_reader(path: Path) -> None:
    reason = FOOTER_REASONS[path.stem.removeprefix("mask-footer-")]

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    with pytest.raises(CorruptDataError) as caught:
        Footer.parse(path.read_bytes())

    assert reason in str(caught.value)


def test_every_bad_example_is_there(make_golden: ModuleType) -> None:
    assert set(make_golden.bad_masks()) == set(REASONS)
    assert set(make_golden.BAD_FOOTERS) == set(FOOTER_REASONS)
    assert {path.stem for path in BAD.glob("mask-*")} == {
        *(f"mask-{rule}" for rule in REASONS),
        *(f"mask-footer-{rule}" for rule in FOOTER_REASONS),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_footer_keeps_to_its_schema(make_golden: ModuleType, layout: str) -> None:
    for precision in PRECISIONS:
        data = encode(make_golden.crowded(precision), layout=layout, footer={"owner": "alice"})
        jsonschema.validate(
            json.loads(pq.read_metadata(io.BytesIO(data)).metadata[b"cones"]), SCHEMA
        )
