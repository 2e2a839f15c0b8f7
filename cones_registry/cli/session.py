"""What every verb shares: which registry, how to write, how much to say about failures."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cones_registry.errors import UsageError

from .output import Output

if TYPE_CHECKING:
    from cones_registry.registry import Registry


@dataclass
class Session:
    """The options that stand before or after any verb.

    Attributes:
        registry_url: path or URL; None until -r or CONES_REGISTRY names one.
        storage_options: passed to the file system of the URL (endpoint_url, anon, ...).
        debug: show tracebacks.
    """

    registry_url: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)
    debug: bool = bool(os.environ.get("CONES_DEBUG"))
    output: Output = field(default_factory=Output)

    def url(self) -> str:
        """The registry's address, or a UsageError that says how to give one."""
        if not self.registry_url:
            raise UsageError(
                "no registry was named. Say where it is with -r PATH_OR_URL or in CONES_REGISTRY."
                " To make one: cones init ./concepts"
            )
        return self.registry_url

    def open(self, *, read_only: bool = False, max_staleness: float = 0.0) -> Registry:
        """The registry, opened; its errors (not found, store unavailable) go to the user."""
        url = self.url()
        from cones_registry.registry import Registry

        registry = Registry.open(
            url, read_only=read_only, max_staleness=max_staleness, **self.storage_options
        )
        registry.on_progress = self.output.told
        return registry

    def add_storage_option(self, text: str) -> None:
        """Take `KEY=VALUE`."""
        self.storage_options |= storage_option(text)


def storage_option(text: str) -> dict[str, Any]:
    """`KEY=VALUE`; a VALUE that reads as JSON (true, 3, {"a": 1}) is that, else text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"'{text}' is no storage option; expected KEY=VALUE, as anon=true")
    try:
        return {key: json.loads(value)}
    except ValueError:
        return {key: value}
