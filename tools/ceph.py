"""A Ceph cluster of one machine on loopback, in memory: monitor, manager, one OSD, S3 gateway.

The programs are Debian's: `apt-get install radosgw ceph-mon ceph-osd ceph-mgr`. Everything else
lives in one folder and ends with the block.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin")
START_SECONDS = 180
CONFIGURATION = """\
[global]
fsid = {cluster}
mon host = v2:127.0.0.1:{monitor}/0
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = 4294967296
keyring = {folder}/keyring
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
"""
KEYS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "mgr.x": {"mon": "allow profile mgr", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"},
    "client.gateway": {"mon": "allow rw", "osd": "allow rwx", "mgr": "allow rw"},
}


def require_programs() -> None:
    """End with what to do, where a program is missing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        sys.exit(
            f"{', '.join(missing)}: not here. To have Ceph on Debian or Ubuntu: "
            "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr"
        )


def version() -> str:
    """As `ceph --version` says it."""
    return subprocess.run(["ceph", "--version"], capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[dict[str, Any]]:
    """Storage options of an S3 gateway that runs until the block ends."""
    monitor, port, cluster, osd = free_port(), free_port(), str(uuid.uuid4()), str(uuid.uuid4())
    (folder / "ceph.conf").write_text(
        CONFIGURATION.format(cluster=cluster, monitor=monitor, folder=folder), encoding="ascii"
    )

    def call(*command: str, text: str | None = None) -> str:
        run = subprocess.run(
            command, cwd=folder, env=environment, input=text, capture_output=True, text=True
        )
        if run.returncode:
            sys.exit(f"{' '.join(command)} failed: {run.stderr[-2000:]}")
        return run.stdout

    environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}
    for name in ("mon", "mgr", "osd"):
        (folder / name).mkdir()
    call("ceph-authtool", "--create-keyring", "keyring")
    for name, caps in KEYS.items():
        pairs = [part for cap in caps.items() for part in ("--cap", *cap)]
        call("ceph-authtool", "keyring", "--gen-key", "-n", name, *pairs)
    address = f"[v2:127.0.0.1:{monitor}]"
    call("monmaptool", "--create", "--addv", "a", address, "--fsid", cluster, "monmap")
    call("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
    with contextlib.ExitStack() as daemons:

        def start(*command: str) -> None:
            daemons.enter_context(daemon([*command, "-f"], folder, environment))

        start("ceph-mon", "-i", "a")
        call("ceph", "--connect-timeout", str(START_SECONDS), "auth", "import", "-i", "keyring")
        start("ceph-mgr", "-i", "x")
        secret = call("ceph-authtool", "keyring", "-n", "osd.0", "-p").strip()
        call("ceph", "osd", "new", osd, "-i", "-", text=json.dumps({"cephx_secret": secret}))
        call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        beast = f"beast endpoint=127.0.0.1:{port} tcp_nodelay=1"
        start("radosgw", "-n", "client.gateway", "--rgw-frontends", beast)
        user = ("--uid=test", "--display-name=test", "--access-key=test", "--secret=test-secret")
        call("radosgw-admin", "user", "create", *user)
        await_port(port)
        yield {
            "key": "test",
            "secret": "test-secret",
            "endpoint_url": f"http://127.0.0.1:{port}",
            "client_kwargs": {"region_name": "default"},
        }


@contextlib.contextmanager
def daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run one of Ceph's programs until the block ends."""
    with (folder / f"{command[0]}.out").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def await_port(port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    sys.exit(f"the S3 gateway of Ceph did not listen within {START_SECONDS} s")
