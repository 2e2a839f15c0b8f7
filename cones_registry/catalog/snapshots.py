"""Snapshots: the fold of everything up to some segments.

`snapshots/<number>.json` is the decision: created exclusively, one number after the other, it names
a Parquet object by digest and size and lists the folded segments that were still in the log.
`snapshots/<number>-<sha256>.parquet` holds the rows; written before, harmless without.
A pointer in the log is the publication: what one listing of the log shows. Whoever finds a snapshot
without a pointer writes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cones_registry.catalog.clock import parse_stamp
from cones_registry.catalog.copy import Meta
from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.tables import CONCEPTS, LATER, SNAPSHOT_ALIASES
from cones_registry.digest import Digest, parse_digest, sha256_bytes
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.store import Store

PREFIX: Final = "snapshots/"
MAX_ROWS: Final = 200_000_000
_MANIFEST: Final = re.compile(r"snapshots/([0-9]{6,9})\.json", re.ASCII)


@dataclass(frozen=True)
class Manifest:
    """What a snapshot is.

    Attributes:
        number: 1, 2, 3, …
        digest: of the manifest's own bytes; in it are all others.
        parquet, size: digest and bytes of the Parquet object.
        rows: versions in it.
        folded: stamps of the segments in it that were in the log when it was made.
        meta: condemned, purged, rewritten and the latest stamp.
    """

    number: int
    digest: Digest
    parquet: Digest
    size: int
    rows: int
    folded: tuple[str, ...]
    meta: Meta


def manifest_key(number: int) -> str:
    """Key of the manifest of a snapshot."""
    return f"{PREFIX}{number:06d}.json"


def parquet_key(number: int, digest: Digest) -> str:
    """Key of the Parquet object of a snapshot."""
    return f"{PREFIX}{number:06d}-{digest.removeprefix('sha256:')}.parquet"


def encode_manifest(
    number: int, parquet: bytes, rows: int, folded: Sequence[str], meta: Meta, maker: str
) -> bytes:
    """Bytes of a manifest; `maker` is any unique text, so that two makers never write the same."""
    return seal(
        "snapshot",
        {
            "number": number,
            "parquet": sha256_bytes(parquet),
            "size": len(parquet),
            "rows": rows,
            "folded": sorted(folded),
            "latest": meta.latest,
            "condemned": meta.condemned,
            "purged": meta.purged,
            "rewritten": meta.rewritten,
            "purged_blobs": meta.purged_blobs,
            "maker": maker,
        },
    )


def decode_manifest(number: int, data: bytes) -> Manifest:
    """A manifest, checked; `CorruptDataError` if it cannot be one."""
    source = manifest_key(number)
    body = unseal("snapshot", data, source)
    try:
        if body["number"] != number or not 0 <= body["rows"] <= MAX_ROWS:
            raise CorruptDataError(f"{source} speaks of snapshot {body['number']!r}")
        meta = Meta(
            snapshot=number,
            manifest=sha256_bytes(data),
            latest=body["latest"],
            condemned={
                parse_digest(blob): (str(stamp), int(size))
                for blob, (stamp, size) in body["condemned"].items()
            },
            purged={parse_digest(name): int(high) for name, high in body["purged"].items()},
            rewritten={
                parse_digest(old): (parse_digest(new), int(size))
                for old, (new, size) in body["rewritten"].items()
            },
            purged_blobs=[parse_digest(blob) for blob in body["purged_blobs"]],
        )
        return Manifest(
            number,
            meta.manifest,
            parse_digest(body["parquet"]),
            int(body["size"]),
            int(body["rows"]),
            tuple(parse_stamp(stamp) for stamp in body["folded"]),
            meta,
        )
    except (KeyError, TypeError, ValueError, UsageError) as error:
        if isinstance(error, CorruptDataError):
            raise
        raise CorruptDataError(f"{source} is not a manifest: {error}") from error


def read_manifest(store: Store, number: int, expected: Digest | None = None) -> Manifest:
    """The manifest of snapshot `number`, its bytes checked against `expected` where known."""
    manifest = decode_manifest(number, store.get(manifest_key(number)))
    if expected is not None and manifest.digest != expected:
        raise CorruptDataError(
            f"{manifest_key(number)} has digest {manifest.digest}, its pointer says {expected}"
        )
    return manifest


def read_parquet(store: Store, manifest: Manifest) -> bytes:
    """The Parquet bytes of a snapshot, checked against its manifest, schema and row count too."""
    key = parquet_key(manifest.number, manifest.parquet)
    data = store.get(key)
    if len(data) != manifest.size or sha256_bytes(data) != manifest.parquet:
        raise CorruptDataError(
            f"{key} is damaged: {len(data)} bytes with digest {sha256_bytes(data)}, expected "
            f"{manifest.size} bytes"
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names, rows = file.schema_arrow.names, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(f"{key} is not Parquet: {error}") from error
    expected = [name for name in CONCEPTS.names if name in names or name not in LATER]
    if names != [*expected, "aliases"] or rows != manifest.rows:
        raise CorruptDataError(
            f"{key} has {rows} rows of the columns {names}; its manifest says {manifest.rows} rows "
            f"of {[*expected, 'aliases']}"
        )
    return data


def manifest_numbers(store: Store) -> list[int]:
    """Numbers of all snapshots that have a manifest, ascending."""
    found = (_MANIFEST.fullmatch(entry.key) for entry in store.list(PREFIX))
    return sorted(int(match[1]) for match in found if match)


def newest_manifest(store: Store) -> Manifest | None:
    """The newest snapshot's manifest, published or not."""
    while numbers := manifest_numbers(store):
        try:
            return read_manifest(store, numbers[-1])
        except NotFoundError:
            continue  # removed since it was listed, so there is a newer one
    return None


EXPORT: Final = f"""
    SELECT c.*, a.aliases::{SNAPSHOT_ALIASES} AS aliases
    FROM concepts c LEFT JOIN (
        SELECT owner, name, version, list({{'alias': alias, 'generation': generation}}) AS aliases
        FROM aliases GROUP BY ALL
    ) a USING (owner, name, version)
    ORDER BY c.owner, c.name, c.version
"""
"""The rows of a snapshot, from the local copy."""


def load(connection: Any, path: str) -> None:
    """Fill the empty tables of a new local copy from a snapshot's Parquet file."""
    connection.execute(
        "INSERT INTO concepts BY NAME SELECT * EXCLUDE (aliases) FROM read_parquet(?)", [path]
    )
    connection.execute(
        "INSERT INTO aliases SELECT owner, name, a.alias, version, a.generation FROM ("
        "SELECT owner, name, version, unnest(aliases) AS a FROM read_parquet(?) "
        "WHERE aliases IS NOT NULL)",
        [path],
    )
