"""`cones cache`: the masks kept on this machine."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from cones_registry.filters import parse_size
from cones_registry.quantities import counted, size

from .listing import Listing, format_option, show_listing
from .session import Session
from .verb import verb


@verb(registry=False, reads=True)
@click.argument("action", type=click.Choice(["ls", "prune"]))
@click.option("--limit", metavar="SIZE", default="0", help="For prune: keep so much, as 500MB.")
@format_option
def command(session: Session, action: str, limit: str, form: str) -> None:
    """List what was fetched from object stores and kept on this machine, or free the space.

    Every registry on this machine shares the cache; what is freed is fetched again when needed.
    CONES_CACHE says where it is, CONES_CACHE_BYTES how much it may hold.
    """
    from cones_registry.registry.mask_files import local_mask_files

    cache = local_mask_files()
    output = session.output
    if action == "prune":
        freed = cache.prune(parse_size(limit))
        output.message(f"freed {size(freed)}")
        if output.as_json:
            output.document({"freed_bytes": freed})
        return
    blobs = cache.list()
    used = [datetime.fromtimestamp(blob.used, UTC).isoformat(timespec="seconds") for blob in blobs]
    exact = [(blob.digest, blob.size, when) for blob, when in zip(blobs, used, strict=True)]
    listing = Listing(
        ("digest", "bytes", "last used"),
        [(digest, size(count), when) for digest, count, when in exact],
        exact,
        [{"digest": digest, "bytes": count, "used": when} for digest, count, when in exact],
        [digest for digest, _, _ in exact],
    )
    if not show_listing(output, form, listing):
        return
    output.message(
        f"{counted(len(blobs), 'mask')}, {size(sum(blob.size for blob in blobs))} in {cache.folder}"
    )
