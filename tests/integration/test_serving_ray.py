"""The service on a Ray cluster of its own, a replica of it killed while many wait."""

import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from running_service import CONCEPTS, make_registry, recipe_of, start

from cones_registry import BaseModel

psutil = pytest.importorskip("psutil")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

pytestmark = pytest.mark.slow
CLIENTS = 8
REQUESTS = 5
TOKEN = "a-token-of-the-tests-0123456789"
NAMES = tuple(CONCEPTS)


def replicas_of(process: int) -> list[int]:
    """Process ids of the replicas of a service."""
    below = psutil.Process(process).children(recursive=True)
    return [each.pid for each in below if "ServeReplica" in "".join(each.cmdline())]


def test_a_killed_replica_loses_no_request_and_mixes_up_no_pictures(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    registry = make_registry(tmp_path / "registry", BaseModel.load(tiny_pipeline_folder))
    outside = {name: "" for name in os.environ if name.startswith("RAY_")}
    logs = tempfile.TemporaryDirectory(prefix="ray")  # its sockets bear no long names
    outside |= {"RAY_TMPDIR": logs.name, "CONES_SERVE_TOKEN": f"ann:{TOKEN}"}
    service = start(
        registry, str(tiny_pipeline_folder), "--engine", "ray", "--replicas", "2",
        "--cpus", "0.5", "--device", "cpu", **outside,
    )  # fmt: skip
    answers: dict[tuple[int, int], Any] = {}

    def ask(number: int) -> None:
        with service.client(headers={"authorization": f"Bearer {TOKEN}"}) as client:
            for turn in range(REQUESTS):
                seed = 100 * number + turn
                name = NAMES[seed % len(NAMES)]
                body = {"prompt": f"a photo of <{name}> on the wall", "seed": seed, "steps": 8}
                answers[number, turn] = client.post("/v1/images/generations", json=body)

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    while len(answers) < CLIENTS:
        time.sleep(0.02)
    before = replicas_of(service.process.pid)
    os.kill(before[0], signal.SIGKILL)
    for client in clients:
        client.join()
    assert len(before) == 2 and len(answers) == CLIENTS * REQUESTS

    refused = 0
    for (number, turn), answer in answers.items():
        seed = 100 * number + turn
        if answer.status_code >= 500:
            refused += 1
            continue
        assert answer.status_code == 200, answer.text
        recipe = recipe_of(answer.json()["data"][0]["b64_json"])
        (concept,) = recipe["concepts"]
        assert (recipe["seed"], concept["ref"]) == (seed, f"{NAMES[seed % len(NAMES)]}:1")
        assert recipe["prompt"] == f"a photo of <{NAMES[seed % len(NAMES)]}> on the wall"
    # Those that the killed replica was drawing, and none besides.
    assert refused <= CLIENTS

    for _ in range(600):
        if len(replicas_of(service.process.pid)) == 2:
            break
        time.sleep(0.1)
    after = replicas_of(service.process.pid)
    assert len(after) == 2 and before[0] not in after
    assert service.stop() == 0
    assert not psutil.pid_exists(after[0])

    with logs:
        files = [path for path in Path(logs.name).rglob("*") if path.is_file()]
        assert any(path.name.startswith("raylet") for path in files)
        assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
