"""`cones init`: make an empty registry."""

from __future__ import annotations

import click

from .session import Session
from .verb import verb


@verb()
@click.argument("url", required=False)
def command(session: Session, url: str | None) -> None:
    """Make an empty registry at URL: a folder, or s3://, gs://, az:// and a bucket.

    Without URL, where -r or CONES_REGISTRY says. What exists is never touched: a second `init`
    on one place ends with exit code 11.
    """
    from cones_registry.registry import Registry

    session.registry_url = url or session.url()
    registry = Registry.create(session.registry_url, **session.storage_options)
    session.output.message(f"made an empty registry at {registry.url}")
    session.output.message(f"To use it without -r: export CONES_REGISTRY={registry.url}")
