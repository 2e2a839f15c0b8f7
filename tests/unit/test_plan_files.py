"""A plan in a file is looked over again before it is applied: it never does more than a new one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry, cli
from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    NewerFormatError,
    NotFoundError,
    UsageError,
)
from cones_registry.registry.prune import PrunePlan
from cones_registry.registry.sync import SyncPlan

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    names = ("alice/dog", "alice/cat", "bob/dog")
    registry.push_many(
        (name, mask_of(seed), {"scope": "prompt"}) for seed, name in enumerate(names)
    )
    return registry


def test_a_prune_deletes_what_the_file_and_a_new_plan_both_say(
    registry: Registry, tmp_path: Path
) -> None:
    gone = registry.get("alice/cat").blob_digest
    for ref in ("alice/dog", "alice/cat", "bob/dog"):
        registry.remove(ref)
    file = tmp_path / "prune.json"
    registry.save_plan(registry.plan_prune(grace=0), file)
    # A reviewer strikes out one version, and somebody restores another.
    said = json.loads(file.read_text())
    said["versions"] = [each for each in said["versions"] if each[0] != "bob"]
    said["condemn"] = {
        digest: size
        for digest, size in said["condemn"].items()
        if digest != registry.find(owner="bob", removed=True)[0].blob_digest
    }
    file.write_text(json.dumps(said))
    registry.restore("alice/dog:1")
    plan = registry.load_plan(file)
    assert isinstance(plan, PrunePlan)
    report = plan.execute()
    assert report.condemned_versions == ("alice/cat:1",)
    assert report.deleted == (gone,)
    assert registry.pull("alice/dog") == mask_of(0)
    assert registry.restore("bob/dog:1").version == 1


def test_a_purge_is_refused_when_something_came_since(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "purge.json"
    registry.save_plan(registry.plan_purge(owner="alice"), file)
    assert json.loads(file.read_text())["names"] == {"cat": 1, "dog": 1}
    registry.push("alice/dog", mask_of(9), scope="prompt")
    with pytest.raises(ConflictError, match="alice/dog:2 came"):
        registry.load_plan(file)
    again = tmp_path / "again.json"
    registry.save_plan(registry.plan_purge(owner="alice"), again)
    registry.load_plan(again).execute()
    assert [each.ref for each in registry.find()] == ["bob/dog:1"]
    with pytest.raises(NotFoundError):
        registry.load_plan(again)


def test_a_sync_copies_what_the_file_and_a_new_plan_both_say(
    registry: Registry, tmp_path: Path
) -> None:
    dest = Registry.create(tmp_path / "dest", cache=tmp_path / "cache")
    registry.alias("alice/dog:1", "prod")
    registry.set_quota("alice", concepts=5)
    file = tmp_path / "sync.json"
    registry.save_plan(registry.plan_sync(dest), file)
    registry.push("alice/dog", mask_of(7), scope="prompt")
    registry.alias("alice/dog:2", "prod")
    plan = registry.load_plan(file, dest=dest)
    assert isinstance(plan, SyncPlan)
    assert (len(plan.versions), len(plan.aliases), len(plan.quotas)) == (3, 0, 1)
    plan.execute()
    assert {each.ref for each in dest.find()} == {"alice/dog:1", "alice/cat:1", "bob/dog:1"}
    assert not dest.find(alias="prod")
    with pytest.raises(UsageError, match="say where to"):
        registry.load_plan(file)
    elsewhere = Registry.create(tmp_path / "elsewhere", cache=tmp_path / "cache")
    with pytest.raises(UsageError, match="for the destination"):
        registry.load_plan(file, dest=elsewhere)


def test_a_file_that_is_no_plan_of_this_registry_is_refused(
    registry: Registry, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    registry.save_plan(registry.plan_prune(), file)
    with pytest.raises(ConflictError, match="there already"):
        registry.save_plan(registry.plan_prune(), file)
    other = Registry.create(tmp_path / "other", cache=tmp_path / "cache")
    with pytest.raises(UsageError, match="is a plan for the registry"):
        other.load_plan(file)
    good = file.read_text()
    for bad, error in (
        ("[]", CorruptDataError),
        (good.replace('"prune"', '"burn"'), CorruptDataError),
        (good.replace('"grace"', '"grave"'), CorruptDataError),
        (good.replace("cones-plan/1", "cones-plan/2"), NewerFormatError),
        ("[" * 100_000, CorruptDataError),
    ):
        file.write_text(bad)
        with pytest.raises(error):
            registry.load_plan(file)
    with pytest.raises(NotFoundError):
        registry.load_plan(tmp_path / "none.json")


def test_the_verbs_keep_and_apply_plans(
    registry: Registry,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONES_REGISTRY", registry.url)
    monkeypatch.chdir(tmp_path)

    def cones(*arguments: str, code: int = 0) -> str:
        assert cli.run(arguments) == code
        return "".join(capsys.readouterr())

    cones("remove", "alice/cat")
    assert "--apply prune.json" in cones("prune", "--grace", "0s", "--plan", "prune.json")
    assert registry.find(removed=True)
    cones("prune", "--apply", "prune.json", "--grace", "1h", code=2)
    cones("purge", "--apply", "prune.json", code=2)
    assert "deleted 1 mask" in cones("prune", "--apply", "prune.json", "--yes")
    cones("purge", "alice/dog", "--plan", "purge.json")
    assert "delete it" in cones("purge", "--apply", "purge.json", "--yes")
    cones("sync", registry.url, "backup", "--plan", "sync.json")
    assert not Path("backup").exists()
    # The one that was pruned keeps its number there.
    done = cones("sync", registry.url, "backup", "--apply", "sync.json")
    assert "copied 2 versions and 1 mask" in done
