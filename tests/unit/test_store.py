"""A store says which place it is, and reads parts of objects."""

import time
from pathlib import Path

import pytest

from cones_registry import Registry
from cones_registry.errors import NotFoundError, UsageError
from cones_registry.store import Store, open_store


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_range_is_read_as_it_was_asked_for(kind: str, tmp_path: Path) -> None:
    store = open_store(tmp_path if kind == "disk" else f"memory://{tmp_path.name}-ranges")
    store.put_new("runs/a", b"0123456789")
    assert store.get_range("runs/a", 2, 5) == b"234"
    assert store.get_range("runs/a", 8, 50) == b"89"
    with pytest.raises(NotFoundError, match="no object"):
        store.get_range("runs/b", 0, 1)
    with pytest.raises(UsageError, match="no range"):
        store.get_range("runs/a", 5, 5)


def test_one_bucket_name_on_two_servers_is_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    here = open_store("s3://models/x", endpoint_url="http://127.0.0.1:1")
    there = open_store("s3://models/x", endpoint_url="http://127.0.0.1:2")
    assert here.url == there.url
    assert here.place != there.place
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:3")
    assert "127.0.0.1:3" in open_store("s3://models/x").place


def test_a_store_that_is_open_can_be_given_in_place_of_a_url(tmp_path: Path) -> None:
    store = open_store(tmp_path / "registry")
    with Registry.create(store, cache=tmp_path / "cache") as registry:
        assert registry.url == store.url
    with Registry.open(store, cache=tmp_path / "cache") as registry:
        assert registry.find() == []


@pytest.mark.parametrize("url", ["folder", "memory://time"])
def test_a_store_says_what_time_it_is_and_keeps_nothing_of_that(url: str, tmp_path: Path) -> None:
    store = open_store(tmp_path if url == "folder" else url)
    for asked in (store.now, lambda: Store.now(store)):
        now = asked()
        assert now is not None
        assert abs(now - time.time()) < 60
    assert store.list("") == []
