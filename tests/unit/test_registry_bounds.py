"""What strangers hand in takes no more memory than a multiple of its own size."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog.documents import count_values
from cones_registry.catalog.segments import FORMAT
from cones_registry.digest import sha256_bytes

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
MASK = ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(9, dtype=np.int32)})
MOST = 200 * 2**20
"""Bytes by which a process may grow while it refuses what it is given."""

WATCHED = """
import resource, sys
from pathlib import Path
from cones_registry import Registry
from cones_registry.errors import ConesError

folder = Path(sys.argv[1])
registry = Registry.open(folder / "registry", cache=folder / "other")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    registry.import_archive(sys.argv[2]) if len(sys.argv) > 2 else registry.find()
except ConesError as error:
    print(type(error).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def watched(tmp_path: Path, *archive: Path) -> tuple[str, int]:
    """(how it was refused, bytes by which the process grew) of an import or a listing."""
    command = [sys.executable, "-c", WATCHED, str(tmp_path), *map(str, archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, grown = done.stdout.split()
    return said, int(grown)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    registry.push("alice/dog", MASK, scope="prompt")
    return registry


@pytest.mark.parametrize("member", ["cones-archive.json", "masks/x.parquet"])
def test_an_archive_that_unpacks_to_a_gigabyte_is_refused_in_little_memory(
    registry: Registry, tmp_path: Path, member: str
) -> None:
    bomb = tmp_path / "bomb.tar.zst"
    with (
        bomb.open("wb") as file,
        zstandard.ZstdCompressor(1).stream_writer(file, closefd=False) as packed,
    ):
        header = tarfile.TarInfo(member)
        header.size = 1 << 30
        packed.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(1 << 10):
            packed.write(bytes(1 << 20))
    said, grown = watched(tmp_path, bomb)
    assert said == "CorruptDataError"
    assert grown < MOST


def segment(folder: Path, content: bytes) -> None:
    """A commit of somebody who can write into the registry."""
    data = zstandard.ZstdCompressor(level=1).compress(content)
    digest = sha256_bytes(data).removeprefix("sha256:")
    (folder / "registry" / "log" / f"01KAGZ4Q2V7M8X3T5R9W1Y6B0C.{digest}.json.zst").write_bytes(
        data
    )


@pytest.mark.parametrize("piece", [b"{}", b"0"])
def test_a_commit_of_nothing_a_million_times_is_refused_in_little_memory(
    registry: Registry, tmp_path: Path, piece: bytes
) -> None:
    head = json.dumps({"format": FORMAT, "actor": "eve", "verb": "", "events": [0]}).encode()
    segment(tmp_path, head.replace(b"[0]", b"[" + b",".join([piece] * 9_000_000) + b"]"))
    said, grown = watched(tmp_path)
    assert said == "CorruptDataError"
    assert grown < MOST


def test_commas_in_a_note_are_no_values(registry: Registry) -> None:
    assert count_values(b'["' + b"," * 99 + b'\\"{[", 1]', 50) == 2
    assert registry.push("alice/dog", MASK, note="," * 100_000, scope="prompt").version == 2
    assert len(registry.find()) == 2


def test_a_handle_that_only_pushes_remembers_a_bounded_number_of_commits(
    registry: Registry,
) -> None:
    session = registry._session
    held = session._syncer._own
    for _ in range(3000):
        session._syncer.remember(session.segment([], verb=""))
    assert len(held) <= 1000
    assert len(registry.find()) == 1


def test_a_members_size_is_bounded_by_what_its_archive_weighs(tmp_path: Path) -> None:
    from cones_registry.errors import CorruptDataError
    from cones_registry.registry.archive_members import read_members

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:") as archive:
        info = tarfile.TarInfo("x")
        info.size = 1 << 20
        archive.addfile(info, io.BytesIO(bytes(1 << 20)))
    path = tmp_path / "a.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(plain.getvalue()))
    with pytest.raises(CorruptDataError, match="too large"):
        list(read_members(path))
