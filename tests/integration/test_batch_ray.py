"""The Ray engine on a local cluster: the same pictures, also when an actor is killed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cones_registry.base_model import BaseModel
from cones_registry.batch import (
    Compositions,
    Engine,
    LocalEngine,
    Progress,
    run_batch,
    run_learning,
)
from cones_registry.batch.engine import EngineSettings
from cones_registry.errors import NotFoundError, UsageError
from cones_registry.mask import ConceptMask
from cones_registry.registry import Registry

ray = pytest.importorskip("ray")

from cones_registry.batch.ray_engine import RayEngine, passed_on  # noqa: E402

pytestmark = pytest.mark.slow

OWN_CLUSTER = """
import os, sys
import ray
from cones_registry.batch.engine import EngineSettings
from cones_registry.batch.ray_engine import RayEngine
from cones_registry.errors import UsageError

engine = RayEngine(cpus=0.5)
engine.start(EngineSettings(sys.argv[1], None, device="cpu"))
print(os.nice(0), ray.get(ray.remote(num_cpus=0.5)(lambda: os.nice(0)).remote()))
engine.stop()
crowd = RayEngine(workers=10_000)
try:
    crowd.start(EngineSettings(sys.argv[1], None))
except UsageError as error:
    print(error)
finally:
    crowd.stop()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        _system_config={"worker_niceness": 0},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def registry(
    tiny_base: BaseModel, random_mask: Callable[..., ConceptMask], tmp_path: Path
) -> Iterator[Registry]:
    with Registry.create(tmp_path / "registry", cache=tmp_path / "cache") as registry:
        registry.push(
            "alice/dog",
            random_mask(tiny_base.layer_table),
            base=tiny_base,
            scope="subject",
            token="sks",
            class_noun="dog",
        )
        yield registry


def run(
    engine: Engine, folder: Path, registry: Registry, out: Path, **settings: Any
) -> dict[str, bytes]:
    jobs = [
        {"prompt": "a sks dog on the wall", "concepts": ["alice/dog"], "count": 7, "steps": 3},
        {"prompt": "a red circle", "count": 3, "steps": 3},
    ]
    report = run_batch(
        "\n".join(map(json.dumps, jobs)),
        out,
        engine=engine,
        base=str(folder),
        compositions=Compositions(registry),
        registry=registry.url,
        device="cpu",
        batch_size=2,
        **settings,
    )
    assert report.succeeded
    return {path.name: path.read_bytes() for path in (out / "pictures").iterdir()}


def test_ray_draws_what_the_local_engine_draws_also_when_an_actor_is_killed(
    cluster: None,
    tiny_pipeline_folder: Path,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    local = LocalEngine(Compositions(registry))
    expected = run(local, tiny_pipeline_folder, registry, tmp_path / "local")
    assert len(expected) == 10
    engine = RayEngine(workers=2, cpus=0.5)
    killed: list[Any] = []

    def kill_one(progress: Progress) -> None:
        if progress.done >= 2 and not killed:
            killed.append(next(iter(engine._actors)))
            ray.kill(killed[0])

    drawn = run(engine, tiny_pipeline_folder, registry, tmp_path / "ray", on_progress=kill_one)
    assert killed
    assert drawn == expected


def test_actor_that_cannot_load_the_base_model_says_why(cluster: None, tmp_path: Path) -> None:
    engine = RayEngine(cpus=0.5)
    with pytest.raises(NotFoundError, match="no base model at"):
        engine.start(EngineSettings(str(tmp_path / "absent"), None))


def test_registry_and_credentials_are_passed_on_and_nothing_else() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root", "CONES_REGISTRY": "old"}
    settings = EngineSettings("demo", "s3://bucket/registry")
    assert passed_on(environment, settings) == {
        "AWS_SECRET_ACCESS_KEY": "x",
        "CONES_REGISTRY": "s3://bucket/registry",
    }
    options = {"endpoint_url": "http://127.0.0.1:9000"}
    assert passed_on({}, settings, options) == {
        "CONES_REGISTRY": "s3://bucket/registry",
        "CONES_STORAGE_OPTIONS": '{"endpoint_url": "http://127.0.0.1:9000"}',
    }


def test_ray_learns_what_the_local_engine_learns(
    cluster: None, tiny_pipeline_folder: Path, registry: Registry, tmp_path: Path
) -> None:
    lines = []
    for seed, name in enumerate(("cat", "bear")):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(2):
            values = np.random.default_rng(9 * seed + number).integers(0, 256, (16, 16, 3))
            Image.fromarray(values.astype(np.uint8)).save(folder / f"{number}.png")
        how = {"method": "first-order", "density": 0.05, "steps": 2, "token": "sks"}
        lines.append(json.dumps({"images": str(folder), "class_noun": name, **how}))
    masks = {}
    engines: dict[str, Engine] = {
        "local": LocalEngine(Compositions(None)),
        "ray": RayEngine(workers=2, cpus=0.5),
    }
    for owner, engine in engines.items():
        subjects = "\n".join(
            line.replace("{", f'{{"name": "{owner}/subject{number}", ', 1)
            for number, line in enumerate(lines)
        )
        report = run_learning(
            subjects, tmp_path / owner, registry, engine=engine,
            base=str(tiny_pipeline_folder), device="cpu",
        )  # fmt: skip
        assert report.succeeded, report.failures
        masks[owner] = [registry.get(f"{owner}/subject{number}").mask_digest for number in (0, 1)]
    assert masks["ray"] == masks["local"]


def test_cluster_of_its_own_is_as_urgent_as_the_command_and_refuses_what_has_no_room(
    tiny_pipeline_folder: Path,
) -> None:
    command = [sys.executable, "-c", OWN_CLUSTER, str(tiny_pipeline_folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    urgency, refusal = ended.stdout.splitlines()
    own, of_worker = urgency.split()
    assert own == of_worker
    assert refusal.startswith("10000 workers with 1 CPU each do not fit on this machine")
    assert ended.stderr == ""


def test_no_workers_are_refused() -> None:
    with pytest.raises(UsageError):
        RayEngine(workers=0)
