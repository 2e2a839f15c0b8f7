"""SIGKILL at every step of every operation: acknowledged is found, and no half commit is seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("crash_driver.py")
# Fewest steps each must have, so that a fault hook that is never called cannot pass for safety.
LEAST_STEPS = {
    "push": 12,
    "push_key": 14,
    "push_many": 20,
    "alias": 8,
    "compact": 16,
    "prune": 10,
    "purge": 30,
    "sync": 20,
}


@pytest.mark.slow
@pytest.mark.parametrize("operation", sorted(LEAST_STEPS))
def test_a_kill_at_any_step_breaks_nothing(operation: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(DRIVER), operation, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    wrong = [line for line in lines if line.get("problems")]
    assert not wrong, wrong
    assert lines[-1]["steps"] >= LEAST_STEPS[operation]
