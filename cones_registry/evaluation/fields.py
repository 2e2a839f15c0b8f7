"""Reading the JSON files of an evaluation, with reasons that say what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from cones_registry.digest import quote
from cones_registry.errors import (
    CorruptDataError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)

Value = TypeVar("Value")
Default = TypeVar("Default")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises what ``read_json`` does, CorruptDataError for no object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CorruptDataError(f"{path} holds {quote(content)}, expected a JSON object")
    return content


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises NotFoundError, StoreUnavailableError (it may not be read) and CorruptDataError (no JSON,
    numbers or characters that JSON text cannot hold).
    """
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"no file {path}. Name one that `cones evaluate` reads or wrote"
        ) from error
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path} is no text file") from error
    except OSError as error:
        raise StoreUnavailableError(
            f"cannot read {path}: {error.strerror}. Give yourself the right to read it"
        ) from error
    try:
        content = json.loads(text, parse_constant=_no_constant)
        json.dumps(content, ensure_ascii=False).encode()  # half a character has no bytes
    except UnicodeEncodeError as error:
        raise CorruptDataError(
            f"{path} holds half a character, {error.object[error.start : error.end]!r}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not JSON: {error}") from error
    return content


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all; StoreUnavailableError if it cannot be written."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; StoreUnavailableError if it cannot be written."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreUnavailableError(
            f"cannot write {path}: {error.strerror}. Name another place"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; StoreUnavailableError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(
            f"cannot make the folder {folder}: {error.strerror}. Name another place"
        ) from error


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
    return _typed(content.get(name, default), name, kind)


def needed(content: Mapping[str, Any], name: str, kind: type[Value]) -> Value:
    """A value of one type; UsageError for another type or none."""
    if name not in content:
        raise UsageError(f"no {name}, expected {kind.__name__}")
    return _typed(content[name], name, kind)


def optional(content: Mapping[str, Any], name: str, kind: type[Value]) -> Value | None:
    """A value of one type; None if there is none or it is null; UsageError for another type."""
    return None if content.get(name) is None else needed(content, name, kind)


def whole(
    content: Mapping[str, Any], name: str, low: int, high: int, default: Default
) -> int | Default:
    """A whole number from ``low`` to ``high``, or the default; UsageError for anything else."""
    if name not in content:
        return default
    value = needed(content, name, int)
    if not low <= value <= high:
        raise UsageError(f"{name} is {quote(value)}, expected a whole number {low} … {high}")
    return value


def number(content: Mapping[str, Any], name: str, low: float, below: float) -> float | None:
    """A number from ``low`` below ``below``, or None; UsageError for anything else."""
    if name not in content:
        return None
    value = needed(content, name, float)
    if not low <= value < below:
        raise UsageError(f"{name} is {quote(value)}, expected {low} or more, below {below}")
    return value


def choice(content: Mapping[str, Any], name: str, choices: tuple[Value, ...]) -> Value | None:
    """One of the choices, or None; UsageError for anything else."""
    if name not in content:
        return None
    for each in choices:
        if each == content[name]:
            return each
    known = ", ".join(map(str, choices))
    raise UsageError(f"{name} is {quote(content[name])}, expected one of {known}")


def objects(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects under ``name``."""
    return [_typed(each, f"one of {name}", dict) for each in needed(content, name, list)]


def texts(content: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The list of texts under ``name``, none of them twice."""
    found = tuple(_typed(each, f"one of {name}", str) for each in needed(content, name, list))
    if len(set(found)) < len(found):
        raise UsageError(f"{name} {quote(list(found))} names one thing twice")
    return found


def mapping_of(
    content: Mapping[str, Any], name: str, make: Callable[[str, Any], Value]
) -> dict[str, Value]:
    """The object under ``name``, each value made by ``make(key, value)``."""
    return {
        str(key): make(str(key), value) for key, value in field(content, name, dict, {}).items()
    }


def _typed(value: Any, name: str, kind: type[Value]) -> Value:
    """The value, if it is of this type: true is no number, every number is finite."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return kind(value)  # type: ignore[call-arg]
        except OverflowError:
            value = math.inf
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not right or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(f"{name} is {quote(value)}, expected {kind.__name__}")
    return cast("Value", value)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
