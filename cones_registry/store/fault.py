"""A place to stop a writer at every step: how crash tests enumerate what can be cut in half."""

from collections.abc import Callable
from typing import Final

Step = tuple[str, str]
"""(what is about to happen or has happened, the key it concerns)."""

Fault = Callable[[str, str], None]
"""Called as `fault(step, key)`; whatever it raises leaves the store at exactly that step."""

STEPS: Final = (
    "put",  # before the first byte
    "written",  # local disk: the temporary file is complete and synced
    "linked",  # local disk: visible under its name, folder not yet synced
    "put-done",  # acknowledged
    "delete",
    "delete-done",
    "swap",  # before the local copy of the catalogue is replaced
    "swap-done",
)


def no_fault(step: str, key: str) -> None:
    """Let every step pass."""
