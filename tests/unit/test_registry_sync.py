"""A sync brings another registry up to this one, loses nothing there, and can be broken off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry, cli
from cones_registry.catalog import keys
from cones_registry.catalog.events import Aliased, Pushed
from cones_registry.catalog.segments import commit_keys, decode_segment
from cones_registry.errors import ConflictError, NotFoundError, UsageError
from cones_registry.record import Provenance

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})
PICTURE = b"RIFF\x04\x00\x00\x00WEBP"


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two owners, several versions, some removed and some pruned."""
    folder = tmp_path_factory.mktemp("template")
    registry = Registry.create(folder / "source", cache=folder / "cache")
    made = Provenance("gates", seed=3, history=({"step": 1, "loss": 0.5},))
    registry.push("alice/dog", mask_of(1), scope="subject", token="sks", class_noun="dog")
    registry.push(
        "alice/dog", mask_of(2), scope="prompt", tags=["sea"], provenance=made, previews=[PICTURE]
    )
    registry.push("alice/dog", mask_of(1), scope="prompt", key="mine")
    registry.push("alice/dog", mask_of(3), scope="prompt")
    registry.push("bob/cat", mask_of(4), scope="prompt", note="a cat")
    registry.push("bob/old", mask_of(5), scope="prompt")
    registry.tag("alice/dog:2", add=["round"], remove=["sea"])
    registry.alias("alice/dog:1", "prod")
    registry.alias("alice/dog:2", "prod")
    registry.remove("alice/dog:4")
    registry.remove("bob/old")
    registry.plan_prune(grace=0).execute()
    registry.remove("alice/dog:3")
    registry.set_quota("alice", concepts=10)
    registry.close()
    return folder / "source"


@pytest.fixture
def source(template: Path, tmp_path: Path) -> Registry:
    shutil.copytree(template, tmp_path / "source")
    return Registry.open(tmp_path / "source", cache=tmp_path / "cache")


@pytest.fixture
def dest(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "dest", cache=tmp_path / "cache")


def said(registry: Registry) -> list[dict[str, object]]:
    """All that users see, in use or not."""
    every = [*registry.find(), *registry.find(removed=True)]
    return [each.to_json() for each in sorted(every, key=lambda each: each.ref)]


def objects(registry: Registry, *folders: str) -> set[str]:
    store = registry._session.store
    return {entry.key for folder in folders for entry in store.list(folder)}


def test_a_copy_says_what_the_source_says(source: Registry, dest: Registry) -> None:
    result = source.plan_sync(dest).execute()
    assert result.ok
    assert (result.versions, result.aliases, result.quotas) == (6, 1, 1)
    assert said(dest) == said(source)
    assert dest.get("alice/dog:prod").provenance == source.get("alice/dog:2").provenance
    assert dest.get("alice/dog:prod").tags == ("round",)
    assert dest.pull("alice/dog:2") == mask_of(2)
    assert dest.preview(dest.get("alice/dog:2").previews[0]) == PICTURE
    assert dest.quota("alice").concepts == 10
    assert dest.check(read_data=True).problems == []
    dest.restore("alice/dog:3")
    with pytest.raises(NotFoundError):
        dest.restore("bob/old:1")


def test_numbers_stay_given_in_a_copy(source: Registry, dest: Registry) -> None:
    source.plan_sync(dest).execute()
    assert dest.push("alice/dog", mask_of(7), scope="prompt").ref == "alice/dog:5"
    assert dest.push("bob/old", mask_of(7), scope="prompt").ref == "bob/old:2"
    dest.restore("alice/dog:3")
    assert dest.push("alice/dog", mask_of(1), scope="prompt", key="mine").ref == "alice/dog:3"


def test_a_second_sync_copies_only_what_is_new(source: Registry, dest: Registry) -> None:
    source.plan_sync(dest).execute()
    assert source.plan_sync(dest).steps == 0
    before = objects(dest, "masks/", "log/", "versions/")
    assert source.plan_sync(dest).execute().copied_bytes == 0
    assert objects(dest, "masks/", "log/", "versions/") == before
    source.push("bob/cat", mask_of(8), scope="prompt")
    source.alias("bob/cat:2", "prod")
    source.tag("bob/cat:1", add=["new"])
    source.set_quota("alice", concepts=11)
    source.restore("alice/dog:3")
    result = source.plan_sync(dest).execute()
    assert (result.versions, result.masks, result.restored, result.aliases) == (1, 1, 1, 1)
    assert said(dest) == said(source)
    assert dest.quota("alice").concepts == 11


