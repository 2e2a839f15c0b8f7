"""SIGSTOP in the midst of an operation, hours in which others work, SIGCONT: nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("pause_driver.py")


def look(tmp_path: Path, operation: str, where: str, length: str) -> list[list[str]]:
    """Stop an operation, and say at which steps that was; every rule must hold afterwards."""
    run = subprocess.run(
        [sys.executable, str(DRIVER), operation, str(tmp_path), where, length],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    wrong = [line for line in lines if line["problems"]]
    assert not wrong, wrong
    return [line["at"] for line in lines]


@pytest.mark.parametrize(
    ("operation", "where", "length"),
    [
        ("push", "put:log/", "days"),
        ("compact", "put:catalog/", "hour"),
        ("prune", "put:log/", "hour"),
        ("purge", "delete:versions/", "days"),
    ],
)
def test_who_stood_still_at_the_worst_moment_breaks_nothing(
    operation: str, where: str, length: str, tmp_path: Path
) -> None:
    assert len(look(tmp_path, operation, where, length)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("length", ["hour", "days"])
@pytest.mark.parametrize(
    "operation", ["push", "push_key", "push_many", "alias", "compact", "prune", "purge"]
)
def test_who_stood_still_at_any_step_breaks_nothing(
    operation: str, length: str, tmp_path: Path
) -> None:
    assert len(look(tmp_path, operation, "all", length)) >= 5
