"""One object, one process or one file that is not as it should be stops nobody else."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog import copy
from cones_registry.errors import BaseModelMismatchError, ConflictError, CorruptDataError
from cones_registry.registry import deletions
from cones_registry.registry.deletions import Notices

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})
OTHER = LayerTable.from_shapes({"b.attn2.to_k.weight": (8, 16)})


def mask_of(seed: int, table: LayerTable = TABLE) -> ConceptMask:
    generator = np.random.default_rng(seed)
    (layer,) = table.layers
    indices = np.flatnonzero(generator.random(layer.neuron_count) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(table, {layer.name: indices})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


STRAYS = (
    "log/.DS_Store",
    "log/x.tmp",
    "log/folder/x",
    "log/01KAGZ4Q2V7M8X3T5R9W1Y6B0C.json",
    "quotas/.keep",
    "quotas/alice/.DS_Store",
    "versions/alice/dog/README.txt",
    "versions/.DS_Store",
    "aliases/alice/dog/prod/notes",
    "masks/ab/x.tmp",
    "runs/.DS_Store",
    "catalog/.DS_Store",
    "deletions/.DS_Store",
    "purged/x",
    "of-another-program",
)


def test_what_does_not_belong_in_a_registry_is_passed_over(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.set_quota("alice", concepts=5)
    for key in STRAYS:
        path = tmp_path / "registry" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\0stray")
    with Registry.open(registry.url, cache=tmp_path / "other") as other:
        assert other.push("alice/dog", mask_of(2), scope="prompt").version == 2
        other.alias("alice/dog:1", "prod")
        other.compact(grace=0)
        other.plan_prune(grace=0).execute()
        other.push("bob/cat", mask_of(1), scope="prompt")
        other.plan_purge(owner="bob").execute()
        assert other.quota("alice").concepts == 5
        report = other.check(read_data=True)
        assert report.ok
        assert {"log/.DS_Store", "log/x.tmp"} <= set(report.strays)
        assert other.check(rebuild=True).ok
        assert {concept.ref for concept in registry.find()} == {"alice/dog:1", "alice/dog:2"}
    for key in STRAYS:
        assert (tmp_path / "registry" / key).read_bytes() == b"\0\0stray", key


class WithWeights:
    """As a loaded base model gives itself to a push."""

    fingerprint = "sha256:" + "ab" * 32
    published_source = "maker/model"
    layer_table = TABLE


def test_a_file_that_names_another_models_fingerprint_does_not_block_that_model(
    registry: Registry, tmp_path: Path
) -> None:
    stranger = registry.push(
        "eve/cat", mask_of(1, OTHER), base=WithWeights.fingerprint, scope="prompt"
    )
    other = Registry.open(registry.url, cache=tmp_path / "other")
    with pytest.raises(BaseModelMismatchError, match="push with the weights"):
        other.push("alice/dog", mask_of(1), base=WithWeights.fingerprint, scope="prompt")
    registry.push("alice/dog", mask_of(1), base=WithWeights(), scope="prompt")
    # From now on the fingerprint alone will do, on handles that were open too.
    assert (
        other.push("alice/dog", mask_of(2), base=WithWeights.fingerprint, scope="prompt").version
        == 2
    )
    assert other.base(WithWeights.fingerprint).table == TABLE
    assert other.pull("alice/dog:1") == mask_of(1)
    with pytest.raises(CorruptDataError, match="eve/cat:1"):
        Registry.open(registry.url, cache=tmp_path / "third").pull(stranger.ref)
    with pytest.raises(BaseModelMismatchError, match="knows it from the weights"):
        other.push("eve/cat", mask_of(3, OTHER), base=WithWeights.fingerprint, scope="prompt")


def test_an_archive_does_not_decide_which_hub_model_a_base_is(tmp_path: Path) -> None:
    class Elsewhere(WithWeights):
        published_source = "eve/other-model"

    source = Registry.create(tmp_path / "source", cache=tmp_path / "cache")
    source.push("eve/cat", mask_of(1), base=Elsewhere(), scope="prompt")
    source.export_archive(tmp_path / "a.tar.zst")
    registry = Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    registry.import_archive(tmp_path / "a.tar.zst")
    assert registry.base(WithWeights.fingerprint).source is None
    registry.push("alice/dog", mask_of(2), base=WithWeights(), scope="prompt")
    assert registry.base(WithWeights.fingerprint).source == "maker/model"
    other = Registry.open(registry.url, cache=tmp_path / "other")
    assert other.base(WithWeights.fingerprint).source == "maker/model"


def test_a_builder_that_stands_still_blocks_no_other_reader_of_the_machine(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "LOCK_SECONDS", 0.2)
    registry.push("alice/dog", mask_of(1), scope="prompt")
    child = os.fork()
    if child == 0:

        def stand_still(step: str, key: str) -> None:
            if step == "swap":
                os.kill(os.getpid(), signal.SIGSTOP)

        try:
            builder = Registry.open(registry.url, cache=tmp_path / "cache")
            builder._session.copy.fault = stand_still
            os._exit(0 if len(builder.find()) == 1 else 3)
        except BaseException:
            os._exit(4)
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    try:
        reader = Registry.open(registry.url, cache=tmp_path / "cache")
        reader._session.copy._patience = 0.2
        assert [concept.ref for concept in reader.find()] == ["alice/dog:1"]
        assert reader.push("alice/dog", mask_of(2), scope="prompt").version == 2
        assert len(reader.find()) == 2
    finally:
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(reader.find()) == 2


# -- pictures -------------------------------------------------------------------------------------


def picture(seed: int) -> bytes:
    """As much of a WebP picture as a push looks at."""
    return b"RIFF\0\0\0\0WEBP" + bytes([seed]) * 40


def pictures(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in (folder / "registry" / "previews").rglob("*.webp")}


def test_a_picture_is_kept_once_and_goes_with_the_last_who_shows_it(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1), previews=[picture(1), picture(2)], scope="prompt")
    registry.push("bob/dog", mask_of(2), previews=[picture(2), picture(3)], scope="prompt")
    assert pictures(tmp_path) == {picture(1), picture(2), picture(3)}
    assert len(registry.get("bob/dog").previews) == 2
    registry.plan_purge(owner="alice").execute()
    assert pictures(tmp_path) == {picture(2), picture(3)}
    registry.plan_purge(owner="bob").execute()
    assert pictures(tmp_path) == set()


# -- notices of deletions -------------------------------------------------------------------------


def notice(registry: Registry, *masks: str) -> tuple[Notices, str]:
    """A deletion that names masks and is not done."""
    session = registry._session
    stamp = session.clock.next()
    session.notices.write(stamp, masks)
    return session.notices, stamp


def test_a_push_of_a_mask_that_is_being_deleted_waits_and_is_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "WAIT_SECONDS", 0.0)
    pushed = registry.push("alice/dog", mask_of(1), scope="prompt")
    notices, stamp = notice(registry, pushed.blob_digest)
    other = Registry.open(registry.url, cache=tmp_path / "other")
    other.push("bob/cat", mask_of(2), scope="prompt")  # of another mask the notice says nothing
    with pytest.raises(ConflictError, match="not finished"):
        other.push("bob/dog", mask_of(1), scope="prompt")
    notices.done(stamp)
    assert other.push("bob/dog", mask_of(1), scope="prompt").mask_digest == mask_of(1).digest
    assert Registry.open(registry.url, cache=tmp_path / "third").check(read_data=True).ok


def test_a_mask_that_a_deletion_took_is_put_again_by_who_pushes_it(
    registry: Registry, tmp_path: Path
) -> None:
    pushed = registry.push("alice/dog", mask_of(1), scope="prompt")
    notices, stamp = notice(registry, pushed.blob_digest)
    (path,) = (tmp_path / "registry" / "masks").rglob("*.parquet")

    def deleted_meanwhile(step: str, key: str) -> None:
        if step == "put" and key.startswith("log/"):
            path.unlink(missing_ok=True)

    other = Registry.open(registry.url, cache=tmp_path / "other")
    notices.done(stamp)
    other._session.store.fault = deleted_meanwhile
    other.push("bob/dog", mask_of(1), scope="prompt")
    assert path.is_file()
    third = Registry.open(registry.url, cache=tmp_path / "third")
    assert third.pull("bob/dog:1") == mask_of(1)


def test_notices_are_kept_for_a_day(registry: Registry, tmp_path: Path, monkeypatch: Any) -> None:
    notices, stamp = notice(registry, "sha256:" + "0" * 64)
    notices.done(stamp)
    folder = tmp_path / "registry" / "deletions"
    notices.clean()
    assert len(list(folder.iterdir())) == 2
    now = deletions.time.time()
    monkeypatch.setattr(deletions.time, "time", lambda: now + deletions.KEEP_SECONDS + 60)
    notices.clean()
    assert list(folder.iterdir()) == []


# -- what a repair moved aside --------------------------------------------------------------------


def test_what_a_repair_moved_aside_goes_with_the_next_purge(
    registry: Registry, tmp_path: Path
) -> None:
    """It cannot be read, so nobody can say whom it speaks of."""
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("bob/dog", mask_of(2), scope="prompt")
    first = min((tmp_path / "registry" / "log").iterdir())
    first.write_bytes(first.read_bytes()[:-9] + b"alice/dog")
    fresh = Registry.open(registry.url, cache=tmp_path / "other")
    fresh.check(rebuild=True)
    aside = tmp_path / "registry" / "aside"
    assert [path.name for path in aside.rglob("*") if path.is_file()] == [first.name]
    assert len(fresh.find()) == 2
    fresh.plan_purge(owner="alice").execute()
    assert not [path for path in aside.rglob("*") if path.is_file()]
    assert [concept.ref for concept in fresh.find()] == ["bob/dog:1"]
