"""The command `cones`. A verb parses, calls one method and prints; one file per verb."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from .failures import report
from .group import LazyGroup
from .output import ReaderGoneError
from .session import Session
from .verb import shared_options


@click.group(
    name="cones",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=shared_options(registry=True, reads=True),
)
@click.version_option(package_name="cones-registry", message="%(prog)s %(version)s")
def cones() -> None:
    """Concept neurons as versioned artefacts: extract, keep, combine, generate.

    A concept is a small set of weights of one base model that, shut, makes it draw a subject.
    `cones VERB --help` explains a verb. References are [OWNER/]NAME[:VERSION|:ALIAS].
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (sys.argv otherwise); return the exit code."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        # Their warnings speak to programmers; errors still come through.
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        # A tag that this terminal cannot write must not end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    session = Session(registry_url=os.environ.get("CONES_REGISTRY") or None)
    try:
        result = cones.main(
            args=None if arguments is None else list(arguments),
            prog_name="cones",
            standalone_mode=False,
            obj=session,
        )
    except ReaderGoneError:
        # Python flushes stdout once more when it ends; that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        session.output.close()
        return report(error, session.output, debug=session.debug)
    return result if isinstance(result, int) else 0


def main() -> None:
    """The entry point of the installed command."""
    sys.exit(run())
