"""Keys of pushes: one push of a key wins, from anywhere, whatever happens on the way."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog.keys import mask_key
from cones_registry.errors import ConflictError, StoreUnavailableError

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    return Registry.create(tmp_path / "registry")


def other(registry: Registry, **options: Any) -> Registry:
    return Registry.open(registry.url, **options)


def refs(registry: Registry) -> list[str]:
    return [concept.ref for concept in other(registry).find()]


def keys(registry: Registry, prefix: str) -> list[str]:
    return [entry.key for entry in registry._session.store.list(prefix)]


def before_first(prefix: str, work: Callable[[], object]) -> Callable[[str, str], None]:
    """A fault that does `work` before the first put below a prefix."""
    done = False

    def fault(step: str, key: str) -> None:
        nonlocal done
        if step == "put" and prefix in key and not done:
            done = True
            work()

    return fault


def die() -> None:
    raise KeyboardInterrupt


def test_pushes_with_one_key_at_one_moment_are_one_version(
    registry: Registry, tmp_path: Path
) -> None:
    handles = [other(registry, cache=tmp_path / str(number)) for number in range(4)]
    for round_ in range(3):
        barrier = threading.Barrier(len(handles))
        pushed: list[str] = []

        def push(
            handle: Registry,
            barrier: threading.Barrier = barrier,
            ref: str = f"bob/x{round_}",
            pushed: list[str] = pushed,
        ) -> None:
            barrier.wait()
            pushed.append(handle.push(ref, mask_of(5), key="job", scope="prompt").ref)

        threads = [threading.Thread(target=push, args=(handle,)) for handle in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pushed) == len(handles) and len(set(pushed)) == 1
    assert len(refs(registry)) == 3
    assert other(registry).check(read_data=True).ok


@pytest.mark.parametrize("moment", ["masks/", "versions/bob/dog/1", "pushes/", "log/"])
def test_who_is_second_at_any_moment_gets_the_version_of_the_first(
    registry: Registry, moment: str
) -> None:
    first = other(registry)
    won: list[str] = []
    registry._session.store.fault = before_first(
        moment, lambda: won.append(first.push("bob/dog", mask_of(1), key="job", scope="prompt").ref)
    )
    assert (
        [registry.push("bob/dog", mask_of(1), key="job", scope="prompt").ref]
        == won
        == refs(registry)
    )
    assert other(registry).push("bob/dog", mask_of(2), scope="prompt").version > 1
    assert other(registry).check(read_data=True).ok


@pytest.mark.parametrize("moment", ["masks/", "versions/bob/dog/1", "pushes/", "log/"])
def test_a_pusher_that_dies_anywhere_does_not_hold_its_key(registry: Registry, moment: str) -> None:
    store = registry._session.store
    store.fault = before_first(moment, die)
    with pytest.raises(KeyboardInterrupt):
        registry.push("bob/dog", mask_of(1), key="job", scope="prompt")
    pushed = other(registry).push("bob/dog", mask_of(1), key="job", scope="prompt")
    assert refs(registry) == [pushed.ref]
    assert other(registry).push("bob/dog", mask_of(1), key="job", scope="prompt") == pushed
    assert other(registry).pull(pushed.ref) == mask_of(1)


def test_a_key_whose_push_died_and_whose_blob_was_pruned_can_be_used(registry: Registry) -> None:
    registry._session.store.fault = before_first("log/", die)
    for seed in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            registry._session.store.fault = before_first("log/", die)
            registry.push("bob/dog", mask_of(seed), key="job", scope="prompt")
        other(registry).plan_prune(grace=0).execute()
    pushed = other(registry).push("bob/dog", mask_of(3), key="job", scope="prompt")
    assert other(registry).push("bob/dog", mask_of(3), key="job", scope="prompt") == pushed
    assert refs(registry) == [pushed.ref] and pushed.version == 3
    assert other(registry).pull("bob/dog") == mask_of(3)


def test_the_loser_of_a_key_with_another_mask_is_refused(registry: Registry) -> None:
    first = other(registry)
    registry._session.store.fault = before_first(
        "pushes/", lambda: first.push("bob/dog", mask_of(1), key="job", scope="prompt")
    )
    with pytest.raises(ConflictError, match=r"bob/dog:2 with another mask.*new key"):
        registry.push_many(
            [
                ("bob/cat", mask_of(3), {"scope": "prompt"}),
                ("bob/dog", mask_of(2), {"key": "job", "scope": "prompt"}),
            ]
        )
    assert refs(registry) == ["bob/dog:2"]


def test_a_key_said_twice_in_one_commit_is_one_version(registry: Registry) -> None:
    twice = ("bob/dog", mask_of(1), {"key": "z", "scope": "prompt"})
    pushed = registry.push_many(
        [twice, ("bob/dog", mask_of(2), {"scope": "prompt"}), twice, ("bob/cat", *twice[1:])]
    )
    assert [each.ref for each in pushed] == ["bob/dog:1", "bob/dog:2", "bob/dog:1", "bob/cat:1"]
    again = other(registry).push_many([twice, ("bob/cow", mask_of(4), {"scope": "prompt"}), twice])
    assert [each.ref for each in again] == ["bob/dog:1", "bob/cow:1", "bob/dog:1"]
    assert sorted(refs(registry)) == ["bob/cat:1", "bob/cow:1", "bob/dog:1", "bob/dog:2"]


def test_a_key_for_two_masks_in_one_commit_is_refused_before_anything_is_written(
    registry: Registry,
) -> None:
    before = keys(registry, "")
    with pytest.raises(ConflictError, match="two different pushes to bob/dog"):
        registry.push_many(
            [("bob/dog", mask_of(seed), {"key": "z", "scope": "prompt"}) for seed in (1, 2)]
            + [("a/b", mask_of(3), {"scope": "prompt"})]
        )
    assert keys(registry, "") == before


def test_a_commit_whose_acknowledgement_was_lost_gives_each_item_its_version(
    registry: Registry,
) -> None:
    registry.push("bob/dog", mask_of(1), key="old", scope="prompt")
    items: list[Any] = [
        ("bob/dog", mask_of(1), {"key": "old", "scope": "prompt"}),
        ("bob/cat", mask_of(2), {"key": "new", "scope": "prompt"}),
        ("bob/cow", mask_of(3), {"scope": "prompt"}),
    ]
    store = registry._session.store
    create = store._create

    def lose(key: str, data: bytes) -> None:
        create(key, data)
        if key.startswith("log/"):
            raise RuntimeError("the connection broke after the object arrived")

    store._create = lose  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        registry.push_many(items)
    store._create = create  # type: ignore[method-assign]
    pushed = [each.ref for each in registry.push_many(items)]
    assert pushed == ["bob/dog:1", "bob/cat:1", "bob/cow:1"]
    assert sorted(refs(registry)) == sorted(pushed)


def test_a_key_of_a_removed_version_is_refused_until_that_is_restored(registry: Registry) -> None:
    pushed = registry.push("bob/dog", mask_of(1), key="job", scope="prompt")
    registry.remove(pushed.ref)
    with pytest.raises(ConflictError, match=r"bob/dog:1, which was removed.*cones restore bob/dog"):
        other(registry).push("bob/dog", mask_of(1), key="job", scope="prompt")
    registry.restore(pushed.ref)
    assert other(registry).push("bob/dog", mask_of(1), key="job", scope="prompt").ref == pushed.ref
    assert refs(registry) == [pushed.ref]


def test_a_key_of_a_pruned_version_is_refused(registry: Registry) -> None:
    pushed = registry.push("bob/dog", mask_of(1), key="job", scope="prompt")
    registry.remove(pushed.ref)
    registry.plan_prune(grace=0).execute()
    with pytest.raises(ConflictError, match=r"bob/dog:1, which was .* pruned. Push with a new key"):
        other(registry).push("bob/dog", mask_of(1), key="job", scope="prompt")
    again = other(registry).push("bob/dog", mask_of(1), key="job, again", scope="prompt")
    assert other(registry).pull(again.ref) == mask_of(1)


def test_a_purge_takes_keys_away_and_they_can_be_used_anew(
    registry: Registry, tmp_path: Path
) -> None:
    for key in ("mail-of-bob", "another"):
        registry.push("bob/dog", mask_of(1), key=key, scope="prompt")
    receipt = registry.plan_purge(owner="bob").execute()
    assert (receipt.records, receipt.found) == (4, 0)
    assert keys(registry, "versions/") == []
    assert not list((tmp_path / "registry").rglob("bob"))
    assert (
        other(registry).push("bob/dog", mask_of(1), key="mail-of-bob", scope="prompt").version == 3
    )


def test_no_object_is_named_by_the_text_of_a_key(registry: Registry) -> None:
    registry.push("bob/dog", mask_of(1), key="mail-of-bob", scope="prompt")
    assert len(keys(registry, "pushes/bob/dog/")) == 1
    assert not [key for key in keys(registry, "") if "mail" in key]


def test_a_push_without_a_key_asks_the_store_nothing_about_keys(registry: Registry) -> None:
    registry.push("bob/dog", mask_of(1), scope="prompt")
    registry.push("bob/dog", mask_of(2), key="job", scope="prompt")
    asked: list[str] = []
    store = registry._session.store
    get, create, listed, head = store._get, store._create, store._list, store._head
    store._get = lambda key: asked.append(key) or get(key)  # type: ignore[func-returns-value,method-assign]
    store._create = lambda key, data: asked.append(key) or create(key, data)  # type: ignore[func-returns-value,method-assign]
    store._list = lambda key: asked.append(key) or listed(key)  # type: ignore[func-returns-value,method-assign]
    store._head = lambda key: asked.append(key) or head(key)  # type: ignore[func-returns-value,method-assign]
    registry.push("bob/dog", mask_of(3), scope="prompt")
    kinds = sorted(key.partition("/")[0] for key in asked)
    assert kinds.count("versions") == kinds.count("masks") == 1
    assert "pushes" not in kinds


def test_a_rebuild_knows_which_push_of_a_key_was_first(registry: Registry, tmp_path: Path) -> None:
    first = other(registry)
    registry._session.store.fault = before_first(
        "pushes/", lambda: first.push("bob/dog", mask_of(1), key="job", scope="prompt")
    )
    registry.push("bob/dog", mask_of(1), key="job", scope="prompt")
    assert len(keys(registry, "versions/")) > 1  # the loser left a number
    pushed = refs(registry)
    for path in (tmp_path / "registry" / "log").iterdir():
        path.unlink()
    assert other(registry).check(rebuild=True).ok
    assert refs(registry) == pushed
    assert other(registry).push("bob/dog", mask_of(1), key="job", scope="prompt").ref == pushed[0]


def test_check_reads_the_claims_of_keys_and_counts_no_number_by_them(
    registry: Registry, tmp_path: Path
) -> None:
    concept = registry.push("bob/dog", mask_of(1), key="job", scope="prompt")
    assert other(registry).check(read_data=True).gaps == []
    (key,) = keys(registry, "pushes/bob/dog/")
    path = tmp_path / "registry" / key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert [p.where for p in other(registry).check(read_data=True).problems] == [key]
    (tmp_path / "registry" / "versions/bob/dog/1.json").unlink()
    problems = other(registry).check().problems
    assert [(p.kind, p.where) for p in problems] == [("unclaimed", concept.ref)]
    assert (tmp_path / "registry" / mask_key(concept.blob_digest)).exists()
