"""`cones quota`: how much owners may keep."""

from __future__ import annotations

import click

from cones_registry.filters import parse_size
from cones_registry.quantities import counted, size

from .listing import Listing, format_option, show_listing
from .session import Session
from .verb import verb

_NONE = "none"


@verb(reads=True)
@click.argument("owner", required=False)
@click.option("--concepts", metavar="N", help="At most N concepts; none: any number.")
@click.option("--bytes", "byte_limit", metavar="SIZE", help="At most SIZE, as 2GB; none: any.")
@format_option
def command(
    session: Session,
    owner: str | None,
    concepts: str | None,
    byte_limit: str | None,
    form: str,
) -> None:
    """Show the limits of OWNER, or of every owner that has any, and what they keep; or set them.

    Every writer enforces them at push (exit code 16). A limit that is not named stays as it is.
    """
    changes = concepts is not None or byte_limit is not None
    registry = session.open(read_only=not changes)
    output = session.output
    if owner is not None and changes:
        before = registry.quota(owner)
        registry.set_quota(
            owner,
            concepts=before.concepts if concepts is None else _count(concepts),
            bytes=before.bytes if byte_limit is None else _size(byte_limit),
        )
    elif changes:
        raise click.UsageError("whose limit? Name the owner: cones quota alice --concepts 100")
    quotas = registry.quotas() if owner is None else [registry.quota(owner)]
    used = [registry.usage(quota.owner) for quota in quotas]
    documents = [
        {
            "owner": quota.owner,
            "concepts": quota.concepts,
            "bytes": quota.bytes,
            "used_concepts": names,
            "used_bytes": total,
        }
        for quota, (names, total) in zip(quotas, used, strict=True)
    ]
    rows = [
        (
            quota.owner,
            f"{names:,}",
            "any" if quota.concepts is None else f"{quota.concepts:,}",
            size(total),
            "any" if quota.bytes is None else size(quota.bytes),
        )
        for quota, (names, total) in zip(quotas, used, strict=True)
    ]
    is_for_people = form == "table" and not output.as_json
    columns = ("owner", "concepts", "of", "bytes", "of")
    listing = Listing(
        columns if is_for_people else ("owner", "used_concepts", "concepts", "used_bytes", "bytes"),
        rows,
        [
            (quota.owner, names, quota.concepts, total, quota.bytes)
            for quota, (names, total) in zip(quotas, used, strict=True)
        ],
        documents,
        [quota.owner for quota in quotas],
    )
    if show_listing(output, form, listing) and owner is None:
        output.message(f"{counted(len(rows), 'owner')} with limits")


def _count(text: str) -> int | None:
    if text == _NONE:
        return None
    # More digits than any count has; and int() refuses thousands of them in a way of its own.
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise click.UsageError(f"--concepts takes a number or none, not {text[:50]!r}")
    return int(text)


def _size(text: str) -> int | None:
    return None if text == _NONE else parse_size(text)
