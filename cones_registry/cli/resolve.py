"""`cones resolve`: what several concepts come to, before any picture is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cones_registry.quantities import counted, share

from .output import Output
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.resolver import Composition


@verb(reads=True)
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option(
    "--explain", is_flag=True, help="Show each pair's overlap and each layer's density too."
)
@click.option(
    "--max-density",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="The largest share of neurons that all of them may shut; above it, exit code 16.",
)
@click.option(
    "--tuned", is_flag=True, help="Take the masks that were tuned jointly for exactly these."
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw overlaps and densities (PNG, SVG or PDF).",
)
def command(
    session: Session,
    refs: tuple[str, ...],
    explain: bool,
    max_density: float | None,
    tuned: bool,
    plot: Path | None,
) -> None:
    """Combine concepts and say what each adds, what they share and where they clash."""
    limit: dict[str, Any] = {} if max_density is None else {"max_density": max_density}
    composition = session.open(read_only=True).resolve(*refs, tuned=tuned, **limit)
    if plot is not None:
        from .figures import draw_composition

        draw_composition(composition, plot)
        session.output.message(f"drew {plot}")
    if session.output.as_json:
        session.output.document(composition.to_json())
        return
    show(session.output, composition, explain=explain)


def show(output: Output, composition: Composition, *, explain: bool) -> None:
    """The composition as tables; with `explain`, pair by pair and layer by layer."""
    rows = [
        (
            each.ref,
            each.scope,
            f"{each.neuron_count:,}",
            share(each.density),
            f"{each.exclusive_count:,}",
            share(each.exclusive_share),
        )
        for each in composition.contributions
    ]
    output.table(("concept", "scope", "neurons", "density", "shut by it alone", "of its own"), rows)
    if explain:
        _explain(output, composition)
    output.line("")
    output.fields(
        {
            "density": share(composition.density),
            "parts": f"{counted(len(composition.parts), 'mask')}: "
            + "; ".join(_parts(composition)),
            "base": composition.base,
            "digest": composition.digest,
        }
    )


def _parts(composition: Composition) -> list[str]:
    return [
        f"{' + '.join(part.refs)} in "
        + (f"the rows of “{' '.join(part.tokens)}”" if part.tokens else "every row")
        for part in composition.parts
    ]


def _explain(output: Output, composition: Composition) -> None:
    if composition.overlaps:
        output.line("")
        output.table(
            ("first", "second", "shared", "by chance", "Jaccard", "by chance"),
            [
                (
                    pair.first,
                    pair.second,
                    f"{pair.shared_count:,}",
                    f"{pair.expected_count:,.0f}",
                    f"{pair.jaccard:.4f}",
                    f"{pair.expected_jaccard:.4f}",
                )
                for pair in composition.overlaps
            ],
        )
    output.line("")
    output.table(
        ("layer", "density"),
        [(layer, share(density)) for layer, density in composition.density_by_layer.items()],
    )
    output.line("")
    output.table(
        ("shut by so many concepts", "neurons"),
        [(str(number), f"{count:,}") for number, count in enumerate(composition.shared_by)],
    )
