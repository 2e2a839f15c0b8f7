"""``index.parquet``: one row a picture of a run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from cones_registry.batch.plan import Chunk

KEY = "index.parquet"
SCHEMA = pa.schema(
    [
        ("picture", pa.string()),
        ("line", pa.int32()),
        ("number", pa.int32()),
        ("status", pa.string()),  # "made" or "failed"
        ("error", pa.string()),
        ("digest", pa.string()),  # sha256 of the file
        ("bytes", pa.int64()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("refs", pa.list_(pa.string())),
        ("mask_digests", pa.list_(pa.string())),
        ("base", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("guidance", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("scheduler", pa.string()),
        ("mask_unconditional", pa.bool_()),
    ]
)


def encode_index(
    chunks: Iterable[Chunk],
    files: Mapping[str, tuple[str, int]],
    errors: Mapping[str, str],
    *,
    base: str,
    format: str,
) -> bytes:
    """The index file's bytes.

    files: name -> (digest, bytes) of the pictures that exist. errors: name -> why there is none.
    """
    rows = []
    for chunk in chunks:
        settings = chunk.settings
        width, height = settings.size or (None, None)
        for picture in chunk.pictures:
            digest, size = files.get(picture.name, (None, None))
            rows.append(
                {
                    "picture": f"pictures/{picture.name}.{format}",
                    "line": picture.line,
                    "number": picture.number,
                    "status": "failed" if digest is None else "made",
                    "error": errors.get(picture.name),
                    "digest": digest,
                    "bytes": size,
                    "prompt": picture.prompt,
                    "negative_prompt": picture.negative_prompt,
                    "refs": list(picture.refs),
                    "mask_digests": [chosen.concept.mask_digest for chosen in picture.chosen],
                    "base": base,
                    "seed": picture.seed,
                    "steps": settings.steps,
                    "guidance": settings.guidance,
                    "width": width,
                    "height": height,
                    "scheduler": settings.scheduler,
                    "mask_unconditional": settings.mask_unconditional,
                }
            )
    rows.sort(key=lambda row: str(row["picture"]))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
