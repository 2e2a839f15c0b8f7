"""A batch run killed with SIGKILL, started again: whole pictures only, the same bytes."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from cones_registry.batch import Compositions, LocalEngine, run_batch

JOBS = "\n".join(
    json.dumps({"prompt": f"the {word} circle", "count": 4, "steps": 12})
    for word in ("red", "green", "blue")
)
RUN = """
import sys
from cones_registry.batch import Compositions, LocalEngine, run_batch
jobs, out, base = sys.argv[1:]
compositions = Compositions(None)
engine = LocalEngine(compositions)
run_batch(
    jobs, out, engine=engine, base=base, compositions=compositions, device="cpu", batch_size=1
)
"""


def pictures(out: Path) -> dict[str, bytes]:
    folder = out / "pictures"
    found = folder.glob("*.png") if folder.is_dir() else ()
    return {path.name: path.read_bytes() for path in found}


def test_killed_run_continues_to_the_same_bytes(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    base, killed, whole = str(tiny_pipeline_folder), tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, JOBS, str(killed), base],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    while len(pictures(killed)) < 3:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = pictures(killed)
    assert 3 <= len(before) < 12
    for data in before.values():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    compositions = Compositions(None)
    reports = [
        run_batch(
            JOBS,
            out,
            engine=LocalEngine(compositions),
            base=base,
            compositions=compositions,
            device="cpu",
            batch_size=1,
        )
        for out in (killed, whole)
    ]
    assert [report.kept for report in reports] == [len(before), 0]
    assert reports[0].made == 12 - len(before)
    assert pictures(killed) == pictures(whole)
