"""Check finds what is lost, damaged or in doubt, and rebuild guesses nothing it need not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def test_commits_that_vanished_from_the_log_are_told_by_whoever_had_read_them(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.find()
    assert registry.check().ok
    shutil.rmtree(tmp_path / "registry" / "log")
    report = registry.check()
    assert [(each.kind, each.where) for each in report.problems] == [("lost", "alice/dog:1")]
    assert registry.check(rebuild=True).ok
    assert registry.check().ok
    assert [concept.ref for concept in registry.find()] == ["alice/dog:1"]


def test_an_older_copy_in_the_place_of_a_registry_is_told(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    shutil.copytree(tmp_path / "registry", tmp_path / "backup")
    registry.push("alice/cat", mask_of(2), scope="prompt")
    registry.find()
    shutil.rmtree(tmp_path / "registry")
    (tmp_path / "backup").rename(tmp_path / "registry")
    lost = [each.where for each in registry.check().problems if each.kind == "lost"]
    assert lost == ["alice/cat:1"]
    registry.check(rebuild=True)
    assert [concept.ref for concept in registry.find()] == ["alice/dog:1"]
    assert registry.check().ok


def test_what_was_folded_or_purged_is_not_lost(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("bob/dog", mask_of(2), scope="prompt")
    registry.find()
    registry.compact(grace=0)
    assert registry.check().ok
    registry.push("bob/dog", mask_of(3), scope="prompt")
    registry.compact(grace=0)
    registry.plan_purge(owner="alice").execute()
    assert registry.check(read_data=True).ok


@pytest.mark.parametrize(
    "place", ["quotas/alice/*.json", "aliases/alice/dog/prod/1.json", "bases/*"]
)
def test_every_small_document_is_read_too(registry: Registry, tmp_path: Path, place: str) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.alias("alice/dog", "prod")
    registry.set_quota("alice", concepts=5)
    assert registry.check(read_data=True).ok
    (path,) = (tmp_path / "registry").glob(place)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(bytes(data))
    problems = registry.check(read_data=True).problems
    assert {each.kind for each in problems} == {"corrupt"}
    assert str(path.relative_to(tmp_path / "registry")) in [each.where for each in problems]
