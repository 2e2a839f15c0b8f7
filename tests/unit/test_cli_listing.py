"""Every verb that lists writes a table, JSON, CSV or names alone; the shell completes verbs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry, cli

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


@pytest.fixture
def cones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONES_REGISTRY", str(tmp_path / "registry"))
    registry = Registry.create(tmp_path / "registry")
    pushes = []
    for number, name in enumerate(("alice/dog", "alice/wolf")):
        indices = np.arange(20 + number, dtype=np.int32)
        mask = ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})
        pushes.append((name, mask, {"scope": "prompt"}))
    registry.push_many(pushes)
    registry.set_quota("alice", concepts=5)

    def call(*arguments: str) -> str:
        assert cli.run(arguments) == 0
        return capsys.readouterr().out

    return call


LISTS = {
    "list": (("list", "--sort", "name:asc"), ["alice/dog:1", "alice/wolf:1"]),
    "query": (("query", "select ref, density from concepts order by ref"), None),
    "similar": (("similar", "alice/dog"), ["alice/wolf:1"]),
    "quota": (("quota",), ["alice"]),
    "log": (("log",), ["alice", "alice/wolf:1", "alice/dog:1"]),
    "cache": (("cache", "ls"), []),
}


@pytest.mark.parametrize("verb", LISTS)
def test_a_list_is_written_in_every_form(verb: str, cones: Callable[..., str]) -> None:
    arguments, names = LISTS[verb]
    names = ["alice/dog:1", "alice/wolf:1"] if names is None else names
    assert cones(*arguments, "--format", "quiet").split() == names
    document = json.loads(cones(*arguments, "--format", "json"))
    assert document == json.loads(cones(*arguments, "--json"))
    assert len(document) == len(names)
    rows = list(csv.reader(io.StringIO(cones(*arguments, "--format", "csv"))))
    assert len(rows) == len(names) + 1
    assert len({len(row) for row in rows}) == 1
    assert len(set(rows[0])) == len(rows[0])
    assert cones(*arguments) == cones(*arguments, "--format", "table")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_told_how_to_complete(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cones_registry.cli"],
        env={**os.environ, "_CONES_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    if shell == "bash" and "not supported" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "_CONES_COMPLETE" in done.stdout


def test_verbs_are_completed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cones_registry.cli"],
        env={
            **os.environ,
            "_CONES_COMPLETE": "bash_complete",
            "COMP_WORDS": "cones sy",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["plain,sync"]
