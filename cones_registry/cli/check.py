"""`cones check`: whether a registry is whole."""

from __future__ import annotations

import click

from cones_registry.errors import CorruptDataError
from cones_registry.quantities import counted, size

from .session import Session
from .verb import verb


@verb(reads=True)
@click.option("--read-data", is_flag=True, help="Read everything and verify every digest.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="First put back, from the masks themselves, what the catalogue has lost.",
)
def command(session: Session, read_data: bool, rebuild: bool) -> None:
    """Compare the catalogue with what is in the store; exit code 13 when something is wrong.

    Orphans and gaps are what interrupted commands leave behind; both are harmless.
    """
    registry = session.open(read_only=not rebuild)
    report = registry.check(read_data=read_data, rebuild=rebuild)
    output = session.output
    if output.as_json:
        output.document(report.to_json())
    else:
        if report.problems:
            rows = [(each.kind, each.where, each.message) for each in report.problems]
            output.table(("problem", "where", "what"), rows)
        output.fields(
            {
                "versions": f"{report.versions:,}",
                "masks": f"{report.blobs:,}",
                "log segments": f"{report.segments:,}" if read_data else "",
                "verified": size(report.read_bytes) if read_data else "",
                "orphans": f"{len(report.orphans):,}",
                "gaps": f"{len(report.gaps):,}",
                "put back": f"{report.rebuilt:,}" if rebuild else "",
                "damaged, set aside": f"{len(report.set_aside):,}" if rebuild else "",
            }
        )
    if not report.ok:
        raise CorruptDataError(
            f"{counted(len(report.problems), 'problem')} in {registry.url}."
            + ("" if rebuild else " To restore what can be: cones check --rebuild")
        )
    if report.gaps and not report.versions:
        output.message(
            "no commit is in the log, though version numbers are claimed. If anything was pushed "
            "here, the log is lost: cones check --rebuild"
        )
        return
    output.message("all is well")
