"""`cones init`: make an empty registry, at a place that was tried first."""

from __future__ import annotations

import click

from cones_registry.errors import StoreUnavailableError

from .session import Session
from .verb import verb


@verb()
@click.argument("url", required=False)
def command(session: Session, url: str | None) -> None:
    """Make an empty registry at URL: a folder, or s3://, gs://, az:// and a bucket.

    Without URL, where -r or CONES_REGISTRY says. What exists is never touched: a second `init`
    on one place ends with exit code 11. The store is tried first: whether it refuses to create what
    is there, lists what was written, and has a clock near this machine's.
    """
    from cones_registry.catalog.keys import ROOT
    from cones_registry.registry import Registry
    from cones_registry.store import open_store
    from cones_registry.store.probe import probe

    session.registry_url = url or session.url()
    store = open_store(session.registry_url, **session.storage_options)
    if store.head(ROOT) is None:
        findings = probe(store)
        for each in findings:
            session.output.message(f"{each.what}: {each.said}")
        if any(each.ok is False and each.what != "clock" for each in findings):
            raise StoreUnavailableError(
                f"no registry was made at {store.url}: it does not do what one needs (see above)"
            )
    registry = Registry.create(store)
    session.output.message(f"made an empty registry at {registry.url}")
    session.output.message(f"To use it without -r: export CONES_REGISTRY={registry.url}")
