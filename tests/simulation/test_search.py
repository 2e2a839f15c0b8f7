"""Random runs of several machines keep every rule of the registry; a seed gives the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import search

SEEDS = range(int(os.environ.get("CONES_SEEDS", "1")))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the cache folders of the machines are made."""
    folder = search.scratch()
    yield folder
    folder.rmdir()


@pytest.mark.parametrize("profile", ["calm", "faults", "stale"])
def test_random_runs_keep_the_rules(profile: str, folder: Path) -> None:
    for seed in SEEDS:
        found = search.run(profile, seed, folder).model.findings
        assert not found, f"tests/simulation/search.py {profile} {seed}: {found}"


def test_a_seed_gives_the_same_run(tmp_path: Path) -> None:
    """In other processes, which order sets and dicts of texts otherwise."""
    script = Path(search.__file__)
    runs = {
        subprocess.run(
            [sys.executable, script, "faults", "1", "--trace"],
            env=os.environ | {"PYTHONHASHSEED": number},
            capture_output=True,
            text=True,
            check=True,
        )
        .stdout.rstrip()
        .rpartition("\n")[0]
        for number in ("1", "2")
    }
    (trace,) = runs
    assert trace.count("\n") > 100
