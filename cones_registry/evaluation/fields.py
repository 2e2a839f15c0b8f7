"""Reading the JSON files of an evaluation, with reasons that say what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError

Value = TypeVar("Value")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; NotFoundError or CorruptDataError where there is none."""
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"no file {path}. Name one that `cones evaluate` reads or wrote"
        ) from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path} is no text file") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CorruptDataError(f"{path} holds {quote(content)}, expected a JSON object")
    return content


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)


def require_format(content: Mapping[str, Any], form: str, path: Path) -> None:
    """Raise CorruptDataError unless the file says that it is of this format."""
    if content.get("format") != form:
        raise CorruptDataError(
            f"{path} has format {quote(content.get('format'))}, expected {quote(form)}"
        )


def only(content: Mapping[str, Any], what: str, *allowed: str) -> None:
    """Raise UsageError for a key that means nothing."""
    for key in content:
        if key not in allowed:
            raise UsageError(
                f"{what} has the unknown field {quote(key)}. Expected {', '.join(allowed)}"
            )


def field(content: Mapping[str, Any], name: str, kind: type[Value], default: Value) -> Value:
    """A value of one type, or the default; UsageError for another type."""
    value = content.get(name, default)
    if isinstance(value, bool) and kind is not bool:
        raise UsageError(f"{name} is {quote(value)}, expected {kind.__name__}")
    if kind is float and isinstance(value, int):
        return kind(value)  # type: ignore[call-arg]
    if not isinstance(value, kind):
        raise UsageError(f"{name} is {quote(value)}, expected {kind.__name__}")
    return value


def mapping_of(
    content: Mapping[str, Any], name: str, make: Callable[[str, Any], Value]
) -> dict[str, Value]:
    """The object under ``name``, each value made by ``make(key, value)``."""
    return {
        str(key): make(str(key), value) for key, value in field(content, name, dict, {}).items()
    }
