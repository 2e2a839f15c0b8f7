"""Compaction, prune, purge, caches and exports keep a registry small and lose nothing."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog.keys import mask_key
from cones_registry.errors import ConflictError, CorruptDataError, NotFoundError, UsageError
from cones_registry.record import Provenance
from cones_registry.registry.mask_files import MaskFiles
from cones_registry.store import open_store

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def keys(registry: Registry, prefix: str) -> list[str]:
    return [entry.key for entry in registry._session.store.list(prefix)]


def test_a_sync_is_one_listing_and_the_new_objects(registry: Registry, tmp_path: Path) -> None:
    for number in range(3):
        registry.push("a/x", mask_of(number), scope="prompt")
    registry.compact(grace=0)
    reader = Registry.open(registry.url, cache=tmp_path / "reader")
    reader.sync()
    registry.push("a/x", mask_of(9), scope="prompt")
    store = reader._session.store
    calls: list[str] = []
    list_, get = store._list, store._get
    store._list = lambda prefix: calls.append(f"list {prefix}") or list_(prefix)  # type: ignore[func-returns-value,method-assign]
    store._get = lambda key: calls.append(f"get {key[:3]}") or get(key)  # type: ignore[func-returns-value,method-assign]
    assert reader.sync().segments == 1
    assert calls == ["list log/", "get log"]
    calls.clear()
    reader.sync()
    assert calls == ["list log/"]


def test_several_compactors_make_one_chain(registry: Registry, tmp_path: Path) -> None:
    others = [Registry.open(registry.url, cache=tmp_path / f"c{n}") for n in range(2)]
    for number in range(4):
        registry.push("a/x", mask_of(number), scope="prompt")
        others[number % 2].compact()
    assert keys(registry, "catalog/") == [f"catalog/{number:09d}.json" for number in range(1, 5)]
    assert len(keys(registry, "log/")) == 8
    assert others[0].compact(grace=0).removed > 0
    # The one before the newest stays: without it the newest would be an orphan.
    assert keys(registry, "catalog/") == ["catalog/000000003.json", "catalog/000000004.json"]
    assert len(keys(registry, "log/")) == 1
    assert len(Registry.open(registry.url, cache=tmp_path / "cold").find()) == 4


def test_within_the_grace_nothing_folded_is_removed(registry: Registry) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    before = keys(registry, "log/")
    report = registry.compact()
    assert (report.manifest, report.removed) == (1, 0)
    assert set(before) < set(keys(registry, "log/"))
    assert registry.compact().manifest is None


def test_prune_waits_a_grace_twice(registry: Registry) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    registry.push("a/y", mask_of(2), scope="prompt")
    registry.remove("a/x")
    assert registry.plan_prune().versions == ()
    time.sleep(0.3)
    first = registry.plan_prune(grace=0.3)
    assert (len(first.versions), len(first.condemn), first.freed_bytes) == (1, 1, 0)
    assert first.condemned_bytes > 0
    assert first.execute().freed_bytes == 0
    time.sleep(0.4)
    second = registry.plan_prune(grace=0.3)
    assert second.freed_bytes == first.condemned_bytes
    assert second.execute().freed_bytes == first.condemned_bytes
    with pytest.raises(NotFoundError, match="pruned"):
        registry.restore("a/x")
    assert len(keys(registry, "masks/")) == 1
    assert registry.check(read_data=True).ok
    assert registry.push("a/x", mask_of(1), scope="prompt").version == 2


def test_what_was_condemned_is_restored_as_long_as_its_mask_is_there(registry: Registry) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    registry.remove("a/x")
    time.sleep(0.2)
    assert registry.plan_prune(grace=0.2).execute().condemned_versions == ("a/x:1",)
    registry.restore("a/x:1")
    time.sleep(0.3)
    report = registry.plan_prune(grace=0.2).execute()
    assert (report.deleted, report.condemned_versions) == ((), ())
    assert registry.pull("a/x") == mask_of(1)
    assert registry.check(read_data=True).ok


def test_prune_spares_a_blob_that_another_concept_uses(registry: Registry) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    registry.push("b/x", mask_of(1), scope="prompt")
    registry.remove("a/x")
    plan = registry.plan_prune(grace=0)
    assert plan.freed_bytes == 0
    plan.execute()
    assert registry.pull("b/x") == mask_of(1)


def test_a_plan_changes_nothing_and_is_looked_at_again(registry: Registry) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    registry.remove("a/x")
    plan = registry.plan_prune(grace=0)
    assert len(keys(registry, "masks/")) == 1
    registry.restore("a/x")
    registry.push("b/x", mask_of(1), scope="prompt")
    report = plan.execute()
    assert report.deleted == ()
    assert registry.pull("b/x") == mask_of(1)


def test_a_purge_leaves_no_trace_and_gives_no_number_again(
    registry: Registry, tmp_path: Path
) -> None:
    reader = Registry.open(registry.url, cache=tmp_path / "reader")
    registry.push("alice/dog", mask_of(1), note="alice's dog", scope="prompt")
    registry.push("alice/dog", mask_of(2), scope="prompt")
    registry.push("bob/dog", mask_of(1), scope="prompt")
    registry.alias("alice/dog", "prod")
    registry.compact()
    assert len(reader.find()) == 3
    plan = registry.plan_purge(owner="alice")
    assert (plan.versions, len(plan.blobs), len(plan.shared)) == (2, 1, 1)
    receipt = plan.execute()
    assert (receipt.versions, receipt.found, receipt.spared_blobs) == (2, 0, 1)
    assert "alice" not in json.dumps(receipt.to_json())
    assert [concept.ref for concept in reader.find()] == ["bob/dog:1"]
    assert reader.pull("bob/dog") == mask_of(1)
    for path in tmp_path.rglob("*"):
        assert "alice" not in path.name
        if path.is_file():
            assert b"alice" not in path.read_bytes(), path
    with pytest.raises(NotFoundError, match="nothing of alice"):
        registry.plan_purge(owner="alice")
    assert registry.push("alice/dog", mask_of(3), scope="prompt").version == 3
    assert registry.check(read_data=True).ok


def test_a_push_after_a_purge_it_has_not_seen_is_kept_under_a_new_number(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/x", mask_of(1), scope="prompt")
    other = Registry.open(registry.url, cache=tmp_path / "other")
    for seed in (2, 3):
        other.push("alice/x", mask_of(seed), scope="prompt")
    other.plan_purge(ref="alice/x").execute()
    pushed = registry.push("alice/x", mask_of(4), scope="prompt")
    assert pushed.version == 4
    for reader in (registry, other):
        assert reader.get("alice/x").version == 4
        assert reader.pull("alice/x") == mask_of(4)


def test_a_purge_waits_for_what_was_made_from_the_concept(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    made = Provenance("tune", parents=("alice/dog:1",), parameters={"part_of": ["alice/dog:1"]})
    registry.push("bob/both", mask_of(2), provenance=made, scope="prompt")
    registry.push(
        "bob/else",
        mask_of(3),
        provenance=Provenance("tune", parents=("alice/dogma:1",)),
        scope="prompt",
    )
    plan = registry.plan_purge(ref="alice/dog")
    assert plan.derived == ("bob/both:1",)
    with pytest.raises(ConflictError, match="bob/both:1"):
        plan.execute()
    assert registry.get("alice/dog").version == 1
    registry.plan_purge(ref="bob/both").execute()
    assert registry.plan_purge(ref="alice/dog").execute().found == 0


def test_a_purge_takes_a_whole_concept_or_owner(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("alice/cat", mask_of(2), scope="prompt")
    with pytest.raises(UsageError, match="whole concept"):
        registry.plan_purge(ref="alice/dog:1")
    with pytest.raises(UsageError, match="either owner= or ref="):
        registry.plan_purge()
    registry.plan_purge(ref="alice/dog").execute()
    assert [concept.ref for concept in registry.find()] == ["alice/cat:1"]


def test_the_blob_cache_is_verified_and_bounded(tmp_path: Path) -> None:
    url = f"memory://cache-{tmp_path.name}"
    registry = Registry.create(url, cache=tmp_path)
    pushed = [registry.push(f"a/c{number}", mask_of(number), scope="prompt") for number in range(3)]
    for concept in pushed:
        registry.pull(concept)
    cached = registry.cached_blobs()
    assert {blob.digest for blob in cached} == {concept.blob_digest for concept in pushed}
    path = tmp_path / mask_key(pushed[0].blob_digest)
    path.write_bytes(b"damaged")
    # This handle has the mask in memory; another one reads the file.
    assert Registry.open(url, cache=tmp_path).pull(pushed[0]) == mask_of(0)
    assert registry.prune_cache(limit=sum(blob.size for blob in cached) - 1) > 0
    assert len(registry.cached_blobs()) == 2
    registry.prune_cache()
    assert registry.cached_blobs() == []
    small = MaskFiles(open_store(url), tmp_path / "small", limit=10)
    small.get(pushed[0].blob_digest)
    assert small.list() == []


def test_the_blob_cache_keeps_its_bound_after_every_write(tmp_path: Path) -> None:
    url = f"memory://bound-{tmp_path.name}"
    registry = Registry.create(url, cache=tmp_path)
    items = [(f"a/c{number}", mask_of(number), {"scope": "prompt"}) for number in range(24)]
    pushed = registry.push_many(items)
    size = max(concept.blob_bytes for concept in pushed)
    for limit in (size, 5 * size, 12 * size):
        # Two caches on one folder, as two processes have them.
        caches = [MaskFiles(open_store(url), tmp_path / f"bound{limit}", limit) for _ in range(2)]
        for number, concept in enumerate(pushed):
            caches[number % 2].get(concept.blob_digest)
            held = caches[0].list()
            # The newest stays; what another process wrote is counted at the next sweep.
            assert held[0].digest == concept.blob_digest
            assert sum(blob.size for blob in held) <= limit + limit // 10
        alone = MaskFiles(open_store(url), tmp_path / f"alone{limit}", limit)
        for digest, _ in alone.get_many([concept.blob_digest for concept in pushed]):
            assert digest
        assert sum(blob.size for blob in alone.list()) <= limit


def test_a_blob_cache_with_room_is_listed_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://room-{tmp_path.name}"
    registry = Registry.create(url, cache=tmp_path)
    pushed = registry.push_many(
        [(f"a/c{number}", mask_of(number), {"scope": "prompt"}) for number in range(24)]
    )
    cache = MaskFiles(open_store(url), tmp_path / "room", limit=10**9)
    listings = []
    listed = cache.list
    monkeypatch.setattr(cache, "list", lambda: listings.append(1) or listed())
    for concept in pushed:
        cache.get(concept.blob_digest)
    assert len(listings) == 1


@pytest.mark.parametrize("form", ["parquet", "jsonl", "delta"])
def test_the_catalogue_is_written_for_other_engines(
    registry: Registry, tmp_path: Path, form: str
) -> None:
    registry.push_many(
        [("a/x", mask_of(1), {"scope": "prompt"}), ("a/y", mask_of(2), {"scope": "prompt"})]
    )
    registry.alias("a/x", "prod")
    target = str(tmp_path / f"catalogue.{form}")
    if form == "delta":
        delta = pytest.importorskip("deltalake")
        registry.export_catalog(target, format=form)
        assert registry.export_catalog(target, format=form) == 2
        table = delta.DeltaTable(target)
        assert table.version() == 1
        rows = table.to_pyarrow_table().to_pylist()
    else:
        assert registry.export_catalog(target, format=form) == 2
        lines = Path(target).read_text("utf-8").splitlines() if form == "jsonl" else []
        rows = [json.loads(line) for line in lines] or pq.read_table(target).to_pylist()
    assert [(row["ref"], row["aliases"]) for row in sorted(rows, key=lambda row: row["ref"])] == [
        ("a/x:1", ["prod"]),
        ("a/y:1", []),
    ]
    with pytest.raises(UsageError, match="expected one of"):
        registry.export_catalog(target, format="xlsx")


def test_an_archive_of_format_1_is_imported_whole(registry: Registry) -> None:
    golden = Path(__file__).resolve().parents[1] / "golden"
    expected = json.loads((golden / "archive-1.json").read_text("utf-8"))
    registry.import_archive(golden / "archive-1.tar.zst")
    imported_anew = ("blob_digest", "blob_bytes", "created", "aliases")
    for old in expected:
        new = registry.get("{owner}/{name}:{version}".format(**old)).to_json()
        assert {key: new[key] for key in old if key not in imported_anew} == {
            key: value for key, value in old.items() if key not in imported_anew
        }
        assert registry.pull(f"{old['owner']}/{old['name']}@{old['mask_digest']}").digest
    assert registry.pull_ranks("alice/dog:1") is not None
    assert registry.check(read_data=True).ok
    assert {line.kind for line in registry.history()} == {"import"}


def test_a_registry_of_format_1_is_refused_with_the_way_out(tmp_path: Path) -> None:
    store = open_store(tmp_path / "old")
    store.put_new("cones.json", b'{"format":"cones-registry/1","id":"x","layout":1}\n')
    with pytest.raises(CorruptDataError, match=r"format 1.*cones export.*cones import"):
        Registry.open(tmp_path / "old", cache=tmp_path / "cache")


def test_a_place_with_what_is_left_of_a_registry_is_no_place_for_a_new_one(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    (tmp_path / "registry" / "cones.json").unlink()
    with pytest.raises(ConflictError, match=r"Put cones.json back"):
        Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def test_history_says_who_did_what_and_a_purge_leaves_an_opaque_line(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONES_ACTOR", "ann")
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.alias("alice/dog", "prod")
    monkeypatch.setenv("CONES_ACTOR", "ben")
    registry.set_quota("alice", concepts=3)
    registry.remove("alice/dog")
    lines = registry.history()
    assert [(line.actor, line.kind, line.ref) for line in lines] == [
        ("ben", "remove", "alice/dog:1"),
        ("ben", "quota", "alice"),
        ("ann", "alias", "alice/dog:1"),
        ("ann", "push", "alice/dog:1"),
    ]
    assert registry.history(actor="ann", limit=1) == lines[2:3]
    assert registry.history("alice/dog") == [lines[0], *lines[2:]]
    registry.plan_purge(owner="alice").execute()
    assert not [line for line in registry.history() if "alice" in line.ref]


def test_history_survives_folds_and_forgets_the_purged(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("bob/dog", mask_of(2), scope="prompt")
    registry.set_quota("alice", bytes=10**6)
    registry.compact(grace=0)
    registry.alias("bob/dog", "prod")
    registry.compact(grace=0)
    assert keys(registry, "log/") == [key for key in keys(registry, "log/") if "pointer" in key]
    assert [(line.kind, line.ref) for line in registry.history()] == [
        ("alias", "bob/dog:1"),
        ("quota", "alice"),
        ("push", "bob/dog:1"),
        ("push", "alice/dog:1"),
    ]
    assert [line.kind for line in registry.history("bob/dog")] == ["alias", "push"]
    assert [line.kind for line in registry.history(owner="alice")] == ["quota", "push"]
    registry.plan_purge(owner="alice").execute()
    lines = registry.history()
    assert [(line.kind, line.ref) for line in lines] == [
        ("purge", ""),
        ("alias", "bob/dog:1"),
        ("push", "bob/dog:1"),
    ]
    assert lines[0].detail["versions"] == 1
    assert registry.check(read_data=True).ok


def test_one_ref_on_a_cold_machine_needs_no_catalogue(registry: Registry, tmp_path: Path) -> None:
    for number in range(3):
        registry.push("alice/dog", mask_of(number), scope="prompt")
    registry.push("bob/dog", mask_of(9), scope="prompt")
    registry.alias("alice/dog:1", "prod")
    registry.remove("alice/dog:3")
    registry.compact(grace=0)
    registry.alias("alice/dog:2", "next")
    expected = [registry.get(ref) for ref in ("alice/dog", "alice/dog:prod", "alice/dog:next")]
    cold = Registry.open(registry.url, cache=tmp_path / "cold")
    refs = ("alice/dog", "alice/dog:prod", "alice/dog:next")
    assert [cold.get(ref) for ref in refs] == expected
    assert cold._session.copy.state() is None
    assert cold.pull("alice/dog:prod") == mask_of(0)
    with pytest.raises(NotFoundError, match="alice/dog:3 was removed"):
        cold.get("alice/dog:3")
    assert len(cold.find()) == 3


def test_long_work_tells_how_far_it_is(registry: Registry, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def hear(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    registry.on_progress = hear
    registry.push_many(
        [(f"a/x{number}", mask_of(number), {"scope": "prompt"}) for number in range(3)]
    )
    registry.export_archive(tmp_path / "all.tar.zst")
    registry.check(read_data=True)
    other = Registry.create(tmp_path / "other", cache=tmp_path / "cache")
    other.on_progress = hear
    other.import_archive(tmp_path / "all.tar.zst")
    registry.compact(grace=0)
    cold = Registry.open(registry.url, cache=tmp_path / "cold")
    cold.on_progress = hear
    cold.sync()
    copy = Registry.create(tmp_path / "copy", cache=tmp_path / "cache")
    copy.on_progress = hear
    registry.plan_sync(copy).execute()
    registry.plan_purge(owner="a").execute()
    ends = {(what, total) for what, done, total in told if done == total}
    assert ends >= {
        *(("pushing", 3), ("exporting", 3), ("reading masks", 3), ("reading records", 3)),
        *(("reading the archive", 4), ("reading the catalogue", 1), ("copying", 3)),
        ("purging", 4),
    }
