"""Runs of `cones batch` on the service's pages, as they go on."""

import json
import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from cones_registry.batch import Compositions, LocalEngine, run_batch
from cones_registry.generation import read_recipe
from cones_registry.serving.application import create_app
from cones_registry.serving.service import Service
from cones_registry.serving.settings import ServiceSettings


def test_runs_are_shown_as_far_as_they_are_and_one_that_is_gone_hides_no_other(
    tiny_base: Any, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    compositions = Compositions(None)
    job = {"prompt": "a red circle", "count": 3, "steps": 1}
    report = run_batch(
        json.dumps(job), tmp_path / "run", engine=LocalEngine(compositions),
        base=str(tiny_pipeline_folder), compositions=compositions, device="cpu",
    )  # fmt: skip
    assert report.succeeded
    next((tmp_path / "run" / "pictures").iterdir()).unlink()
    (tmp_path / "secret.png").write_bytes(b"of somebody else")
    service = Service(tiny_base, None, ServiceSettings(hosts=frozenset({"testserver"})))
    runs = (str(tmp_path / "run"), str(tmp_path / "absent"))
    with TestClient(create_app(service, batches=runs)) as client:
        page = client.get("/batches").text
        assert "2 of 3 pictures" in page and "no run of cones batch is at" in page
        sources = re.findall(r'src="(/batches/0/[^"]+)"', page)
        assert len(sources) == 2
        assert read_recipe(client.get(sources[0]).content)["prompt"] == "a red circle"
        for path in ("/batches/0/..%2F..%2Fsecret.png", "/batches/0/run.json", "/batches/7/x.png"):
            assert client.get(path).status_code == 404
