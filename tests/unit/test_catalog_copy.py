"""The local copy in layers: queries see one catalogue, whatever lies where; it heals."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog import copy, runs
from cones_registry.errors import ConesError, LimitExceededError, UsageError
from cones_registry.store.locks import FileLock

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})


def mask_of(number: int) -> ConceptMask:
    return ConceptMask.from_indices(
        TABLE, {TABLE.names[0]: np.array([number % 20, number % 20 + 20], np.int32)}
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a few lines."""
    monkeypatch.setattr(copy, "NEWS_ROWS", 6)
    monkeypatch.setattr(copy, "SHARE", 2)
    monkeypatch.setattr(runs, "GROUP_ROWS", 4)
    monkeypatch.setattr(runs, "PART_ROWS", 8)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def files(registry: Registry, pattern: str) -> list[Path]:
    return sorted(registry._session.copy.folder.glob(pattern))


def content(registry: Registry) -> tuple[Any, Any]:
    columns = "ref, tags, removed, note"
    return (
        registry.query(f"SELECT {columns} FROM concepts ORDER BY ref").to_pylist(),
        registry.query("SELECT * FROM aliases ORDER BY ALL").to_pylist(),
    )


@pytest.mark.usefixtures("small")
def test_a_copy_in_layers_says_what_a_copy_from_the_store_does(
    registry: Registry, tmp_path: Path
) -> None:
    dice = random.Random(5)
    follower = Registry.open(registry.url, cache=tmp_path / "follower")
    depths = set()
    names = [f"{owner}/c{number}" for owner in "abc" for number in range(6)]
    for step in range(24):
        chosen = dice.sample(names, dice.choice([1, 1, 2, 9]))
        registry.push_many(
            [(name, mask_of(step + n), {"scope": "prompt"}) for n, name in enumerate(chosen)]
        )
        name = dice.choice(chosen)
        registry.tag(name, add=[f"t{step}"])
        registry.alias(name, "prod")
        if step % 4 == 0:
            registry.remove(dice.choice(chosen))
        if step % 6 == 5:
            registry.compact(grace=0)
        if step == 15:
            registry.plan_purge(ref="a/c1").execute()
        if step % 3 == 0:
            follower.sync()
        depths.add(len(registry._session.fresh().layers))
    cold = Registry.open(registry.url, cache=tmp_path / "cold")
    assert content(registry) == content(follower) == content(cold)
    rows, _ = content(registry)
    assert len({row["ref"] for row in rows}) == len(rows)
    assert max(depths) >= 2, "there were layers over layers"
    for path in files(registry, "*"):
        assert not path.name.startswith("building-")
    assert len(files(registry, "layer-*")) == len(registry._session.fresh().layers)
    assert len(files(registry, "state-*")) == 1


