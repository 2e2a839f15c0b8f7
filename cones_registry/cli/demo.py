"""`cones demo`: the whole way, from photos to composed pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cones_registry.quantities import share, size

from .output import Output
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.demo.demonstration import DemoReport


@verb(registry=False, reads=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="An empty folder for the registry, the pictures and the report.",
)
@click.option("--base", "source", default="demo", show_default=True, help="Another base model.")
def command(session: Session, out: Path, source: str) -> None:
    """Learn four subjects from PNG files, keep them in a registry, combine them, draw them.

    Writes registry/, contact-sheet.png and report.json to the folder. Takes minutes; needs the
    extra `model`.
    """
    from cones_registry.demo.demonstration import run

    report = run(out, source=source, say=session.output.message)
    if session.output.as_json:
        session.output.document(report.to_json())
    else:
        show(session.output, report)
    session.output.message(f"Look at {out / 'contact-sheet.png'}; figures are in report.json.")
    session.output.message(f"The concepts are there to use: cones -r {out / 'registry'} list")


def show(output: Output, report: DemoReport) -> None:
    """What the concepts cost and what they draw, as shares of pictures that a judge finds right."""
    output.table(
        ("concept", "density", "on disk", "as int32", "dense K/V", "U-Net", "saved"),
        [
            (
                each.ref,
                share(each.density),
                size(each.bytes),
                size(each.raw_int32_bytes),
                size(each.dense_kv_bytes),
                size(each.unet_bytes),
                share(each.saved),
            )
            for each in report.subjects
        ],
    )
    output.line("")
    output.table(
        ("concept", "subject right", "without mask", "place, background", "without mask"),
        [
            (
                each.ref,
                share(each.subject_accuracy),
                share(each.subject_accuracy_without),
                share(each.text_accuracy),
                share(each.text_accuracy_without),
            )
            for each in report.subjects
        ],
    )
    output.line("")
    output.table(
        ("pair", "scope", "both right"),
        [(" + ".join(each.refs), each.scope, share(each.both)) for each in report.pairs],
    )
