"""`tools/reproduce --quick`: every row is learnt, drawn and scored, and the report is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_whole_table_is_made_and_a_second_run_draws_nothing(tmp_path: Path) -> None:
    def run() -> str:
        done = subprocess.run(
            [sys.executable, "tools/reproduction.py", "--quick", "--work", str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "CONES_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "learning buoy-gates-subject" in run()
    (folder,) = tmp_path.glob("quick-*")
    table = json.loads((folder / "table.json").read_text("utf-8"))
    assert len(table["rows"]) == 15 and table["columns"] == [1, 2, 3, 4]
    assert "What was to be shown" in (folder / "table.md").read_text("utf-8")
    pictures = {file: file.stat().st_mtime_ns for file in folder.glob("rows/*/pictures/*.png")}
    assert "learning" not in run()
    world = folder / "rows" / "real-renders"
    for file, stamp in pictures.items():
        assert file.stat().st_mtime_ns == stamp or world in file.parents
