"""A purge takes everything of its owner, on this machine too, and nothing of anybody else."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog import runs
from cones_registry.errors import ConflictError, NotFoundError
from cones_registry.record import Provenance
from cones_registry.registry import purge
from cones_registry.registry.purge import unfinished_about
from cones_registry.store.local import LocalStore

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def files_with(folder: Path, text: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_a_rebuild_after_purges_finds_every_concept_that_shared_the_mask(
    registry: Registry, tmp_path: Path
) -> None:
    for owner in ("alice", "bob", "carol", "dave"):
        registry.push(f"{owner}/dog", mask_of(1), scope="prompt")
    registry.plan_purge(owner="alice").execute()
    registry.plan_purge(owner="bob").execute()
    for folder in ("log", "catalog", "runs"):
        shutil.rmtree(tmp_path / "registry" / folder)
    fresh = Registry.open(registry.url, cache=tmp_path / "fresh")
    assert fresh.check(rebuild=True).ok
    assert sorted(concept.ref for concept in fresh.find()) == ["carol/dog:1", "dave/dog:1"]
    assert fresh.pull("dave/dog") == mask_of(1)
    assert fresh.check(read_data=True).ok


@pytest.mark.parametrize(("kind", "cut"), [("versions/alice/", 5), ("log/", 0)])
def test_a_purge_sweeps_what_killed_writers_left(
    registry: Registry, tmp_path: Path, kind: str, cut: int
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    store = registry._session.store
    (written,) = (store.get(entry.key) for entry in store.list(kind))
    left = tmp_path / "registry" / ".unfinished" / "0123"
    left.write_bytes(written[: len(written) - cut])
    registry.push("bob/dog", mask_of(2), scope="prompt")
    assert registry.plan_purge(owner="alice").execute().found == 0
    assert not left.exists()
    # Nothing else of alice is there now.
    left.write_bytes(written[: len(written) - cut])
    plan = registry.plan_purge(ref="alice/dog")
    assert (plan.versions, plan.residue) == (0, 1)
    assert plan.execute().found == 0
    assert not left.exists()
    with pytest.raises(NotFoundError, match="nothing of alice"):
        registry.plan_purge(owner="alice")
    assert registry.pull("bob/dog") == mask_of(2)


def test_a_search_for_traces_reads_unfinished_files(registry: Registry, tmp_path: Path) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("bob/dog", mask_of(2), scope="prompt")
    registry.compact(grace=0)
    parts = list((tmp_path / "registry" / "runs").glob("*.parquet"))
    left = tmp_path / "registry" / ".unfinished" / "0123"
    store = registry._session.store
    assert len(parts) == 2  # of the concepts, and of their history
    for part in parts:
        left.write_bytes(part.read_bytes())
        assert unfinished_about(store, "alice", None) == 1
        assert unfinished_about(store, "alice", "dog") == 1
        assert unfinished_about(store, "alice", "cat") == 0
        assert unfinished_about(store, "carol", None) == 0
    plan = registry.plan_purge(owner="alice")
    # A writer that goes on with its file while the purge sweeps.
    store.sweep_unfinished = lambda before: 0  # type: ignore[attr-defined]
    with pytest.raises(ConflictError, match="purge again"):
        plan.execute()


def test_a_writer_whose_unfinished_file_was_swept_writes_it_again(registry: Registry) -> None:
    store = registry._session.store
    swept: list[str] = []

    def sweep_once(step: str, key: str) -> None:
        if step == "written" and key not in swept:
            swept.append(key)
            assert isinstance(store, LocalStore)
            store.sweep_unfinished(float("inf"))

    store.fault = sweep_once
    registry.push("alice/dog", mask_of(1), scope="prompt")
    assert len(swept) >= 3
    assert registry.check(read_data=True).ok
    assert registry.pull("alice/dog") == mask_of(1)


def test_one_folder_is_one_registry_however_it_is_spelled(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "registry")
    for url in (tmp_path / "link", (tmp_path / "link").as_uri(), tmp_path / "x" / ".." / "link"):
        other = Registry.open(url, cache=tmp_path / "cache")
        assert other.url == registry.url
        assert other._session.copy.folder == registry._session.copy.folder


def test_a_purge_clears_local_copies_of_every_place_the_registry_was_at(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1), note="alice-secret", scope="prompt")
    registry.push("bob/dog", mask_of(2), scope="prompt")
    registry.find()
    registry.close()
    (tmp_path / "registry").rename(tmp_path / "moved")
    assert files_with(tmp_path / "cache", b"alice-secret")
    moved = Registry.open(tmp_path / "moved", cache=tmp_path / "cache")
    moved.plan_purge(owner="alice").execute()
    moved.close()
    assert files_with(tmp_path, b"alice") == []
    (tmp_path / "moved").rename(tmp_path / "registry")
    assert [concept.ref for concept in registry.find()] == ["bob/dog:1"]


@pytest.mark.parametrize(
    "parameters", [{"weights": {"alice/dog:1": 0.5}}, {"of": [{"deep": {"alice/dog": 1}}]}]
)
def test_a_concept_that_a_field_of_provenance_is_named_for_is_derived(
    registry: Registry, parameters: dict[str, object]
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    made = Provenance("tune", parameters=parameters)
    registry.push("bob/both", mask_of(2), provenance=made, scope="prompt")
    assert registry.plan_purge(owner="alice").derived == ("bob/both:1",)
    assert registry.plan_purge(ref="alice/dog").derived == ("bob/both:1",)
    with pytest.raises(ConflictError, match="bob/both:1"):
        registry.plan_purge(owner="alice").execute()


def test_readers_that_have_not_seen_a_purge_find_what_others_share(
    registry: Registry, tmp_path: Path
) -> None:
    scores = {TABLE.names[0]: np.arange(256, dtype=np.float32).reshape(16, 16)}
    for owner in ("alice", "bob"):
        registry.push(
            f"{owner}/dog",
            ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(200, 256, dtype=np.int32)}),
            scores=scores,
            scope="prompt",
        )
    readers = [
        Registry.open(registry.url, cache=tmp_path / f"reader-{number}", max_staleness=60)
        for number in range(3)
    ]
    for reader in readers:
        assert reader.get("bob/dog").version == 1
    registry.plan_purge(owner="alice").execute()
    expected = registry.pull("bob/dog")
    assert readers[0].pull("bob/dog") == expected
    assert readers[1].pull_many(["bob/dog:1"]) == [expected]
    assert readers[2].pull_ranks("bob/dog") is not None
    for reader in readers:
        reader.sync()
        with pytest.raises(NotFoundError, match="alice/dog"):
            reader.pull("alice/dog")


def test_a_search_for_traces_reads_the_row_groups_that_can_hold_them(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("alice/a", "alice/dog", "bob/b", "bob/dog", "zoe/z")):
        registry.push(name, mask_of(number), scope="prompt")
    registry.alias("bob/dog:1", "prod")
    registry.compact(grace=0)
    session = registry._session
    whole = [purge.rows_in_runs(session, *of) for of in (("bob", None), ("bob", "dog"))]
    monkeypatch.setattr(runs, "WHOLE_BELOW", 0)
    by_ranges = [purge.rows_in_runs(session, *of) for of in (("bob", None), ("bob", "dog"))]
    assert [rows for rows, _ in by_ranges] == [rows for rows, _ in whole]
    assert all(rows and size for rows, size in by_ranges)
    assert purge.rows_in_runs(session, "carl", None)[0] == 0
    assert registry.plan_purge(owner="bob").execute().found == 0
    assert purge.rows_in_runs(session, "bob", None)[0] == 0
