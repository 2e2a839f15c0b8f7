"""`cones stats`: what a registry holds, and what it saves."""

from __future__ import annotations

from .output import share, size
from .session import Session
from .verb import verb


@verb(reads=True)
def command(session: Session) -> None:
    """Say how many concepts there are, what they take, and what they would take otherwise."""
    found = session.open(read_only=True).stats()
    output = session.output
    if output.as_json:
        output.document(found.to_json())
        return
    kept = found.blob_bytes
    output.fields(
        {
            "owners": f"{found.owners:,}",
            "concepts": f"{found.concepts:,}",
            "versions": f"{found.versions:,}",
            "removed": f"{found.removed:,}",
            "base models": f"{found.bases:,}",
            "masks": f"{found.blobs:,}",
        }
    )
    output.line("")
    output.table(
        ("the same versions as", "bytes", "saved by the registry"),
        [
            ("masks in this registry", size(kept), ""),
            ("int32 indices", size(found.raw_bytes), saved(kept, found.raw_bytes)),
            ("dense float32 K/V", size(found.dense_bytes), saved(kept, found.dense_bytes)),
        ],
    )


def saved(kept: int, otherwise: int) -> str:
    """The share that is saved; nothing where there is nothing to compare."""
    return share(1 - kept / otherwise) if otherwise else ""
