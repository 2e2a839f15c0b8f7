"""Destructive verbs show their plan first, and go on only when told to.

A plan can be kept in a file, looked over by somebody else, and applied.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cones_registry.errors import UsageError

from .session import Session

if TYPE_CHECKING:
    from cones_registry.registry import Registry
    from cones_registry.registry.plan_files import Plan

P = TypeVar("P")


def consent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --dry-run, --plan, --apply and --yes to a verb."""
    file = click.Path(dir_okay=False, path_type=Path)
    options = (
        click.option("--dry-run", is_flag=True, help="Show what would be done, and stop."),
        click.option(
            "--plan", "plan_file", type=file, help="Write what would be done to FILE, and stop."
        ),
        click.option(
            "--apply",
            "apply_file",
            type=file,
            help="Do what such a FILE says, as far as it still holds.",
        ),
        click.option("-y", "--yes", is_flag=True, help="Do it without asking."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def is_looking(dry_run: bool, plan_file: Path | None) -> bool:
    """Whether nothing is to be changed."""
    return dry_run or plan_file is not None


def loaded(registry: Registry, path: Path, kind: type[P], *, dest: Registry | None = None) -> P:
    """The plan in a file, which must be one of this verb."""
    plan = registry.load_plan(path, dest=dest)
    if not isinstance(plan, kind):
        raise UsageError(f"{path} is a {type(plan).__name__}; this verb takes a {kind.__name__}")
    return plan


def is_saved(session: Session, registry: Registry, plan: Plan, path: Path | None) -> bool:
    """Whether the plan was to be kept in a file, which it is then."""
    if path is None:
        return False
    registry.save_plan(plan, path)
    session.output.message(f"nothing was done. To do it: the same verb with --apply {path}")
    return True


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
