"""`cones diff`: how two masks differ."""

from __future__ import annotations

import click

from cones_registry.errors import BaseModelMismatchError
from cones_registry.quantities import share

from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("first")
@click.argument("second")
def command(session: Session, first: str, second: str) -> None:
    """Compare the masks of two concepts, or of two versions of one, layer by layer."""
    registry = session.open(read_only=True)
    left, right = registry.get(first), registry.get(second)
    if left.base != right.base:
        raise BaseModelMismatchError(
            f"cannot compare {left.ref}, made for base {left.base}, with {right.ref}, made for"
            f" {right.base}: equal indices mean different weights there"
        )
    one, other = registry.pull(left.ref), registry.pull(right.ref)
    shared, only_one, only_other = one & other, one - other, other - one
    layers = [
        {
            "layer": layer.name,
            "neurons": layer.neuron_count,
            "shared": shared.count(layer.name),
            "only_first": only_one.count(layer.name),
            "only_second": only_other.count(layer.name),
        }
        for layer in one.table.layers
    ]
    jaccard = one.jaccard(other)
    summary = {
        "first": left.ref,
        "second": right.ref,
        "equal": one == other,
        "jaccard": jaccard,
        "shared": len(shared),
        "only_first": len(only_one),
        "only_second": len(only_other),
        "layers": layers,
    }
    output = session.output
    if output.as_json:
        output.document(summary)
        return
    columns = ("layer", "neurons", "shared", f"only {left.ref}", f"only {right.ref}")
    output.table(
        columns,
        [
            tuple(value if isinstance(value, str) else f"{value:,}" for value in layer.values())
            for layer in layers
        ],
    )
    output.message(
        f"{left.ref} and {right.ref} "
        + ("are equal" if one == other else f"share {share(jaccard)} of their neurons")
    )
