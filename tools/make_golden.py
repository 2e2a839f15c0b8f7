#!/usr/bin/env python3
"""Write the examples and counter-examples of schema/, and the files every later version must read.

    python tools/make_golden.py           # check that all of them are there and unchanged
    python tools/make_golden.py --write   # write what is missing; nothing is ever overwritten

Files in tests/golden/ are append-only: they are what older versions wrote. Files in schema/ are
written anew with --write --schema, and the change is then seen in review.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cones_registry.catalog.documents import seal
from cones_registry.catalog.events import KINDS, Pushed, Tagged, plain_events
from cones_registry.codec import LAYOUTS, decode, encode, read_footer
from cones_registry.factors import PRECISIONS, Precision
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.record import Provenance, Record

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "schema" / "examples"
BAD = ROOT / "schema" / "bad"
GOLDEN = ROOT / "tests" / "golden"

TABLE = LayerTable.from_shapes(
    {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (32, 48),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight": (32, 48),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (64, 48),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight": (5, 7),
    }
)
CONCEPT = {"owner": "alice", "name": "dog", "version": 1, "scope": "subject", "tags": ["animal"]}


def example(precision: Precision = "binary") -> ConceptMask:
    """A mask with a sparse, an empty, a shifted and a dense layer."""
    first, _, third, last = TABLE.names
    indices = {
        first: np.array([0, 1, 47, 48, 400, 1000, *range(1100, 1110), 1535], np.int32),
        third: np.array([7, 1300, 3071], np.int32),
        last: np.arange(0, 35, 2, dtype=np.int32),
    }
    if precision == "binary":
        return ConceptMask.from_indices(TABLE, indices)
    factors = {
        name: (np.arange(len(values)) % 7 / 6).astype(np.float32)
        for name, values in indices.items()
    }
    return ConceptMask.from_indices(TABLE, indices, factors, precision=precision)


def crowded(precision: Precision = "binary") -> ConceptMask:
    """A mask whose members crowd in some rows and columns, for layout `class`."""
    density = np.array([[0.5, 0.2, 0.06], [0.2, 0.05, 0.002], [0.04, 0.0, 0.0]])
    row, col = np.indices((120, 90), dtype=np.uint64)
    flags = {}
    for number, kind in enumerate("kv"):
        # Bits of a product, as if drawn at random (Knuth's multiplicative hash).
        drawn = ((row * 90 + col + number * 10_800) * np.uint64(2_654_435_761)) % np.uint64(2**32)
        flags[f"mid_block.attn2.to_{kind}.weight"] = drawn / 2.0**32 < density[row % 3, col % 3]
    mask = ConceptMask.from_dense(flags)
    if precision == "binary":
        return mask
    factors = np.arange(len(mask)) % 7 / np.float32(6)
    return ConceptMask(mask.table, mask.words, factors, precision)


def describe(data: bytes) -> str:
    """A file in words: its footer, its columns, and the indices they stand for."""
    mask, table = decode(data), pq.read_table(io.BytesIO(data))
    lines = ["footer:", json.dumps(read_footer(data), indent=2), ""]
    for row in table.to_pylist():
        for name, value in row.items():
            shown = value.hex(" ") if isinstance(value, bytes) else value
            lines.append(f"{name}: {shown}".rstrip())
        lines += [f"  = indices {mask.indices(row['layer']).tolist()}", ""]
    return "\n".join(lines)


def rewrite(data: bytes, columns: dict[str, Any], footer: dict[str, Any], **options: Any) -> bytes:
    """The same file with some columns and footer keys replaced."""
    table = pq.read_table(io.BytesIO(data))
    arrays = {name: table[name].combine_chunks() for name in table.column_names} | columns
    nullable = options.pop("nullable", False)
    schema = pa.schema([pa.field(n, a.type, nullable=nullable) for n, a in arrays.items()])
    settings = {
        "compression": "zstd",
        "write_statistics": False,
        "store_schema": False,
        "write_page_checksum": True,
        "use_dictionary": ["layer"] if "index" in arrays else False,
    }
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, **(settings | options)) as writer:
        writer.write_table(pa.table(list(arrays.values()), schema=schema))
        writer.add_key_value_metadata({"cones": json.dumps(read_footer(data) | footer)})
    return sink.getvalue()


def bad_masks() -> dict[str, bytes]:
    """Rule -> a file that breaks this rule of schema/mask.md alone."""
    gap8, plain = encode(example(), layout="gap8"), encode(example(), layout="plain")
    graded = encode(example("float16"), layout="gap8")
    table = pq.read_table(io.BytesIO(gap8))
    cells, encodings = table["gaps"].to_pylist(), table["encoding"].to_pylist()
    index = pq.read_table(io.BytesIO(plain))["index"].to_numpy().copy()
    names = pq.read_table(io.BytesIO(plain))["layer"].to_pylist()

    def gaps(row: int, change: Callable[[bytes], bytes]) -> dict[str, Any]:
        changed = [change(cell) if i == row else cell for i, cell in enumerate(cells)]
        return {"gaps": pa.array(changed, pa.binary())}

    def indices(row: int, value: int) -> dict[str, Any]:
        changed = index.copy()
        changed[row] = value
        return {"index": pa.array(changed)}

    classes = encode(crowded(), layout="class")
    tables = pq.read_table(io.BytesIO(classes))

    # Three column classes, five labels a byte: 255 is more than any five of them make.
    odd = next(row for row, cell in enumerate(tables["blocks"].to_pylist()) if cell[1] == 3)

    def odd_row(name: str, change: Callable[[bytes], bytes]) -> dict[str, Any]:
        """A column with the cell of that layer changed."""
        column = tables[name].to_pylist()
        column[odd] = change(column[odd])
        return {name: pa.array(column, pa.binary())}

    digest = "sha256:" + "0" * 64
    return {
        "index-out-of-range": rewrite(gap8, gaps(0, lambda cell: cell[:-1] + b"\xfe"), {}),
        "fewer-indices-than-n": rewrite(gap8, gaps(0, lambda cell: cell[:-2]), {}),
        "skip-at-the-end": rewrite(gap8, gaps(0, lambda cell: cell + b"\xff"), {}),
        "bits-beyond-the-last-neuron": rewrite(gap8, gaps(3, lambda c: c[:-1] + b"\x15"), {}),
        "unknown-encoding": rewrite(gap8, {"encoding": pa.array(["gap9"] * 4)}, {}),
        "gap-wider-than-its-encoding": rewrite(
            gap8, {"encoding": pa.array(["gap6", *encodings[1:]])}, {}
        ),
        "n-not-the-footers": rewrite(gap8, {"n": pa.array([17, 1, 3, 18], pa.int32())}, {}),
        "layer-table-not-the-footers": rewrite(
            gap8, {"rows": pa.array([32, 32, 64, 6], pa.int32())}, {}
        ),
        "unknown-layout": rewrite(gap8, {}, {"layout": "wavelet"}),
        "newer-format": rewrite(gap8, {}, {"format": 2}),
        "mask-digest-of-another": rewrite(gap8, {}, {"mask_digest": digest}),
        "page-expands-too-far": rewrite(gap8, gaps(0, lambda cell: cell + bytes(20_000_000)), {}),
        "page-without-checksum": rewrite(gap8, {}, {}, write_page_checksum=False),
        "nullable-columns": rewrite(gap8, {}, {}, nullable=True),
        "cut-off": gap8[: len(gap8) // 2],
        "factor-not-finite": rewrite(
            graded,
            {
                f"factors_{i}": pa.array([b"\xff" * 17, b"", b"\xff" * 3, b"\xff" * 18])
                for i in (0, 1)
            },
            {},
        ),
        "class-no-such-stream": rewrite(classes, odd_row("blocks", lambda c: c[:-1] + b"\7"), {}),
        "class-label-beyond-the-classes": rewrite(
            classes, odd_row("col_classes", lambda cell: b"\xff" + cell[1:]), {}
        ),
        "class-labels-too-few": rewrite(classes, odd_row("col_classes", lambda cell: cell[1:]), {}),
        "class-too-few-members": rewrite(classes, odd_row("gaps_4", lambda cell: b""), {}),
        "class-bits-too-long": rewrite(classes, odd_row("bits", lambda cell: cell + b"\0"), {}),
        "plain-not-increasing": rewrite(plain, indices(2, 1), {}),
        "plain-index-negative": rewrite(plain, indices(0, -1), {}),
        "plain-layer-not-the-footers": rewrite(
            plain, {"layer": pa.array([names[0], *names[:-1]])}, {}
        ),
    }


BAD_FOOTERS: dict[str, dict[str, Any]] = {
    "format-not-a-number": {"format": "1"},
    "layout-missing": {"layout": None},
    "precision-unknown": {"precision": "int8"},
    "digest-too-short": {"mask_digest": "sha256:12ab"},
    "digest-in-capitals": {"layer_table_digest": "sha256:" + "AB" * 32},
    "neuron-count-negative": {"neuron_count": -1},
    "neuron-count-not-whole": {"neuron_count": 1.5},
    "table-neuron-count-too-large": {"table_neuron_count": 2**33},
    "concept-not-an-object": {"concept": ["alice", "dog"]},
}


def as_json(value: Any) -> bytes:
    """Indented JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()


