"""Disks that lack links, locks or room: either it works there, or the error says what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import StoreUnavailableError
from cones_registry.store import KeyExistsError, local, open_store
from cones_registry.store.locks import FileLock

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
MASK = ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(9, dtype=np.int32)})


def refusing(number: int) -> Any:
    """A system call that this disk does not have."""

    def call(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


NO_LINKS = pytest.mark.parametrize(
    "number",
    [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL],
    ids=errno.errorcode.get,
)


@NO_LINKS
def test_a_registry_is_kept_on_a_disk_without_hard_links(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    with Registry.create(tmp_path / "registry", cache=tmp_path / "cache") as registry:
        registry.push("alice/dog", MASK, scope="prompt")
    with Registry.open(tmp_path / "registry", cache=tmp_path / "other") as registry:
        assert registry.pull("alice/dog:1") == MASK
    assert not list((tmp_path / "registry" / ".unfinished").iterdir())


def test_of_many_writers_without_hard_links_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))

    def write(number: int) -> bool:
        try:
            open_store(tmp_path).put_new("names/dog/1", b"%d" % number * 1000)
        except KeyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert open_store(tmp_path).get("names/dog/1") == b"%d" % won.index(True) * 1000


def test_a_disk_that_cannot_create_exclusively_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(local, "rename_to_new", refusing(errno.EINVAL))
    with pytest.raises(StoreUnavailableError, match="Choose a folder on another disk"):
        Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves no room beside it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return path


def test_a_registry_on_a_full_disk_says_so_and_works_again_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    with Registry.create(small_disk / "registry", cache=tmp_path / "cache") as registry:
        registry.push("alice/dog", MASK, scope="prompt")
        filler = fill(small_disk)
        other = ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(3, dtype=np.int32)})
        with pytest.raises(StoreUnavailableError, match="no room is left"):
            registry.push("alice/dog", other, scope="prompt")
        filler.unlink()
        assert registry.push("alice/dog", other, scope="prompt").name == "dog"
        assert registry.check(read_data=True).ok


def test_a_full_cache_disk_is_named_with_the_way_out(small_disk: Path, tmp_path: Path) -> None:
    with Registry.create(tmp_path / "registry", cache=tmp_path / "cache") as registry:
        registry.push("alice/dog", MASK, scope="prompt")
    with Registry.open(tmp_path / "registry", cache=small_disk / "cache") as other:
        filler = fill(small_disk)
        assert other.pull("alice/dog:1") == MASK  # which needs no cache
        with pytest.raises(StoreUnavailableError, match="CONES_CACHE"):
            other.sync()
        filler.unlink()
        assert [concept.ref for concept in other.find()] == ["alice/dog:1"]


@pytest.mark.parametrize(
    "number",
    [errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.ENOLCK, errno.EPERM],
    ids=errno.errorcode.get,
)
def test_a_disk_that_knows_no_locks_is_told_at_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    monkeypatch.setattr(time, "sleep", refusing(number))  # nobody waits
    lock = FileLock(tmp_path / "lock")
    assert not lock.acquire(600)
    assert not lock.held
    lock.release()


def test_a_lock_is_waited_for_and_is_free_when_its_holder_dies(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from cones_registry.store.locks import FileLock; "
        "lock = FileLock(pathlib.Path(sys.argv[1])); assert lock.acquire(0); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        lock = FileLock(tmp_path / "lock")
        assert not lock.acquire(0.1)
        holder.kill()
        assert lock.acquire(60)
    assert lock.held
    assert not FileLock(tmp_path / "lock").acquire(0)
    lock.release()
    assert FileLock(tmp_path / "lock").acquire(0)