def test_what_only_the_destination_has_stays(source: Registry, dest: Registry) -> None:
    source.plan_sync(dest).execute()
    dest.push("carl/x", mask_of(9), scope="prompt")
    dest.tag("bob/cat:1", add=["theirs"])
    dest.alias("bob/cat:1", "mine")
    source.remove("bob/cat:1")
    result = source.plan_sync(dest).execute()
    assert result.ok and result.hidden == 0
    assert {"carl/x:1", "bob/cat:1"} <= {each.ref for each in dest.find()}
    assert dest.get("bob/cat:mine").tags == ("theirs",)


def test_with_delete_it_is_hidden_and_can_be_restored(source: Registry, dest: Registry) -> None:
    source.plan_sync(dest).execute()
    dest.push("carl/x", mask_of(9), scope="prompt")
    dest.tag("alice/dog:2", add=["theirs"])
    dest.alias("alice/dog:1", "prod")
    source.remove("bob/cat:1")
    result = source.plan_sync(dest, delete=True).execute()
    assert result.ok and result.hidden == 2
    assert [each.ref for each in dest.find()] == [each.ref for each in source.find()]
    assert dest.get("alice/dog:prod").ref == "alice/dog:2"
    assert dest.get("alice/dog:2").tags == ("round",)
    assert dest.restore("carl/x:1").ref == "carl/x:1"


def test_numbers_and_aliases_that_clash_are_reported_and_left(
    source: Registry, dest: Registry
) -> None:
    mine = dest.push("bob/cat", mask_of(6), scope="prompt")
    dest.push("alice/dog", mask_of(1), scope="subject", token="sks", class_noun="dog")
    source.plan_sync(dest).execute()
    dest.alias("alice/dog:1", "prod")
    result = source.plan_sync(dest).execute()
    assert not result.ok
    assert {each.what for each in result.clashes} == {"bob/cat:1", "alice/dog:prod"}
    assert dest.get("bob/cat:1").mask_digest == mine.mask_digest
    assert dest.get("alice/dog:prod").version == 1
    assert dest.get("alice/dog:2").mask_digest == mask_of(2).digest


def test_a_filter_copies_no_more_and_hides_no_more(source: Registry, dest: Registry) -> None:
    result = source.plan_sync(dest, filters=["owner=alice"]).execute()
    assert {each.owner for each in dest.find()} == {"alice"}
    assert result.quotas == 0
    dest.push("carl/x", mask_of(9), scope="prompt")
    dest.push("alice/x", mask_of(9), scope="prompt")
    assert source.plan_sync(dest, filters=["owner=alice"], delete=True).hide == (("alice", "x", 1),)


def test_what_the_destination_purged_does_not_come_back(source: Registry, dest: Registry) -> None:
    source.plan_sync(dest).execute()
    dest.plan_purge(ref="alice/dog").execute()
    result = source.plan_sync(dest).execute()
    assert result.ok
    assert result.purged == tuple(f"alice/dog:{number}" for number in (1, 2, 3, 4))
    assert not objects(dest, "versions/alice/", "aliases/alice/")
    assert dest.plan_sync(source).purged_at_source == ("alice/dog",)


def test_a_purge_of_the_source_is_named_and_not_copied(source: Registry, dest: Registry) -> None:
    source.plan_sync(dest).execute()
    source.plan_purge(owner="bob").execute()
    result = source.plan_sync(dest).execute()
    assert result.purged_at_source == ("bob/cat", "bob/old")
    assert dest.get("bob/cat").version == 1


