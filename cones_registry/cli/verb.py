"""How a verb is declared: a click command with the options that all verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .session import Session


def verb(*, registry: bool = True, reads: bool = False) -> Callable[[Callable[..., None]], Verb]:
    """Make a function into a verb; it gets the Session first, then its own arguments.

    Args:
        registry: the verb works on a registry and so takes -r and --storage-option.
        reads: the verb shows data and so takes --json.
    """

    def decorate(body: Callable[..., None]) -> Verb:
        command = click.command(cls=Verb)(click.pass_obj(body))
        command.params += shared_options(registry=registry, reads=reads)
        return command

    return decorate


class Verb(click.Command):
    """A command whose usage line names the arguments first, as people type them."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """REF FILE [OPTIONS] instead of click's [OPTIONS] REF FILE."""
        pieces = super().collect_usage_pieces(ctx)
        return [*pieces[1:], *pieces[:1]]


def shared_options(*, registry: bool, reads: bool) -> list[click.Parameter]:
    """The options of all verbs; each writes into the Session rather than into the verb's call."""
    options: list[click.Parameter] = []
    if registry:
        options.append(
            click.Option(
                ["-r", "--registry"],
                metavar="URL",
                expose_value=False,
                callback=_set_registry,
                help="Path or URL of the registry; CONES_REGISTRY otherwise.",
            )
        )
        options.append(
            click.Option(
                ["--storage-option"],
                metavar="KEY=VALUE",
                multiple=True,
                expose_value=False,
                callback=_set_storage_options,
                help="For the store, e.g. endpoint_url=http://127.0.0.1:9000; repeatable.",
            )
        )
    if reads:
        options.append(
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_set_json,
                help="One JSON document on stdout.",
            )
        )
    options.append(
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_set_debug,
            help="Show tracebacks; CONES_DEBUG=1 does the same.",
        )
    )
    return options


def _session(context: click.Context) -> Session:
    return context.ensure_object(Session)


def _set_registry(context: click.Context, _: click.Parameter, value: str | None) -> Any:
    if value:
        _session(context).registry_url = value


def _set_storage_options(
    context: click.Context, _: click.Parameter, values: tuple[str, ...]
) -> Any:
    for value in values:
        _session(context).add_storage_option(value)


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> Any:
    _session(context).output.as_json |= value


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> Any:
    _session(context).debug |= value
