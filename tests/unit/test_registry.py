"""The registry's rules, on a local disk."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import (
    BaseModelMismatchError,
    ClockError,
    ConflictError,
    CorruptDataError,
    LimitExceededError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.record import Provenance

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16), "a.attn2.to_v.weight": (16, 16)})
OTHER = LayerTable.from_shapes({"b.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int, table: LayerTable = TABLE) -> ConceptMask:
    generator = np.random.default_rng(seed)
    return ConceptMask.from_indices(
        table,
        {
            layer.name: np.flatnonzero(generator.random(layer.neuron_count) < 0.1).astype(np.int32)
            for layer in table.layers
        },
    )


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    return Registry.create(tmp_path / "registry")


def other(registry: Registry, **options: Any) -> Registry:
    return Registry.open(registry.url, **options)


def test_versions_count_up_and_each_names_one_mask(registry: Registry) -> None:
    for number in range(1, 4):
        assert registry.push("alice/dog", mask_of(number), scope="prompt").version == number
    assert [registry.pull(f"alice/dog:{n}") for n in (1, 2, 3)] == [mask_of(n) for n in (1, 2, 3)]
    assert registry.get("alice/dog").version == 3


def test_versions_looked_up_together_are_those_looked_up_one_by_one(registry: Registry) -> None:
    for number in range(3):
        registry.push("alice/dog", mask_of(number), scope="prompt")
        registry.push("bob/dog", mask_of(10 + number), scope="prompt")
    refs = ["bob/dog:2", "alice/dog:1", "alice/dog:3", "bob/dog", "bob/dog:2"]
    assert other(registry).pull_many(refs) == [other(registry).pull(ref) for ref in refs]
    registry.remove("alice/dog:3")
    for missing, told in (("alice/dog:3", "was removed"), ("alice/dog:7", "no version")):
        with pytest.raises(NotFoundError, match=told):
            other(registry).pull_many(["alice/dog:1", missing, "bob/dog:2"])


def test_what_is_pushed_is_what_is_got(registry: Registry) -> None:
    provenance = Provenance(
        "gates",
        7,
        {"steps": 3},
        ("sha256:" + "0" * 64,),
        ({"loss": 1.5}, {"loss": 0.5}),
        {"torch": "2"},
        "a photo of sks dog",
        "2026-01-01T00:00:00Z",
        ("bob/cat:1",),
    )
    pushed = registry.push(
        "alice/dog",
        mask_of(1),
        scope="subject",
        tags=["b", "a", "b"],
        note="good\nboy",
        token="sks",
        class_noun="teddy bear",
        provenance=provenance,
    )
    got = other(registry).get("alice/dog")
    assert got == pushed
    assert got.provenance == provenance
    assert got.tags == ("a", "b")
    assert (got.scope, got.token, got.class_noun) == ("subject", "sks", "teddy bear")
    assert got.neuron_count == len(mask_of(1))
    assert got.base == TABLE.digest


def test_a_ref_without_owner_has_the_default_owner(registry: Registry) -> None:
    assert registry.push("dog", mask_of(1), scope="prompt").ref == "local/dog:1"
    assert registry.get("dog").owner == "local"
    assert (
        other(registry, default_owner="alice").push("dog", mask_of(1), scope="prompt").owner
        == "alice"
    )


def test_a_digest_ref_names_the_mask(registry: Registry) -> None:
    registry.push_many(
        [("a/x", mask_of(1), {"scope": "prompt"}), ("a/y", mask_of(2), {"scope": "prompt"})]
    )
    assert registry.get(f"a/x@{mask_of(1).digest}").ref == "a/x:1"
    with pytest.raises(NotFoundError):
        registry.get(f"a/x@{mask_of(2).digest}")


@pytest.mark.parametrize("ref", ["alice/dog:1", "alice/dog:prod", "alice/dog@sha256:" + "0" * 64])
def test_nobody_pushes_to_a_version(registry: Registry, ref: str) -> None:
    with pytest.raises(UsageError, match="the registry gives the version"):
        registry.push(ref, mask_of(1), scope="prompt")


def test_a_bare_mask_must_say_where_it_acts(registry: Registry) -> None:
    for item in (("alice/dog", mask_of(1)), {"ref": "alice/dog", "mask": mask_of(1)}):
        with pytest.raises(UsageError, match=r"scope='subject', token=.*scope='prompt'"):
            registry.push_many([item])
    with pytest.raises(UsageError, match="does not say where it acts"):
        registry.push("alice/dog", mask_of(1), token="sks")
    assert registry.find() == []


def test_push_many_is_all_or_nothing(registry: Registry) -> None:
    with pytest.raises(UsageError):
        registry.push_many(
            [
                ("alice/dog", mask_of(1), {"scope": "prompt"}),
                ("alice/../x", mask_of(2), {"scope": "prompt"}),
            ]
        )
    assert registry.find() == []
    scope = {"scope": "prompt"}
    many = [("a/x", mask_of(1), scope), {"ref": "a/x", "mask": mask_of(2), "tags": ["t"], **scope}]
    assert [each.ref for each in registry.push_many(many)] == ["a/x:1", "a/x:2"]
    assert registry.push_many([]) == []


def test_an_alias_moves_only_from_where_it_is_expected(registry: Registry) -> None:
    for number in range(3):
        registry.push("alice/dog", mask_of(number), scope="prompt")
    with pytest.raises(NotFoundError, match="no alias 'alice/dog:prod'; the newest version is 3"):
        registry.get("alice/dog:prod")
    assert registry.alias("alice/dog:1", "prod", expect=0).aliases == ("prod",)
    with pytest.raises(ConflictError, match="names version 1, expected version 2"):
        registry.alias("alice/dog:3", "prod", expect=2)
    registry.alias("alice/dog:3", "prod", expect=1)
    for wrong in ("²", "9" * 5000, True):
        with pytest.raises(UsageError):
            registry.alias("alice/dog:3", "prod", expect=wrong)
    assert other(registry).get("alice/dog:prod").version == 3
    assert registry.alias("alice/dog:prod", "stable").aliases == ("prod", "stable")
    with pytest.raises(UsageError, match="version number"):
        registry.alias("alice/dog", "7")


def test_a_claimed_move_of_an_alias_is_finished_by_the_next_one_to_move_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push_many([("a/x", mask_of(n), {"scope": "prompt"}) for n in range(3)])

    def die(step: str, key: str) -> None:
        if step == "put" and key.startswith("log/"):
            raise KeyboardInterrupt

    registry._session.store.fault = die
    with pytest.raises(KeyboardInterrupt):
        registry.alias("a/x:1", "prod", expect=0)
    second = other(registry)
    with pytest.raises(NotFoundError):
        second.get("a/x:prod")
    with pytest.raises(ConflictError, match="names version 1"):
        second.alias("a/x:2", "prod", expect=0)
    assert second.get("a/x:prod").version == 1
    assert second.alias("a/x:2", "prod", expect=1).version == 2


def test_tags_are_added_and_removed(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), tags=["a", "b"], scope="prompt")
    assert registry.tag("alice/dog", add=["c"], remove=["a"]).tags == ("b", "c")
    assert [each.ref for each in other(registry).find(tag="c")] == ["alice/dog:1"]
    assert registry.find(tag="a") == []
    assert registry.find(tag=["b", "c"]) != []
    with pytest.raises(UsageError, match="both add and remove"):
        registry.tag("alice/dog", add=["x"], remove=["x"])


def test_a_removed_version_is_hidden_and_can_be_restored(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("alice/dog", mask_of(2), scope="prompt")
    assert registry.remove("alice/dog").ref == "alice/dog:2"
    assert registry.get("alice/dog").version == 1
    assert [each.version for each in registry.find()] == [1]
    assert [each.version for each in registry.find(removed=True)] == [2]
    for call in (registry.get, registry.pull, registry.resolve, registry.remove):
        with pytest.raises(NotFoundError, match="cones restore alice/dog:2"):
            call("alice/dog:2")
    assert registry.push("alice/dog", mask_of(3), scope="prompt").version == 3
    assert registry.restore("alice/dog").version == 2
    with pytest.raises(NotFoundError, match="not removed"):
        registry.restore("alice/dog:2")


def test_a_wrong_name_is_met_with_a_near_one(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    with pytest.raises(NotFoundError, match="Did you mean 'alice/dog'"):
        registry.get("alice/dgo")
    with pytest.raises(NotFoundError, match="no version 'alice/dog:9'; the newest version is 1"):
        registry.get("alice/dog:9")


def test_find_fits_every_condition(registry: Registry) -> None:
    registry.push(
        "alice/dog", mask_of(1), tags=["animal"], token="sks", note="Brown fur", scope="prompt"
    )
    registry.push("alice/cat", mask_of(2), tags=["animal"], scope="subject", token="zwx")
    registry.push("bob/dog", mask_of(3, OTHER), scope="prompt")
    refs = {
        "owner": {"owner": "alice"},
        "name": {"name": "dog"},
        "path": {"name": "alice/dog"},
        "scope": {"scope": "subject"},
        "base": {"base": OTHER.digest},
        "token": {"token": "sks"},
        "text": {"text": "brown"},
        "where": {"where": ("neuron_count > ? AND owner = ?", [0, "bob"])},
    }
    found = {key: [c.ref for c in registry.find(**options)] for key, options in refs.items()}  # type: ignore[arg-type]
    assert found == {
        "owner": ["alice/cat:1", "alice/dog:1"],
        "name": ["bob/dog:1", "alice/dog:1"],
        "path": ["alice/dog:1"],
        "scope": ["alice/cat:1"],
        "base": ["bob/dog:1"],
        "token": ["alice/dog:1"],
        "text": ["alice/dog:1"],
        "where": ["bob/dog:1"],
    }
    assert [c.ref for c in registry.find(limit=1)] == ["bob/dog:1"]


def test_a_base_is_pinned_by_its_fingerprint(registry: Registry) -> None:
    base = SimpleNamespace(
        fingerprint="sha256:" + "a" * 64, layer_table=TABLE, published_source="org/model"
    )
    pushed = registry.push("alice/dog", mask_of(1), base=base, scope="prompt")
    assert pushed.base == base.fingerprint
    known = registry.base(base.fingerprint)
    assert (known.table, known.source, known.pinned) == (TABLE, "org/model", True)
    with pytest.raises(BaseModelMismatchError):
        registry.push("alice/cat", mask_of(1, OTHER), base=base, scope="prompt")
    with pytest.raises(BaseModelMismatchError):
        registry.push("alice/cat", mask_of(1, OTHER), base=base.fingerprint, scope="prompt")


@pytest.mark.parametrize("source", [None, "/home/al/m", "../m", "models", "~/m", "a/b/c", 3])
def test_what_is_no_hub_id_is_not_published(registry: Registry, source: object) -> None:
    home = SimpleNamespace(
        fingerprint="sha256:" + "b" * 64,
        layer_table=TABLE,
        source="models/sd14",  # a path may look like a hub id
        published_source=source,
    )
    registry.push("alice/dog", mask_of(1), base=home, scope="prompt")
    assert registry.base(home.fingerprint).source is None


def test_resolve_combines_what_is_stored(registry: Registry) -> None:
    registry.push("a/x", mask_of(1), scope="prompt")
    registry.push("a/y", mask_of(2), scope="prompt")
    composition = registry.resolve("a/y", "a/x")
    assert composition.mask == mask_of(1) | mask_of(2)
    assert composition.refs == ("a/x:1", "a/y:1")
    registry.push("a/z", mask_of(3, OTHER), scope="prompt")
    with pytest.raises(BaseModelMismatchError, match=r"a/x:1.*a/z:1"):
        registry.resolve("a/x", "a/z")


def test_a_key_makes_one_version_from_any_number_of_pushes(registry: Registry) -> None:
    first = registry.push("alice/dog", mask_of(1), key="job-7", scope="prompt")
    assert (
        other(registry).push("alice/dog", mask_of(1), key="job-7", scope="prompt").version
        == first.version
    )
    assert registry.push("alice/dog", mask_of(1), scope="prompt").version == 2
    with pytest.raises(ConflictError, match="another mask"):
        registry.push("alice/dog", mask_of(2), key="job-7", scope="prompt")


def test_a_key_finds_the_version_of_a_pusher_that_died_before_the_commit(
    registry: Registry,
) -> None:
    def die(step: str, key: str) -> None:
        if step == "put" and key.startswith("log/"):
            raise KeyboardInterrupt

    registry._session.store.fault = die
    with pytest.raises(KeyboardInterrupt):
        registry.push("alice/dog", mask_of(1), key="job-7", scope="prompt")
    again = other(registry)
    assert again.find() == []
    assert again.push("alice/dog", mask_of(1), key="job-7", scope="prompt").version == 1
    assert [each.version for each in again.find()] == [1]
    assert again.check(read_data=True).ok


def test_a_push_repeated_after_a_lost_acknowledgement_is_one_version(registry: Registry) -> None:
    store = registry._session.store
    create: Callable[[str, bytes], None] = store._create

    def lose(key: str, data: bytes) -> None:
        create(key, data)
        if key.startswith("log/"):
            raise RuntimeError("the connection broke after the object arrived")

    store._create = lose  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        registry.push("alice/dog", mask_of(1), scope="prompt")
    store._create = create  # type: ignore[method-assign]
    assert registry.push("alice/dog", mask_of(1), scope="prompt").version == 1
    assert [each.ref for each in other(registry).find()] == ["alice/dog:1"]
    assert registry.push("alice/dog", mask_of(1), scope="prompt").version == 2


def test_a_quota_is_enforced_for_every_writer(registry: Registry) -> None:
    registry.push("alice/a", mask_of(1), scope="prompt")
    second = other(registry)
    registry.set_quota("alice", concepts=2, bytes=10**6)
    second.push("alice/b", mask_of(2), scope="prompt")
    second.push("alice/b", mask_of(3), scope="prompt")
    with pytest.raises(LimitExceededError, match="would keep 3 concepts; the quota is 2"):
        second.push("alice/c", mask_of(4), scope="prompt")
    second.push("bob/c", mask_of(4), scope="prompt")
    registry.remove("alice/a")
    second.push("alice/c", mask_of(4), scope="prompt")
    used = registry.usage("alice")
    assert used[0] == 2
    registry.set_quota("alice", bytes=used[1])
    with pytest.raises(LimitExceededError, match="bytes"):
        registry.push("alice/b", mask_of(5), scope="prompt")
    registry.set_quota("alice")
    registry.push("alice/b", mask_of(5), scope="prompt")
    assert registry.quotas() == []


def test_a_read_only_registry_refuses_every_change(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    reader = other(registry, read_only=True)
    assert reader.pull("alice/dog") == mask_of(1)
    for change in (
        lambda: reader.push("alice/dog", mask_of(1), scope="prompt"),
        lambda: reader.alias("alice/dog", "prod"),
        lambda: reader.tag("alice/dog", add=["x"]),
        lambda: reader.remove("alice/dog"),
        lambda: reader.restore("alice/dog"),
        lambda: reader.compact(),
        lambda: reader.set_quota("alice", concepts=1),
        lambda: reader.plan_prune().execute(),
        lambda: reader.plan_purge(owner="alice").execute(),
    ):
        with pytest.raises(UsageError, match="read-only"):
            change()


def test_a_damaged_blob_is_never_returned(registry: Registry, tmp_path: Path) -> None:
    pushed = registry.push("alice/dog", mask_of(1), scope="prompt")
    (path,) = (tmp_path / "registry" / "masks").rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match="damaged"):
        registry.pull(pushed)
    report = registry.check(read_data=True)
    assert [problem.kind for problem in report.problems] == ["corrupt"]
    assert registry.check().ok


def test_a_damaged_segment_is_told_and_can_be_rebuilt(registry: Registry, tmp_path: Path) -> None:
    registry.push("alice/dog", mask_of(1), tags=["x"], scope="prompt")
    registry.push("alice/dog", mask_of(2), scope="prompt")
    registry.alias("alice/dog:1", "prod")
    first = sorted((tmp_path / "registry" / "log").iterdir())[0]
    data = bytearray(first.read_bytes())
    data[20] ^= 1
    first.write_bytes(data)
    fresh = other(registry, cache=tmp_path / "elsewhere")
    with pytest.raises(CorruptDataError, match="damaged"):
        fresh.find()
    assert not fresh.check().ok
    report = fresh.check(rebuild=True)
    assert report.ok
    assert report.set_aside == [f"log/{first.name}"]
    assert [path.read_bytes() for path in (tmp_path / "registry").glob("aside/*/log/*")] == [
        bytes(data)
    ]
    assert fresh.get("alice/dog:prod").tags == ("x",)
    assert fresh.push("alice/dog", mask_of(3), scope="prompt").version == 3


def test_with_log_and_runs_lost_the_catalogue_is_made_again(
    registry: Registry, tmp_path: Path
) -> None:
    history = Provenance("gates", history=({"loss": 1.0},))
    registry.push("alice/dog", mask_of(1), tags=["x"], provenance=history, scope="prompt")
    registry.push("bob/dog", mask_of(1), scope="prompt")
    registry.alias("alice/dog", "prod")
    registry.compact(grace=0)
    before = registry.find()
    for folder in ("log", "catalog", "runs"):
        for path in (tmp_path / "registry" / folder).iterdir():
            path.unlink()
    report = registry.check(rebuild=True, read_data=True)
    assert report.ok
    assert registry.find() == before
    assert registry.get("alice/dog:prod").provenance == history


def test_a_registry_of_a_later_version_is_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "registry" / "cones.json"
    path.write_bytes(path.read_bytes().replace(b"cones-registry/2", b"cones-registry/3"))
    with pytest.raises(CorruptDataError):
        other(registry)


def test_a_lost_or_damaged_local_copy_is_made_again(registry: Registry, tmp_path: Path) -> None:
    registry.push("alice/dog", mask_of(1), scope="prompt")
    assert len(registry.find()) == 1
    registry.close()
    for path in (tmp_path / "cache").rglob("*.duckdb"):
        path.write_bytes(b"not a database" * 1000)
    assert len(other(registry).find()) == 1
    registry.close()
    for path in (tmp_path / "cache").rglob("*.duckdb"):
        path.unlink()
    assert len(other(registry).find()) == 1


def test_a_copy_made_again_shows_the_log_while_an_older_state_is_still_open(
    registry: Registry, tmp_path: Path
) -> None:
    held = registry._session.fresh().connection.cursor()  # as a slow query does
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry._session.copy.forget()
    assert [each.ref for each in registry.find()] == ["alice/dog:1"]
    assert registry.query("SELECT ref FROM concepts").to_pylist() == [{"ref": "alice/dog:1"}]
    # So does a handle whose folder was made again behind its back.
    reader = other(registry)
    assert len(reader.find()) == 1
    registry.push("alice/cat", mask_of(2), scope="prompt")
    registry._session.copy.forget()
    assert len(registry.find()) == len(reader.find()) == 2
    held.close()


@pytest.mark.parametrize(
    ("off", "words"), [(-30 * 86400, "30 days ahead of"), (7300, "2 hours behind")]
)
def test_a_machine_of_another_time_changes_nothing_and_is_told(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, off: float, words: str
) -> None:
    store = registry._session.store
    monkeypatch.setattr(store, "now", lambda: time.time() + off)
    with pytest.raises(ClockError, match=f"{words} that of .*at most 10 minutes") as refused:
        registry.push("alice/dog", mask_of(1), scope="prompt")
    assert refused.value.exit_code == 16
    assert registry.find() == []
    monkeypatch.setattr(store, "now", lambda: time.time() + 300)
    registry.push("alice/dog", mask_of(1), scope="prompt")
    monkeypatch.setattr(store, "now", lambda: None)  # a store that does not say
    registry.remove("alice/dog")