RECORD = Record(
    owner="alice",
    name="dog",
    version=1,
    base="sha256:" + "a" * 64,
    mask_digest="sha256:" + "b" * 64,
    blob_digest="sha256:" + "c" * 64,
    blob_bytes=100,
    neuron_count=10,
    table_neuron_count=100,
    density=0.1,
    precision="binary",
    layout="gap8",
    scope="subject",
    token="sks",
    class_noun="dog",
    tags=("animal",),
    created="2026-11-28T10:00:00.000000Z",
    provenance=Provenance("gates", seed=7, parameters={"steps": 60}, history=({"loss": 0.5},)),
    history_steps=1,
    sketch=b"sketch",
)
SEGMENT = {
    "format": "cones-log/2",
    "actor": "ann@host",
    "verb": "",
    "events": plain_events(
        [Pushed(RECORD.without_history()), Tagged("alice", "dog", 1, add=("brown",))]
    ),
}
REMOVE = {"type": "remove", "owner": "alice", "name": "dog", "version": 1}
ALIAS = {**REMOVE, "type": "alias", "alias": "prod", "generation": 1}


def bad_segments() -> dict[str, dict[str, Any]]:
    """Rule -> the example segment with this rule of schema/log.md broken."""
    push = SEGMENT["events"][0]

    def record(**changes: Any) -> dict[str, Any]:
        return SEGMENT | {"events": [push | {"record": push["record"] | changes}]}

    def events(*listed: dict[str, Any]) -> dict[str, Any]:
        return SEGMENT | {"events": list(listed)}

    return {
        "format-of-another-kind": SEGMENT | {"format": "cones-quota/1"},
        "format-of-before": SEGMENT | {"format": "cones-log/1"},
        "no-events": events(),
        "owner-climbs-out": record(owner="../etc"),
        "owner-in-capitals": record(owner="Alice"),
        "name-with-separator": record(name="dog/cat"),
        "name-looks-alike": record(name="d\u043eg"),
        "version-zero": record(version=0),
        "version-not-whole": record(version=1.5),
        "blob-digest-too-short": record(blob_digest="sha256:abc"),
        "scope-unknown": record(scope="everywhere"),
        "precision-unknown": record(precision="float8"),
        "more-members-than-neurons": record(neuron_count=101, density=1.01),
        "density-not-the-counts": record(density=0.2),
        "blob-bytes-negative": record(blob_bytes=-1),
        "created-not-utc": record(created="2026-11-22T00:00:00"),
        "alias-all-digits": events(ALIAS | {"alias": "12"}),
        "alias-generation-zero": events(ALIAS | {"generation": 0}),
        "tag-empty": events(REMOVE | {"type": "tag", "add": [""], "remove": []}),
        "newer-event": events({"type": "overwrite"}),
        "newer-field-of-an-event": events(REMOVE | {"reason": "old"}),
        "newer-field-of-a-record": record(colour="red"),
    }