@pytest.mark.usefixtures("small")
def test_a_sync_of_one_push_leaves_the_layers_as_they_are(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push_many([(f"a/c{n}", mask_of(n), {"scope": "prompt"}) for n in range(40)])
    registry.sync()
    before = [(path.name, path.stat().st_mtime_ns) for path in files(registry, "layer-*")]
    assert before
    registry.push("a/c7", mask_of(1), scope="prompt")
    registry.tag("a/c8", add=["late"])
    assert registry.get("a/c7").version == 2
    assert registry.get("a/c8").tags == ("late",)
    assert [(p.name, p.stat().st_mtime_ns) for p in files(registry, "layer-*")] == before
    (count,) = registry.query("SELECT count(*) AS n FROM concepts").to_pylist()
    assert count == {"n": 41}


@pytest.mark.usefixtures("small")
def test_no_file_of_the_copy_holds_what_was_purged(registry: Registry) -> None:
    registry.push_many([(f"a/c{n}", mask_of(n), {"scope": "prompt"}) for n in range(20)])
    registry.push("secretive/thing", mask_of(1), note="whisper", scope="prompt")
    registry.push_many([(f"b/c{n}", mask_of(n), {"scope": "prompt"}) for n in range(20)])
    registry.sync()
    assert any(b"secretive" in path.read_bytes() for path in files(registry, "*-*"))
    registry.plan_purge(owner="secretive").execute()
    registry.sync()
    for path in files(registry, "*-*"):
        assert b"secretive" not in path.read_bytes()
        assert b"whisper" not in path.read_bytes()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("pattern", ["layer-*", "state-*", "CURRENT"])
@pytest.mark.parametrize("how", ["cut", "flip", "gone"])
def test_a_damaged_copy_heals(registry: Registry, pattern: str, how: str) -> None:
    registry.push_many([(f"a/c{n}", mask_of(n), {"scope": "prompt"}) for n in range(40)])
    registry.sync()
    registry.close()
    for path in files(registry, pattern):
        data = bytearray(path.read_bytes())
        if how == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif how == "gone":
            path.unlink()
        else:
            for position in range(len(data) // 3, len(data), 97):
                data[position] ^= 255
            path.write_bytes(data)
    for _ in range(3):
        try:
            assert len(registry.find()) == 40
            break
        except ConesError:
            continue
    assert len(registry.find()) == 40


def test_a_builder_that_was_stopped_with_the_lock_blocks_nobody(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "LOCK_SECONDS", 0.2)
    registry.push("a/x", mask_of(1), scope="prompt")
    lock = FileLock(registry._session.copy.folder / "lock")
    assert lock.acquire(0)
    try:
        other = Registry.open(registry.url, cache=tmp_path / "cache")
        other._session.copy._patience = 0.2
        assert len(other.find()) == 1
        start = time.monotonic()
        for number in range(3):
            other.push("a/y", mask_of(number), scope="prompt")
            other.sync()
        assert time.monotonic() - start < 60  # it waits in vain once, not each time
        assert len(other.find()) == 4
    finally:
        lock.release()


def test_a_disk_without_locks_is_done_without(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "acquire", lambda *_: False)
    registry.push("a/x", mask_of(1), scope="prompt")
    assert len(registry.find()) == 1


@pytest.mark.usefixtures("small")
def test_a_handle_can_be_used_after_a_fork(registry: Registry) -> None:
    registry.push_many([(f"a/c{n}", mask_of(n), {"scope": "prompt"}) for n in range(20)])
    assert len(registry.find()) == 20
    child = os.fork()
    if child == 0:
        try:
            registry.push("b/y", mask_of(2), scope="prompt")
            os._exit(0 if len(registry.find()) == 21 else 3)
        except BaseException:
            os._exit(4)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(registry.find()) == 21


@pytest.mark.usefixtures("small")
def test_a_state_that_is_held_can_be_read_while_newer_ones_are_made(registry: Registry) -> None:
    registry.push_many([(f"a/c{n}", mask_of(n), {"scope": "prompt"}) for n in range(20)])
    held = registry._session.fresh()
    for number in range(20):
        registry.push(f"b/c{number}", mask_of(number), scope="prompt")
        registry.sync()
    cursor = held.connection.cursor()
    assert cursor.execute("SELECT count(*) FROM concepts").fetchone() == (20,)
    cursor.close()
    (count,) = registry.query("SELECT count(*) AS n FROM concepts").to_pylist()
    assert count == {"n": 40}


def test_queries_reach_no_file_and_change_nothing(registry: Registry, tmp_path: Path) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for sql in (
        f"SELECT * FROM read_csv('{tmp_path}/secret.csv')",
        f"SELECT * FROM '{tmp_path}/secret.csv'",
        "SELECT * FROM glob('/etc/*')",
        "COPY concepts TO '/tmp/x'",
        "DROP VIEW concepts",
        "ATTACH '/tmp/x.duckdb'",
        "SET memory_limit = '100GB'",
    ):
        with pytest.raises(UsageError):
            registry.query(sql)


def test_what_a_query_spills_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONES_QUERY_MEMORY", "40MB")
    monkeypatch.setenv("CONES_QUERY_SPILL", "20MB")
    registry = Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    registry.push("a/x", mask_of(1), scope="prompt")
    with pytest.raises((LimitExceededError, UsageError)):
        registry.query("SELECT i, md5(i::VARCHAR) AS m FROM range(20000000) r(i) ORDER BY m")
