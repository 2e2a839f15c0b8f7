"""The chain of manifests: what is folded, merged, published, orphaned, removed."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog import chain, runs
from cones_registry.catalog.chain import Position
from cones_registry.catalog.documents import canonical, seal, unseal
from cones_registry.catalog.tables import RUN_TABLES, TABLES
from cones_registry.digest import sha256_bytes
from cones_registry.errors import CorruptDataError, NewerFormatError, StoreUnavailableError

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})


def mask_of(number: int) -> ConceptMask:
    return ConceptMask.from_indices(
        TABLE, {TABLE.names[0]: np.array([number, number + 20], np.int32)}
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def reader(registry: Registry, tmp_path: Path, name: str = "reader") -> Registry:
    return Registry.open(registry.url, cache=tmp_path / name)


def refs(registry: Registry) -> list[str]:
    return sorted(concept.ref for concept in registry.find())


def keys(registry: Registry, prefix: str) -> list[str]:
    return [entry.key for entry in registry._session.store.list(prefix)]


def test_runs_merge_in_tiers_and_hold_each_line_once(registry: Registry, tmp_path: Path) -> None:
    for number in range(20):
        registry.push(f"alice/c{number}", mask_of(number % 20), scope="prompt")
        registry.compact()
    manifest = registry._session.chain.newest([registry._session.fresh_now().meta.position])
    assert manifest is not None
    found = manifest.tables["concepts"]
    assert len(found) < 12
    assert sum(run.rows for run in found) == 20
    assert found[0].last == 20
    assert found[-1].first == 1
    lines = [row for batch in runs.scan(registry._session.store, TABLES["concepts"], found) for row
             in batch.to_pylist()]  # fmt: skip
    assert sorted(row["ref"] for row in lines) == refs(reader(registry, tmp_path))
    # One concept is found without the others.
    (batch,) = runs.scan(registry._session.store, TABLES["concepts"], found, ("alice", "c7"))
    assert batch["ref"].to_pylist() == ["alice/c7:1"]


def test_a_reader_that_was_away_longer_than_the_grace_reads_the_runs_it_lacks(
    registry: Registry, tmp_path: Path
) -> None:
    for number in range(12):
        registry.push(f"alice/c{number}", mask_of(number), scope="prompt")
    registry.compact(grace=0)
    away = reader(registry, tmp_path)
    away.sync()
    registry.tag("alice/c3", add=["late"])
    registry.push("bob/new", mask_of(1), scope="prompt")
    registry.alias("bob/new", "prod")
    registry.compact(grace=0)
    registry.compact(grace=0)
    assert [key for key in keys(registry, "log/") if not key.endswith(".pointer")] == []
    registry.push("bob/newer", mask_of(2), scope="prompt")
    report = away.sync()
    assert (report.snapshot, report.segments) == (2, 1)
    assert refs(away) == refs(registry)
    assert away.get("alice/c3").tags == ("late",)
    assert away.get("bob/new:prod").version == 1


def test_a_copy_of_a_past_that_a_backup_replaced_is_thrown_away(
    registry: Registry, tmp_path: Path
) -> None:
    root = tmp_path / "registry"
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.compact()
    shutil.copytree(root, tmp_path / "backup")
    registry.push("alice/lost", mask_of(2), scope="prompt")
    old = reader(registry, tmp_path, "old")
    assert refs(old) == ["alice/dog:1", "alice/lost:1"]
    registry.compact(grace=0)
    older = reader(registry, tmp_path, "older")
    older.sync()
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "backup", root)
    fresh = reader(registry, tmp_path, "fresh")
    fresh.push("bob/cat", mask_of(3), scope="prompt")
    for each in (old, older, registry, fresh):
        assert refs(each) == ["alice/dog:1", "bob/cat:1"]
    old.compact(grace=0)
    assert refs(reader(registry, tmp_path, "last")) == ["alice/dog:1", "bob/cat:1"]


def test_a_manifest_of_a_past_that_a_backup_replaced_is_an_orphan_and_starts_an_epoch(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "registry"
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.compact()
    shutil.copytree(root, tmp_path / "backup")
    registry.push("alice/lost", mask_of(2), scope="prompt")
    registry.compact()
    registry.push("alice/lost", mask_of(3), scope="prompt")
    first = registry._session.fresh_now().meta.position

    # A compactor is stopped right before it makes manifest 3; meanwhile the backup is put back.
    create = chain.Chain.create

    def stopped(self: chain.Chain, number: int, data: bytes) -> Any:
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "backup", root)
        return create(self, number, data)

    monkeypatch.setattr(chain.Chain, "create", stopped)
    assert registry.compact().manifest is None  # the runs it names went with the backup
    monkeypatch.setattr(chain.Chain, "create", create)

    fresh = reader(registry, tmp_path, "fresh")
    assert refs(fresh) == ["alice/dog:1"]
    fresh.push("bob/cat", mask_of(3), scope="prompt")
    assert refs(registry) == refs(fresh) == ["alice/dog:1", "bob/cat:1"]
    assert fresh.compact().manifest == 4
    last = reader(registry, tmp_path, "last")
    assert refs(last) == refs(registry) == ["alice/dog:1", "bob/cat:1"]
    position = last._session.fresh_now().meta.position
    assert position.number == 4
    assert position.epoch > first.epoch
    last.push("bob/cat", mask_of(4), scope="prompt")
    last.compact(grace=0)
    last.compact(grace=0)
    assert refs(reader(registry, tmp_path, "again")) == ["alice/dog:1", "bob/cat:1", "bob/cat:2"]


def test_a_manifest_whose_maker_was_killed_before_he_said_so_is_published_by_the_next(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")

    def killed(self: chain.Chain, stamp: str, manifest: chain.Manifest) -> None:
        raise StoreUnavailableError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(chain.Chain, "publish", killed)
        with pytest.raises(StoreUnavailableError):
            registry.compact()
    assert [key for key in keys(registry, "log/") if key.endswith(".pointer")] == []
    assert refs(reader(registry, tmp_path)) == ["alice/dog:1"]
    other = reader(registry, tmp_path, "other")
    assert other.compact().manifest is None
    assert len([key for key in keys(registry, "log/") if key.endswith(".pointer")]) == 1
    assert refs(other) == ["alice/dog:1"]


def test_a_loser_removes_its_runs_and_no_other(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    other = reader(registry, tmp_path)
    create = chain.Chain.create

    def late(self: chain.Chain, number: int, data: bytes) -> Any:
        monkeypatch.setattr(chain.Chain, "create", create)
        assert other.compact().manifest == 1
        return create(self, number, data)

    monkeypatch.setattr(chain.Chain, "create", late)
    assert registry.compact().manifest is None
    manifest = registry._session.chain.read(1)
    assert manifest is not None
    assert keys(registry, "runs/") == sorted(part.key for part in manifest.parts())
    assert refs(reader(registry, tmp_path, "cold")) == ["alice/dog:1"]


def test_runs_that_a_compactor_may_be_writing_are_left_alone(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.compact(grace=0)
    table = TABLES["concepts"]
    lines = next(
        runs.scan(
            registry._session.store,
            table,
            registry._session.chain.read(1).tables["concepts"],  # type: ignore[union-attr]
        )
    )
    (part,) = runs.write_parts(registry._session.store, table, [lines])
    registry.compact(grace=0)
    assert part.key in keys(registry, "runs/")
    registry.push("alice/dog", mask_of(2), scope="prompt")
    registry.compact(grace=0)  # from here on its maker's number is taken
    registry.compact(grace=0)
    assert part.key not in keys(registry, "runs/")


def test_a_purge_rewrites_only_the_parts_that_hold_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "PART_ROWS", 2)
    monkeypatch.setattr(runs, "GROUP_ROWS", 2)
    for owner in "abcdefgh":
        registry.push(f"{owner}/x", mask_of(ord(owner) - 97), scope="prompt")
    registry.compact(grace=0)
    manifest = registry._session.chain.read(1)
    assert manifest is not None
    before = manifest.tables["concepts"][0].parts
    read: list[str] = []
    store = registry._session.store
    get = store._get
    store._get = lambda key: read.append(key) or get(key)  # type: ignore[func-returns-value,method-assign]
    receipt = registry.plan_purge(owner="c").execute()
    assert receipt.found == 0
    held = [part for part in before if part.first[0] <= "c" <= part.last[0]]
    assert {key for key in read if key.startswith("runs/")} & {
        part.key for part in before if part not in held
    } == set()
    for path in (tmp_path / "registry").rglob("*"):
        assert not path.is_file() or b'"c"' not in path.read_bytes()
    assert refs(reader(registry, tmp_path)) == [f"{owner}/x:1" for owner in "abdefgh"]


def test_a_manifest_that_cannot_be_one_is_refused(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.compact()
    data = registry._session.store.get("catalog/000000001.json")
    body = unseal("catalog", data, "x")

    def decoded(**change: Any) -> chain.Manifest:
        return chain.decode_manifest(
            1, seal("catalog", {**body, **change}), registry.id, RUN_TABLES
        )

    assert decoded().position.number == 1
    for change, reason in (
        ({"number": 2}, "manifest 2"),
        ({"registry": "x" * 26}, "of registry"),
        ({"epoch": "now"}, "not a ULID"),
        ({"folded": ["x"]}, "not a ULID"),
        ({"folded": 7}, "not a manifest"),
        ({"ancestors": [[1, "a"]] * 1000}, "lists too much"),
        ({"tables": {"moods": []}}, "Upgrade"),
        ({"tables": {"concepts": [{}]}}, "not described"),
        ({"tables": {"concepts": {}}}, "no list of runs"),
        ({"tables": []}, "not a manifest"),
        ({"predecessor": {"number": 1}}, "not a manifest"),
    ):
        with pytest.raises(CorruptDataError, match=reason):
            decoded(**change)
    with pytest.raises(CorruptDataError):
        chain.decode_manifest(1, canonical([]), registry.id, RUN_TABLES)


def test_the_later_epoch_then_the_higher_number_is_the_newer() -> None:
    first, second = "01M81X1G71RG9BMDSJFFGKZZPR", "01M81X1QHYH8KJ536BYR3BKW5M"
    assert Position(second, 1, "a") > Position(first, 9, "b")
    assert Position(first, 10, "a") > Position(first, 9, "b")
    key = chain.pointer_key(first, Position(second, 7, f"sha256:{'0' * 64}"))
    pointer = chain.parse_pointer(key)
    assert pointer is not None
    assert (pointer.position.number, pointer.position.epoch, pointer.stamp) == (7, second, first)
    assert chain.parse_pointer(key + "x") is None


def test_a_run_that_is_lost_is_said(registry: Registry, tmp_path: Path) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.compact(grace=0)
    for path in (tmp_path / "registry" / "runs").iterdir():
        path.unlink()
    with pytest.raises(CorruptDataError, match="lost"):
        reader(registry, tmp_path).find()
    report = registry.check(read_data=True)
    assert not report.ok


FOLDER = Path(__file__).resolve().parents[2] / "schema"
REASONS = {
    "number-zero": "manifest 0",
    "epoch-not-a-ulid": "'2026-11-28' is not a ULID",
    "predecessor-without-digest": "not a manifest: 'digest'",
    "folded-not-stamps": "'yesterday' is not a ULID",
    "run-without-parts": "no parts",
    "part-digest-too-short": "'sha256:abc' is not a digest",
    "part-of-too-many-rows": "2097152",
}


@pytest.mark.parametrize("rule", sorted(REASONS))
def test_a_manifest_that_breaks_a_rule_is_refused_for_it(rule: str) -> None:
    body = json.loads((FOLDER / f"bad/catalog-manifest-{rule}.json").read_text("utf-8"))
    del body["digest"], body["format"]
    with pytest.raises(CorruptDataError, match=REASONS[rule]):
        chain.decode_manifest(17, seal("catalog", body), body["registry"], RUN_TABLES)
    schema = json.loads((FOLDER / "catalog-manifest.schema.json").read_text("utf-8"))
    value = json.loads(seal("catalog", body))
    assert not jsonschema.Draft202012Validator(schema).is_valid(value), "the schema allows it"


def test_every_bad_manifest_has_its_reason_and_the_example_is_read() -> None:
    found = FOLDER.glob("bad/catalog-manifest-*.json")
    assert {path.stem.removeprefix("catalog-manifest-") for path in found} == set(REASONS)
    body = json.loads((FOLDER / "examples/catalog-manifest.json").read_text("utf-8"))
    del body["digest"], body["format"]
    made = chain.decode_manifest(17, seal("catalog", body), body["registry"], RUN_TABLES)
    assert [run.rows for run in made.tables["concepts"]] == [1, 2100]
    assert made.descends_from(Position(made.position.epoch, 16, "sha256:" + "2c3d4e5f" * 8))


def newer_manifest(registry: Registry, change: Any) -> None:
    """The manifest that a writer of a later version makes after the newest one."""
    session = registry._session
    before = session.chain.read_position(session.fresh_now().meta.position)
    assert before is not None
    number = before.position.number + 1
    data = chain.encode_manifest(
        number,
        before.position.epoch,
        registry.id,
        before,
        since=before.since,
        folded=(),
        latest=before.latest,
        tables=before.tables,
        rest=before.rest,
    )
    body = unseal("catalog", data, "manifest")
    change(body)
    data = seal("catalog", body)
    session.store.put_new(chain.manifest_key(number), data)
    position = Position(before.position.epoch, number, sha256_bytes(data))
    session.store.put_new(chain.pointer_key(session.clock.next(), position), b"newer")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (lambda body: body["rest"].update(pinned={}), "a manifest with 'pinned' in its rest"),
        (lambda body: body.update(indexes=[]), "a manifest with the field 'indexes'"),
        (lambda body: body["tables"].update(likes=[]), "a table 'likes'"),
    ],
)
def test_what_a_newer_manifest_says_is_newer_and_not_passed_over(
    registry: Registry, tmp_path: Path, where: Any, said: str
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.compact()
    newer_manifest(registry, where)
    for attempt in (reader(registry, tmp_path).find, registry.compact):
        with pytest.raises(NewerFormatError, match=f"{said}.*Upgrade cones-registry"):
            attempt()


def test_a_fold_does_not_drop_the_columns_of_a_newer_writer(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.compact()
    newer_manifest(registry, lambda body: body["columns"]["concepts"].append("mood"))
    other = reader(registry, tmp_path)
    other.tag("alice/dog:1", add=["kept"])  # a commit loses nothing
    assert other.get("alice/dog:1").tags == ("kept",)
    before = keys(registry, "")
    for each in (registry, other):
        with pytest.raises(NewerFormatError, match=r"a column 'mood' of concepts.*Upgrade"):
            each.compact(grace=0)
    assert keys(registry, "") == before
