"""An S3 server on loopback for benchmarks and the soak: MiniStack on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_SECONDS = 120


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[dict[str, Any]]:
    """Storage options of a server that runs until the block ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with (folder / "ministack.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hypercorn", "ministack.app:app", "--bind", f"127.0.0.1:{port}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), "GATEWAY_PORT": str(port)},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"MiniStack did not start; see {folder}/ministack.log")
            time.sleep(0.1)
        yield {
            "key": "test",
            "secret": "test",
            "endpoint_url": f"http://127.0.0.1:{port}",
            "client_kwargs": {"region_name": "eu-central-1"},
        }
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make_bucket(options: dict[str, Any]) -> str:
    """A new bucket's name, made by a process of its own: no client thread stays in this one."""
    name = f"cones-{uuid.uuid4().hex[:12]}"
    code = "import json, s3fs, sys; s3fs.S3FileSystem(**json.loads(sys.argv[1])).mkdir(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, json.dumps(options), name], check=True)
    return name
