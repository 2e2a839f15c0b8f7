"""schema/: each JSON Schema is one, the examples keep to them, the counter-examples do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "schema"
SCHEMAS = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text("utf-8"))
    for path in FOLDER.glob("*.schema.json")
}
FENCE = re.compile(r"^```json(?: +(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def schema_of(path: Path) -> Any:
    """The schema whose name the file's name begins with; the longest, where several do."""
    fitting = [name for name in SCHEMAS if path.name.startswith(name)]
    return SCHEMAS[max(fitting, key=len)] if fitting else None


def values(path: Path) -> list[Any]:
    text = path.read_text("utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return [json.loads(text)]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_is_a_json_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("examples/*.json*")), ids=lambda path: path.name
)
def test_every_example_keeps_to_its_schema(path: Path) -> None:
    schema = schema_of(path)
    assert schema is not None, f"no schema in {FOLDER} has a name that {path.name} begins with"
    for value in values(path):
        jsonschema.Draft202012Validator(schema).validate(value)


def test_the_examples_in_the_pages_keep_to_the_schema_they_name() -> None:
    for page in FOLDER.glob("*.md"):
        for name, text in FENCE.findall(page.read_text("utf-8")):
            value = json.loads(text)
            if name:
                jsonschema.Draft202012Validator(SCHEMAS[name]).validate(value)


def test_every_page_is_reached_from_the_first() -> None:
    first = (FOLDER / "README.md").read_text("utf-8")
    for page in FOLDER.glob("*.md"):
        assert page.name == "README.md" or f"({page.name}" in first, page.name
