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

SEEDS = int(os.environ.get("CONES_SEEDS", "20"))
"""How many of each profile; `tools/soak --simulate 0 1000` runs a thousand."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the cache folders of the machines are made."""
    folder = search.scratch()
    yield folder
    folder.rmdir()


@pytest.mark.parametrize("profile", search.PROFILES)
def test_random_runs_keep_the_rules(profile: str, folder: Path) -> None:
    for seed in range(SEEDS):
        found = search.run(profile, seed, folder).model.findings
        assert not found, f"tests/simulation/search.py {profile} {seed}: {found}"


def test_a_seed_gives_the_same_run_on_sqlite_and_on_duckdb() -> None:
    """In other processes, which order sets of texts otherwise."""
    traces = set()
    for settings in (
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "2", "CONES_SIMULATE_DUCKDB": "1"},
    ):
        done = subprocess.run(
            [sys.executable, search.__file__, "faults", "1", "--trace"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        )
        # Without names of objects and the time it took: DuckDB draws a name of its own.
        traces.add(tuple(line.partition("/")[0] for line in done.stdout.splitlines()[:-1]))
    (trace,) = traces
    assert len(trace) > 100