def test_a_version_whose_mask_is_lost_or_damaged_is_named_and_the_rest_copied(
    source: Registry, dest: Registry, tmp_path: Path
) -> None:
    digest = source.get("bob/cat").blob_digest
    (tmp_path / "source" / keys.mask_key(digest)).write_bytes(b"damaged")
    result = source.plan_sync(dest).execute()
    assert [each.what for each in result.problems] == ["bob/cat:1"]
    assert "bob/cat:1" not in {each.ref for each in dest.find()}
    assert dest.get("alice/dog:prod").version == 2
    assert dest.check(read_data=True).problems == []


def test_one_place_is_not_source_and_destination(source: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both source and destination"):
        source.plan_sync(Registry.open(tmp_path / "source", cache=tmp_path / "cache"))
    with pytest.raises(UsageError, match="read-only"):
        target = Registry.create(tmp_path / "there", cache=tmp_path / "cache")
        reader = Registry.open(target.url, read_only=True, cache=tmp_path / "cache")
        source.plan_sync(reader).execute()


def test_a_reader_of_the_destination_never_sees_what_leads_nowhere(
    source: Registry, dest: Registry
) -> None:
    """At every object that is written, what the log says by then is there."""
    store = dest._session.store
    seen = 0

    def look(step: str, key: str) -> None:
        nonlocal seen
        if step != "put-done":
            return
        seen += 1
        versions: dict[tuple[str, str, int], Pushed] = {}
        aliases = []
        for each in commit_keys(store):
            for event in decode_segment(each, store.get(each)).events:
                if isinstance(event, Pushed):
                    versions[event.key] = event
                elif isinstance(event, Aliased):
                    aliases.append(event)
        for version in versions.values():
            record = version.record
            assert store.head(keys.base_key(record.base))
            assert store.head(keys.version_key(*record.place))
            assert all(store.head(keys.preview_key(each)) for each in record.previews)
            # The one that was pruned at the source has no mask.
            assert (
                store.head(keys.mask_key(record.blob_digest))
                or record.name == "old"
                or (record.place == ("alice", "dog", 4))
            )
        assert all(event.key in versions for event in aliases)

    store.fault = look
    source.plan_sync(dest).execute()
    assert seen > 10


class Stopped(BaseException):
    """The run was broken off; nothing on the way may take it for a fault of the store."""


@pytest.mark.parametrize("first", [1, 4, 7])
def test_a_run_that_was_broken_off_goes_on(source: Registry, tmp_path: Path, first: int) -> None:
    """Each ninth step in turn is the last of a run; the next run ends with all of it."""
    expected = said(source)
    step = first
    while True:
        dest = Registry.create(tmp_path / f"dest-{step}", cache=tmp_path / "cache")
        stopped = _is_stopped_at(step, dest, source.plan_sync(dest).execute)
        half = Registry.open(dest.url, cache=tmp_path / "cache")
        for concept in half.find():
            assert half.pull(concept).digest == concept.mask_digest
        result = source.plan_sync(half).execute()
        assert result.ok, (step, result)
        assert said(half) == expected, step
        assert half.check(read_data=True).problems == [], step
        if not stopped:
            break
        step += 9
    assert step > 30


def _is_stopped_at(step: int, dest: Registry, work: Callable[[], object]) -> bool:
    """Break `work` off at one step in the destination's store; False where it has fewer."""
    count = 0

    def fault(_: str, key: str) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise Stopped(key)

    dest._session.store.fault = fault
    try:
        work()
    except Stopped:
        return True
    return False


def test_the_command_says_what_it_did(
    source: Registry,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    there = str(tmp_path / "backup")

    def cones(*arguments: str, code: int = 0) -> str:
        assert cli.run(["sync", source.url, there, *arguments]) == code
        out, err = capsys.readouterr()
        return out or err

    assert "one would be made" in cones("--dry-run")
    assert not Path(there).exists()
    assert json.loads(cones("--dry-run", "--json"))["versions"][0] == "alice/dog:1"
    assert json.loads(cones("--json"))["versions"] == 6
    copy = Registry.open(there, cache=tmp_path / "cache")
    assert said(copy) == said(source)
    copy.push("carl/x", mask_of(9), scope="prompt")
    cones("--delete", code=2)
    cones("--delete", "--yes")
    assert not copy.find(owner="carl")
    copy.alias("alice/dog:1", "prod")
    assert "alice/dog:prod says something else" in cones(code=ConflictError.exit_code)
