"""Credentials reach the workers of a run on Ray and stand in no file of Ray's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

from cones_registry import Registry
from cones_registry.batch.ray_engine import OPEN_VARIABLES, _Secret

RUN = """
import os
import ray
from cones_registry.batch.engine import EngineSettings
from cones_registry.batch.ray_engine import RayEngine

os.environ["AWS_SECRET_ACCESS_KEY"] = "TOPSECRET-one"
engine = RayEngine(cpus=0.5, storage_options={"key": "TOPSECRET-two", "auto_mkdir": True})
registry = os.environ.pop("WHERE")
engine.start(EngineSettings(os.environ["BASE"], registry, device="cpu"))
(actor,) = engine._actors
told = ray.get(actor.__ray_call__.remote(lambda worker: dict(os.environ)))
assert told["AWS_SECRET_ACCESS_KEY"] == "TOPSECRET-one"
assert "TOPSECRET-two" in told["CONES_STORAGE_OPTIONS"]
assert told["CONES_REGISTRY"] == registry
print(ray._private.worker._global_node.get_session_dir_path())
engine.stop()
"""


def test_a_secret_prints_no_value() -> None:
    secret = _Secret({"AWS_SECRET_ACCESS_KEY": "TOPSECRET"})
    assert "TOPSECRET" not in f"{secret!r} {secret} {[secret]}"


def test_what_stands_in_the_open_is_no_secret() -> None:
    for word in ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "CONNECTION", "SAS"):
        assert not [name for name in OPEN_VARIABLES if word in name]


@pytest.mark.slow
def test_no_log_of_ray_holds_a_credential(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    registry = tmp_path / "TOPSECRET-three"
    Registry.create(registry).close()
    environment = {
        **os.environ,
        "RAY_BACKEND_LOG_LEVEL": "debug",
        "BASE": str(tiny_pipeline_folder),
        "WHERE": str(registry),
    }
    # On stdin: Ray tells in its logs with which arguments the driver was started.
    done = subprocess.run(
        [sys.executable, "-"],
        input=RUN,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    session = Path(done.stdout.splitlines()[-1])
    logs = [file for file in session.rglob("*") if file.is_file() and not file.is_symlink()]
    assert any(file.name.startswith("raylet") for file in logs)
    for file in logs:
        assert b"TOPSECRET" not in file.read_bytes(), file
    assert "TOPSECRET" not in done.stdout.replace(str(session), "") + done.stderr
