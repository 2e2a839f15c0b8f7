"""A store is tried before a registry is made on it, and nothing of the trial stays."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import fsspec
import pytest

from cones_registry import Registry, cli
from cones_registry.errors import NotFoundError
from cones_registry.store import Entry, Store, open_store
from cones_registry.store import probe as probing
from cones_registry.store.probe import Finding, probe
from cones_registry.store.remote import MemoryStore


class Overwriting(MemoryStore):
    """As an S3 service that does not know If-None-Match."""

    def _create(self, key: str, data: bytes) -> None:
        self.filesystem.pipe_file(self._path(key), data)


class Lagging(MemoryStore):
    """Its listings lack what is new."""

    def _list(self, prefix: str) -> list[Entry]:
        return []


def memory(kind: type[MemoryStore]) -> MemoryStore:
    name = uuid.uuid4().hex
    return kind(f"memory://{name}", fsspec.filesystem("memory"), f"/{name}")


def found(store: Store) -> dict[str, Finding]:
    return {each.what: each for each in probe(store)}


def test_a_good_store_is_said_to_be_good_and_left_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path / "place")
    findings = probe(store)
    assert [(each.what, each.ok) for each in findings] == [
        ("conditional create", True),
        ("listing", True),
        ("clock", True),
    ]
    assert store.list("") == []
    assert not (tmp_path / "place" / "probe").exists()


def test_a_store_that_overwrites_is_found_out() -> None:
    finding = found(memory(Overwriting))["conditional create"]
    assert finding.ok is False
    assert "two writers" in finding.said


def test_a_store_whose_listings_lag_is_found_out() -> None:
    assert found(memory(Lagging))["listing"].ok is False


def test_a_clock_that_is_far_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = probing.time.time()
    monkeypatch.setattr(probing.time, "time", lambda: now - 7200)
    finding = found(open_store(tmp_path / "place"))["clock"]
    assert finding.ok is False
    assert "behind the store's" in finding.said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_who_may_not_write_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir(mode=0o500)
    assert found(open_store(tmp_path / "place"))["conditional create"].ok is None


def test_init_and_doctor_say_what_the_store_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["init", "concepts"]) == 0
    assert "conditional create: refused when there" in capsys.readouterr().err
    assert cli.run(["-r", "concepts", "doctor", "--json"]) == 0
    store = json.loads(capsys.readouterr().out)["registry"]["store"]
    assert {each["what"]: each["ok"] for each in store}["listing"] is True
    assert cli.run(["-r", "concepts", "doctor"]) == 0
    assert "its clock" in capsys.readouterr().out
    left = [each.name for each in Path("concepts").iterdir() if not each.name.startswith(".")]
    assert left == ["cones.json"]


def test_no_registry_is_made_on_a_store_that_overwrites(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = memory(Overwriting)
    monkeypatch.setattr("cones_registry.store.open_store", lambda url, **_: store)
    assert cli.run(["init", store.url]) == 14
    assert "two writers" in capsys.readouterr().err
    with pytest.raises(NotFoundError):
        Registry.open(store)
