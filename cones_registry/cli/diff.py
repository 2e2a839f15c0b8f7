"""`cones diff`: how two masks differ."""

from __future__ import annotations

import click

from .output import share
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("first")
@click.argument("second")
def command(session: Session, first: str, second: str) -> None:
    """Compare the masks of two concepts, or of two versions of one, layer by layer."""
    registry = session.open(read_only=True)
    left, right = registry.get(first), registry.get(second)
    one, other = registry.pull(left.ref), registry.pull(right.ref)
    shared, only_one, only_other = one & other, one - other, other - one
    summary = {
        "first": left.ref,
        "second": right.ref,
        "equal": one == other,
        "jaccard": one.jaccard(other),
        "shared": len(shared),
        "only_first": len(only_one),
        "only_second": len(only_other),
        "layers": [
            {
                "layer": layer.name,
                "neurons": layer.neuron_count,
                "shared": shared.count(layer.name),
                "only_first": only_one.count(layer.name),
                "only_second": only_other.count(layer.name),
            }
            for layer in one.table.layers
        ],
    }
    output = session.output
    if output.as_json:
        output.document(summary)
        return
    columns = ("layer", "neurons", "shared", f"only {left.ref}", f"only {right.ref}")
    output.table(columns, [tuple(layer.values()) for layer in summary["layers"]])
    output.message(
        f"{left.ref} and {right.ref} "
        + ("are equal" if one == other else f"share {share(summary['jaccard'])} of their neurons")
    )
