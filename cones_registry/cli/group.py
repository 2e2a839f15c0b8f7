"""The command `cones` itself: a table of verbs, each loaded only when it is typed."""

from __future__ import annotations

import builtins
import difflib
import importlib
import keyword
from collections.abc import Mapping

import click

from .failures import exit_code_table

# Section -> verb -> one line of help. A verb is listed here when it works, and only then.
SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Make": {
        "extract": "Learn a concept from photos.",
        "generate": "Draw a prompt with any concepts.",
        "attention": "Show where a subject is attended to, with its mask and without.",
        "batch": "Draw many pictures from a file of job lines.",
        "serve": "Draw for others over HTTP, with pages to look at.",
        "evaluate": "Measure methods side by side: plan, generate, score, table.",
    },
    "Keep": {
        "init": "Make an empty registry.",
        "push": "Keep a mask file as the next version of a concept.",
        "pull": "Write a concept's mask to a file.",
        "show": "Show everything about a concept, or how a picture was made.",
        "list": "List concepts.",
        "query": "Answer one SELECT over the catalogue.",
        "diff": "Compare two masks.",
        "alias": "Give a version a movable name, as prod.",
        "tag": "Add keywords for search, or take them away.",
        "remove": "Take a version out of sight.",
        "restore": "Bring a removed version back.",
        "log": "Say who did what when.",
    },
    "Combine": {
        "resolve": "Say what several concepts come to.",
        "similar": "List the concepts most like one.",
    },
    "Care": {
        "check": "Say whether the registry is whole; put back what can be.",
        "compact": "Fold the log into a snapshot.",
        "prune": "Free the bytes of what was removed.",
        "purge": "Remove an owner or a concept for good, with proof.",
        "quota": "Limit what an owner may keep.",
        "stats": "Say what is kept and what that saves.",
        "export": "Write concepts to an archive, or the catalogue for other engines.",
        "import": "Push the concepts of an archive.",
        "sync": "Bring another registry up to this one: a backup, and the way back.",
        "gallery": "Write pages to look at, a card for every concept.",
        "cache": "List or free the masks kept on this machine.",
    },
    "Start": {
        "demo": "The whole way, from photos to composed pictures.",
        "doctor": "Say what is installed, and whether a registry or a base model is sound.",
    },
}


def module_of(name: str) -> str:
    """The module of a verb; what Python keeps for itself (import, list) gets an underscore."""
    kept = keyword.iskeyword(name) or hasattr(builtins, name)
    return f"cones_registry.cli.{name}{'_' if kept else ''}"


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the help."""
        return [name for verbs in SECTIONS.values() for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, loaded; None when there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(module_of(cmd_name)).command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that was typed, or a UsageError that names the ones that are near."""
        typed = args[0]
        if self.get_command(ctx, typed) is None and not typed.startswith("-"):
            near = difflib.get_close_matches(typed, self.list_commands(ctx), n=3, cutoff=0.5)
            hint = f" Did you mean: {', '.join(near)}?" if near else ""
            raise click.UsageError(f"there is no verb '{typed}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs by what they are for, from the table alone: nothing is loaded."""
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        with formatter.section("Exit codes"):
            formatter.write(exit_code_table() + "\n")