def document_schema(title: str, name: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """The schema of a small document with a format and its own digest."""
    definitions = body.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{name}.schema.json",
        "title": title,
        "type": "object",
        "required": ["format", *body, "digest"],
        "properties": {
            "format": {"const": f"cones-{kind}"},
            **body,
            "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        },
        "$defs": definitions,
    }


def schemas() -> dict[str, dict[str, Any]]:
    """Name -> a JSON Schema that is made from the classes."""
    (record,), of_record = msgspec.json.schema_components([Record], ref_template="#/$defs/{name}")
    kinds, of_events = msgspec.json.schema_components(
        list(KINDS.values()), ref_template="#/$defs/{name}"
    )
    # A record in the log has no field of a later version; a stored one may.
    of_events["Record"]["additionalProperties"] = False
    ulid = {"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"}
    version = document_schema(
        "versions/<owner>/<name>/<number>.json: the record of a version",
        "registry-version",
        "version/1",
        {"record": record, "maker": ulid, "$defs": of_record},
    )
    log = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "log-segment.schema.json",
        "title": "log/<ulid>.<sha256>.json.zst, unpacked: one commit",
        "type": "object",
        "required": ["format", "events"],
        "properties": {
            "format": {"const": "cones-log/2"},
            "actor": {"type": "string", "maxLength": 200},
            "verb": {"type": "string", "maxLength": 200},
            "events": {
                "type": "array",
                "minItems": 1,
                "maxItems": 100_000,
                "items": {"oneOf": list(kinds)},
            },
        },
        "$defs": of_events,
    }
    return {"registry-version": version, "log-segment": log}


