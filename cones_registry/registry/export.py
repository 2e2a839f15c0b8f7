"""The table of concepts for other engines: Parquet, JSON lines, Delta."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cones_registry.catalog.copy import State
from cones_registry.catalog.reader import run_query
from cones_registry.digest import quote
from cones_registry.errors import ConesError, MissingExtraError, StoreUnavailableError, UsageError

FORMATS: Final = ("delta", "parquet", "jsonl")

_COLOURS: Final = re.compile("\x1b\\[[0-9;]*m")
_DELTA_NAMES: Final = {
    "key": "AWS_ACCESS_KEY_ID",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
    "endpoint_url": "AWS_ENDPOINT_URL",
}

_QUERY: Final = """
    SELECT c.* EXCLUDE (state, pruned, sketch), coalesce(a.aliases, []) AS aliases
    FROM concepts c LEFT JOIN (
        SELECT owner, name, version, list(alias ORDER BY alias) AS aliases
        FROM aliases GROUP BY ALL
    ) a USING (owner, name, version)
    WHERE NOT c.pruned ORDER BY c.owner, c.name, c.version
"""


def export_catalog(state: State, url: str, form: str, options: dict[str, Any]) -> int:
    """Write every version as one row; see `Registry.export_catalog`."""
    if form not in FORMATS:
        raise UsageError(f"no format {quote(form)}; expected one of {', '.join(FORMATS)}")
    table = run_query(state, _QUERY, timeout=None)
    try:
        if form == "delta":
            _write_delta(table, url, options)
        else:
            _write_file(table, url, form, options)
    except ConesError:
        raise
    except OSError as error:
        raise StoreUnavailableError(f"cannot write {url}: {error}") from error
    return int(table.num_rows)


def _write_file(table: pa.Table, url: str, form: str, options: dict[str, Any]) -> None:
    import fsspec

    if "://" not in url:
        Path(url).parent.mkdir(parents=True, exist_ok=True)
    with fsspec.open(url, "wb", **options) as file:
        if form == "parquet":
            pq.write_table(table, file, compression="zstd")
            return
        for batch in table.to_batches(10_000):
            for row in batch.to_pylist():
                row["created"] = row["created"].isoformat(timespec="microseconds") + "Z"
                row["provenance"] = json.loads(row["provenance"]) if row["provenance"] else None
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _write_delta(table: pa.Table, url: str, options: dict[str, Any]) -> None:
    try:
        from deltalake import write_deltalake
        from deltalake.exceptions import DeltaError
    except ImportError as error:
        raise MissingExtraError(
            "Delta tables need the extra 'delta': pip install 'cones-registry[delta]'"
        ) from error
    # Delta has no timestamps without a zone below its newest protocol.
    position = table.schema.get_field_index("created")
    created = table["created"].cast(pa.timestamp("us", tz="UTC"))
    table = table.set_column(position, "created", created)
    try:
        write_deltalake(
            url,
            table,
            mode="overwrite",
            schema_mode="overwrite",
            storage_options=_delta_options(url, options) or None,
        )
    except DeltaError as error:
        text = " ".join(_COLOURS.sub("", str(error)).split())
        raise StoreUnavailableError(f"cannot write the Delta table {url}: {text[:500]}") from error


def _delta_options(url: str, options: dict[str, Any]) -> dict[str, str]:
    """Options of fsspec's S3 file system, given or in its configuration, as deltalake has them."""
    import fsspec

    if not url.startswith(("s3://", "s3a://")):
        return {key: str(value) for key, value in options.items()}
    known = {**fsspec.config.conf.get("s3", {}), **options}
    region = known.pop("client_kwargs", {}).get("region_name")
    found = {_DELTA_NAMES.get(key, key): str(value) for key, value in known.items()}
    if region:
        found["AWS_REGION"] = region
    if found.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        found["AWS_ALLOW_HTTP"] = "true"
    return found
