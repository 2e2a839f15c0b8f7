"""Concepts like one another are found, shares of concepts resolved, equal masks kept once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog.keys import mask_key
from cones_registry.codec import read_ranks
from cones_registry.errors import CorruptDataError, UsageError

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (64, 96), "a.attn2.to_v.weight": (64, 96)})
SCORES = {
    name: np.random.default_rng(number).random((64, 96), np.float32)
    for number, name in enumerate(TABLE.names)
}


def above(threshold: float) -> ConceptMask:
    """Neurons that score more, of the layers' common scores."""
    return ConceptMask.from_dense({name: s > threshold for name, s in SCORES.items()}, table=TABLE)


def random_mask(seed: int, density: float = 0.1) -> ConceptMask:
    generator = np.random.default_rng(seed)
    return ConceptMask.from_dense(
        {name: generator.random((64, 96)) < density for name in TABLE.names}, table=TABLE
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def test_the_most_alike_come_first_with_exact_numbers(registry: Registry) -> None:
    registry.push_many(
        [(f"bob/other{seed}", random_mask(seed), {"scope": "prompt"}) for seed in range(80)]
    )
    dog = above(0.9)
    registry.push("alice/dog", dog, scope="prompt")
    registry.push("alice/near", above(0.91), scope="prompt")
    registry.push("alice/far", above(0.97), scope="prompt")
    first, second, third = registry.similar("alice/dog", 3)
    assert (first.ref, second.ref) == ("alice/near:1", "alice/far:1")
    assert first.jaccard == dog.jaccard(above(0.91))
    assert first.shared_count == len(above(0.91))
    assert first.exact
    assert third.ref.startswith("bob/")
    best = max(dog.jaccard(random_mask(seed)) for seed in range(80))
    assert third.jaccard == best


def test_a_lost_blob_is_told_of_its_concept_and_left_out_of_what_is_similar(
    registry: Registry, tmp_path: Path
) -> None:
    pushed = [registry.push(f"alice/c{n}", above(0.9 + n / 100), scope="prompt") for n in range(3)]
    fresh = Registry.open(registry.url, cache=tmp_path / "fresh")
    (tmp_path / "registry" / mask_key(pushed[1].blob_digest)).unlink()
    assert [found.ref for found in fresh.similar("alice/c0")] == ["alice/c2:1"]
    for read in (fresh.pull, fresh.similar, fresh.resolve):
        with pytest.raises(CorruptDataError, match=r"mask of alice/c1:1 .*: cones check$"):
            read("alice/c1")


def test_of_a_concept_its_nearest_version_counts_and_its_own_versions_do_not(
    registry: Registry,
) -> None:
    for threshold in (0.9, 0.95):
        registry.push("alice/dog", above(threshold), scope="prompt")
    for threshold in (0.99, 0.9, 0.8):
        registry.push("bob/dog", above(threshold), scope="prompt")
    (found,) = registry.similar("alice/dog:1")
    assert (found.ref, found.jaccard) == ("bob/dog:2", 1)


def test_other_bases_removed_and_empty_concepts_are_not_similar(registry: Registry) -> None:
    registry.push("alice/dog", above(0.9), scope="prompt")
    registry.push("bob/pinned", above(0.9), base="sha256:" + "1" * 64, scope="prompt")
    registry.push("bob/empty", ConceptMask.empty(TABLE), scope="prompt")
    registry.remove(registry.push("bob/removed", above(0.9), scope="prompt"))
    assert registry.similar("alice/dog") == []
    assert registry.similar("bob/empty") == []
    with pytest.raises(UsageError, match="at least 1"):
        registry.similar("alice/dog", 0)


def test_a_near_duplicate_is_told_without_asking_the_store(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("alice/dog", above(0.9), scope="prompt")
    registry.push("alice/cat", random_mask(1), scope="prompt")
    registry.sync()
    concept = registry.push("bob/dog", above(0.901), scope="prompt")
    for name in ("_get", "_list", "_head"):
        monkeypatch.setattr(registry._session.store, name, None)
    (found,) = registry.near_duplicates(concept, above(0.901))
    assert found.ref == "alice/dog:1"
    assert not found.exact
    assert found.jaccard == pytest.approx(above(0.9).jaccard(above(0.901)), abs=0.05)


def test_sketches_survive_compaction_and_a_lost_catalogue(registry: Registry) -> None:
    registry.push("alice/dog", above(0.9), scope="prompt")
    registry.push("bob/dog", above(0.9), scope="prompt")
    sketches = "SELECT ref, sketch FROM concepts ORDER BY ref"
    before = registry.query(sketches).to_pylist()
    assert all(len(row["sketch"]) == 256 for row in before)
    registry.compact(grace=0)
    registry.tag("bob/dog", add=["late"])
    registry._session.copy.forget()
    assert registry.query(sketches).to_pylist() == before
    root = Path(registry.url.removeprefix("file://"))
    for folder in ("log", "catalog", "runs", "names"):
        for path in (root / folder).rglob("*"):
            if path.is_file():
                path.unlink()
    assert registry.check(rebuild=True).rebuilt
    assert registry.query(sketches).to_pylist()[0] == before[0]


# -- shares of concepts ---------------------------------------------------------------------------


def test_a_weight_shuts_the_share_that_ranks_highest(registry: Registry) -> None:
    mask = above(0.5)
    registry.push("alice/dog", mask, scores=SCORES, scope="prompt")
    composition = registry.resolve("alice/dog*0.25")
    (contribution,) = composition.contributions
    assert contribution.neuron_count == round(len(mask) * 0.25)
    assert composition.refs == ("alice/dog:1*0.25",)
    assert composition.mask & mask == composition.mask
    best = above(float(np.quantile(np.concatenate(list(SCORES.values())), 1 - 0.25 * mask.density)))
    assert composition.mask.jaccard(best) > 0.98
    assert registry.resolve(*composition.refs) == composition
    assert registry.resolve("alice/dog*1").digest == registry.resolve("alice/dog").digest


def test_a_mask_is_cut_to_any_lower_density_later(registry: Registry) -> None:
    mask = above(0.5)
    registry.push("alice/dog", mask, scores=SCORES, scope="prompt")
    for density in (0.3, 0.1, 0.011, 0):
        assert len(registry.pull("alice/dog", density=density)) == int(density * 12288)
    with pytest.raises(UsageError, match=r"to density 0.9; expected 0 to its own, 0\.49"):
        registry.pull("alice/dog", density=0.9)


def test_without_scores_a_share_is_refused_and_the_error_says_what_to_do(
    registry: Registry,
) -> None:
    registry.push("alice/dog", above(0.9), scope="prompt")
    assert registry.resolve("alice/dog*1").density == above(0.9).density
    with pytest.raises(UsageError, match=r"alice/dog:1 keeps no scores.*--keep-scores"):
        registry.resolve("alice/dog*0.5")
    with pytest.raises(UsageError, match="keeps no scores"):
        registry.pull("alice/dog", density=0.01)


@pytest.mark.parametrize("weight", ["0", "1.5", "-1", "", "half", "nan", "1e-1", "٠.5"])
def test_a_weight_that_is_no_share_is_refused(registry: Registry, weight: str) -> None:
    registry.push("alice/dog", above(0.9), scores=SCORES, scope="prompt")
    with pytest.raises(UsageError, match="weight"):
        registry.resolve(f"alice/dog*{weight}")


def test_one_concept_has_one_weight(registry: Registry) -> None:
    registry.push("alice/dog", above(0.9), scores=SCORES, scope="prompt")
    with pytest.raises(UsageError, match=r"weights 0\.\d and 0\.\d; name it once"):
        registry.resolve("alice/dog*0.5", "alice/dog:1*0.4")


def test_a_weight_is_no_part_of_a_ref(registry: Registry) -> None:
    registry.push("alice/dog", above(0.9), scores=SCORES, scope="prompt")
    with pytest.raises(UsageError, match=r"the character '\*'"):
        registry.get("alice/dog*0.5")


# -- equal masks ----------------------------------------------------------------------------------


def test_equal_masks_are_one_blob_unless_one_brings_scores(registry: Registry) -> None:
    plain = registry.push("alice/dog", above(0.9), scope="prompt")
    again = registry.push("bob/dog", above(0.9), scope="prompt")
    ranked = registry.push("carol/dog", above(0.9), scores=SCORES, scope="prompt")
    twin = registry.push("dave/dog", above(0.9), scores=SCORES, scope="prompt")
    after = registry.push("erin/dog", above(0.9), scope="prompt")
    assert plain.blob_digest == again.blob_digest != ranked.blob_digest
    assert twin.blob_digest == ranked.blob_digest
    assert len({each.mask_digest for each in (plain, again, ranked, twin, after)}) == 1
    assert (plain.ranked, ranked.ranked, twin.ranked) == (False, True, True)
    assert after.ranked == (after.blob_digest == ranked.blob_digest)
    assert registry.get("carol/dog").ranked


def test_scores_survive_an_archive_and_a_purge_of_others(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", above(0.9), scores=SCORES, scope="prompt")
    registry.push("bob/dog", above(0.9), scores=SCORES, scope="prompt")
    expected = registry.pull_ranks("alice/dog")
    registry.plan_purge(owner="alice").execute()
    assert (registry.pull_ranks("bob/dog") == expected).all()
    registry.export_archive(tmp_path / "a.tar.zst")
    other = Registry.create(tmp_path / "other", cache=tmp_path / "cache")
    other.import_archive(tmp_path / "a.tar.zst")
    assert (other.pull_ranks("bob/dog") == expected).all()


def test_what_is_in_memory_follows_the_catalogue(registry: Registry, tmp_path: Path) -> None:
    registry.push("alice/dog", above(0.9), token="sks", scope="prompt")
    assert registry.resolve("alice/dog").refs == ("alice/dog:1",)
    twin: Any = Registry.open(tmp_path / "registry", cache=tmp_path / "elsewhere")
    twin.push("alice/dog", above(0.8), scope="prompt")
    twin.tag("alice/dog:1", add=["x"])
    assert registry.resolve("alice/dog").refs == ("alice/dog:2",)
    assert registry.resolve("alice/dog:1").members[0].concept.tags == ("x",)
    purged = registry.get("alice/dog").blob_digest
    assert purged in registry._session.memory
    registry.plan_purge(owner="alice").execute()
    assert purged not in registry._session.memory
    assert not (tmp_path / "registry" / mask_key(purged)).exists()


def test_pinned_versions_are_resolved_whatever_the_catalogue_says_by_now(
    registry: Registry,
) -> None:
    pinned = registry.push("alice/dog", above(0.9), token="sks", scope="prompt")
    registry.push("alice/dog", above(0.8), token="sks", scope="prompt")
    registry.remove("alice/dog:1")
    found = registry.resolve_pinned([(pinned, 1.0)])
    assert (found.refs, found.mask) == (("alice/dog:1",), above(0.9))
    assert registry.resolve_pinned([(pinned, 1.0)]) is found
    registry.plan_purge(owner="alice").execute()
    with pytest.raises(CorruptDataError, match="is gone"):
        registry.resolve_pinned([(pinned, 1.0)])


def test_a_pushed_blob_holds_the_ranks(registry: Registry, tmp_path: Path) -> None:
    concept = registry.push("alice/dog", above(0.9), scores=SCORES, scope="prompt")
    data = (tmp_path / "registry" / mask_key(concept.blob_digest)).read_bytes()
    assert (read_ranks(data) == registry.pull_ranks("alice/dog")).all()