def files() -> dict[Path, bytes]:
    """Every file this tool answers for -> its content."""
    data = encode(example(), layout="gap8", footer=CONCEPT)
    footer = read_footer(data)
    made = {
        EXAMPLES / "mask.parquet": data,
        EXAMPLES / "mask.txt": describe(data).encode(),
        EXAMPLES / "mask-plain.parquet": encode(example(), layout="plain", footer=CONCEPT),
        EXAMPLES / "mask-footer.json": (json.dumps(footer, indent=2) + "\n").encode(),
    }
    for name, schema in schemas().items():
        made[ROOT / "schema" / f"{name}.schema.json"] = as_json(schema)
    body = {"record": RECORD.dump(), "maker": "01M81X1G71RG9BMDSJFFGKZZPR"}
    made[EXAMPLES / "registry-version.json"] = as_json(json.loads(seal("version", body)))
    made[EXAMPLES / "log-segment.json"] = as_json(SEGMENT)
    for rule, segment in bad_segments().items():
        made[BAD / f"log-segment-{rule}.json"] = as_json(segment)
    for rule, content in bad_masks().items():
        made[BAD / f"mask-{rule}.parquet"] = content
    for rule, change in BAD_FOOTERS.items():
        changed = {key: value for key, value in (footer | change).items() if value is not None}
        made[BAD / f"mask-footer-{rule}.json"] = (json.dumps(changed, indent=2) + "\n").encode()
    for layout in LAYOUTS:
        for precision in PRECISIONS:
            name = f"mask-1-{layout}-{precision}.parquet"
            mask = crowded(precision) if layout == "class" else example(precision)
            made[GOLDEN / name] = encode(mask, layout=layout, footer=CONCEPT)
    narrow = "mask-1-gap8-binary-crowded.parquet"
    made[GOLDEN / narrow] = encode(crowded(), layout="gap8", footer=CONCEPT)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write what is missing")
    parser.add_argument("--schema", action="store_true", help="with --write: renew schema/ as well")
    arguments = parser.parse_args()
    missing = 0
    for path, content in files().items():
        renew = arguments.schema and path.is_relative_to(ROOT / "schema")
        if path.exists() and not (renew and path.read_bytes() != content):
            continue
        if arguments.write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        missing += 1
        print(f"{'wrote' if arguments.write else 'missing or changed:'} {path.relative_to(ROOT)}")
    return int(missing > 0 and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())
