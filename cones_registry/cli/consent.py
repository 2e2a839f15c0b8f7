"""Destructive verbs show their plan first, and go on only when told to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from cones_registry.errors import UsageError

from .session import Session


def consent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --dry-run and --yes to a verb."""
    yes = click.option("-y", "--yes", is_flag=True, help="Do it without asking.")
    return click.option("--dry-run", is_flag=True, help="Show what would be done, and stop.")(
        yes(command)
    )


def consents(session: Session, question: str, *, dry_run: bool, yes: bool) -> bool:
    """Whether to execute the plan that was just shown.

    Raises:
        UsageError: nobody can be asked, and neither --yes nor --dry-run was given.
    """
    if dry_run:
        session.output.message("nothing was done: --dry-run")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nothing was done: say --yes to do it, or --dry-run to see the plan only")
    if click.confirm(question, err=True):
        return True
    session.output.message("nothing was done")
    return False
