"""Keys: names of objects below a store's URL, `/` between their parts."""

from cones_registry.digest import quote
from cones_registry.errors import UsageError


def check_key(key: str) -> None:
    """`UsageError` unless every part of the key is a plain name: nothing can leave the URL."""
    parts = key.split("/")
    if (
        not key.isprintable()
        or "\\" in key
        or len(key) > 900
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise UsageError(f"{quote(key)} is not a key; expected plain names with '/' between")
