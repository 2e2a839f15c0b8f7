"""The store kit: one set of rules for every backend; raw access bypasses the store under test."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pytest

from cones_registry.errors import NotFoundError, StoreUnavailableError, UsageError
from cones_registry.store import KeyExistsError, Store, open_store
from cones_registry.store.probe import probe

Place = Any  # of conftest.py: .url and .options


def store_at(place: Place) -> Store:
    return open_store(place.url, **place.options)


def raw(place: Place, key: str) -> tuple[Any, str]:
    """(file system, path) that reach an object without the store."""
    filesystem, path = fsspec.core.url_to_fs(
        f"{place.url}/{key}", **place.options, use_listings_cache=False, skip_instance_cache=True
    )
    return filesystem, path


def raw_write(place: Place, key: str, data: bytes) -> None:
    filesystem, path = raw(place, key)
    filesystem.makedirs(filesystem._parent(path), exist_ok=True)
    filesystem.pipe_file(path, data)


def test_what_is_put_is_what_is_there(place: Place) -> None:
    store_at(place).put_new("log/a", b"\x00bytes")
    filesystem, path = raw(place, "log/a")
    assert filesystem.cat_file(path) == b"\x00bytes"


def test_what_is_there_is_what_is_read(place: Place) -> None:
    raw_write(place, "log/a", b"others wrote this")
    store = store_at(place)
    assert store.get("log/a") == b"others wrote this"
    entry = store.head("log/a")
    assert entry is not None
    assert (entry.key, entry.size) == ("log/a", 17)
    assert [each.key for each in store.list("log/")] == ["log/a"]


def test_a_create_never_overwrites(place: Place) -> None:
    store = store_at(place)
    store.put_new("a", b"first")
    with pytest.raises(KeyExistsError, match="exists already"):
        store.put_new("a", b"second")
    filesystem, path = raw(place, "a")
    assert filesystem.cat_file(path) == b"first"


def test_the_same_bytes_again_are_one_put(place: Place) -> None:
    store = store_at(place)
    store.put_new("a", b"same")
    store.put_new("a", b"same")
    assert store.get("a") == b"same"


def test_of_several_objects_put_at_once_those_taken_stay_and_are_told(place: Place) -> None:
    store = store_at(place)
    store.put_new("names/b", b"first")
    objects = {"names/a": b"a", "names/b": b"second", "log/c": b"c"}
    assert store.put_many(objects.items()) == ["names/b"]
    found = {key: data for key, data in store.get_many([*objects, "names/d"])}
    assert found == {"names/a": b"a", "names/b": b"first", "log/c": b"c", "names/d": None}
    assert store.put_many(objects.items()) == ["names/b"]


def test_a_probe_finds_nothing_wrong_and_leaves_nothing(place: Place) -> None:
    store = store_at(place)
    assert [each for each in probe(store) if each.ok is False] == []
    assert store.list("") == []


def test_of_many_racers_one_wins(place: Place) -> None:
    store = store_at(place)
    barrier = threading.Barrier(16)

    def race(number: int) -> int | None:
        barrier.wait()
        try:
            store.put_new("names/a/b/1", b"racer %d" % number)
        except KeyExistsError:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(race, range(16)) if number is not None]
    assert len(winners) == 1
    assert store.get("names/a/b/1") == b"racer %d" % winners[0]


def test_a_listing_shows_everything_below_a_folder_in_order(place: Place) -> None:
    store = store_at(place)
    for key in ("log/b", "log/a", "logs/c", "names/x/y/10", "names/x/y/9", "log/deep/er"):
        store.put_new(key, key.encode())
    assert [each.key for each in store.list("log/")] == ["log/a", "log/b", "log/deep/er"]
    assert [each.key for each in store.list("names/x/")] == ["names/x/y/10", "names/x/y/9"]
    assert store.list("nothing/") == []
    everything = store.list("")
    assert len(everything) == 6
    assert all(each.size == len(each.key) and each.modified > 1.7e9 for each in everything)


def test_a_listing_shows_what_was_put_a_moment_ago(place: Place) -> None:
    store, other = store_at(place), store_at(place)
    for number in range(5):
        store.put_new(f"log/{number}", b"x")
        assert len(other.list("log/")) == number + 1
        store.delete("log/0")
        assert len(other.list("log/")) == number
        raw_write(place, "log/0", b"x")


@pytest.mark.slow
def test_more_than_one_page_is_listed(s3_place: Place) -> None:
    store = store_at(s3_place)
    keys = [f"log/{number:05d}" for number in range(1100)]
    list(store.each(lambda key: store.put_new(key, b"x"), keys))
    assert [each.key for each in store.list("log/")] == keys


def test_what_is_not_there_is_not_found(place: Place) -> None:
    store = store_at(place)
    with pytest.raises(NotFoundError, match="no object 'log/a'"):
        store.get("log/a")
    assert store.head("log/a") is None
    assert dict(store.get_many(["log/a", "log/b"])) == {"log/a": None, "log/b": None}


def test_a_delete_removes_and_may_be_repeated(place: Place) -> None:
    store = store_at(place)
    store.put_new("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    assert store.head("a/b") is None
    store.put_new("a/b", b"y")
    assert store.get("a/b") == b"y"


def test_several_are_deleted_at_once_also_those_that_are_not_there(place: Place) -> None:
    store = store_at(place)
    keys = [f"log/{number}" for number in range(7)]
    store.put_many((key, b"x") for key in [*keys, "log/kept"])
    store.delete_many([*keys[:5], "log/never", *keys[5:]])
    assert [entry.key for entry in store.list("log/")] == ["log/kept"]


def test_objects_of_megabytes_are_created_conditionally(place: Place) -> None:
    require_conditional_create(store_at(place), bytes(3 * 2**20))


def test_objects_that_s3fs_would_split_are_created_in_one_put(moto_place: Place) -> None:
    require_conditional_create(store_at(moto_place), bytes(120 * 2**20))


def require_conditional_create(store: Store, large: bytes) -> None:
    store.put_new("large", large)
    entry = store.head("large")
    assert entry is not None
    assert entry.size == len(large)
    with pytest.raises(KeyExistsError):
        store.put_new("large", b"small")


def test_get_many_keeps_the_order(place: Place) -> None:
    store = store_at(place)
    keys = [f"k/{number}" for number in range(100)]
    list(store.each(lambda key: store.put_new(key, key.encode()), keys))
    assert list(store.get_many(keys)) == [(key, key.encode()) for key in keys]


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "a\\b", "a\nb", "x" * 1000]
)
def test_a_key_cannot_leave_the_place(place: Place, key: str) -> None:
    store = store_at(place)
    calls: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.put_new(key, b""),
        lambda: store.delete(key),
        lambda: store.head(key),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="is not a key"):
            call()


def test_a_wrong_endpoint_is_unavailable_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cones_registry.store.base.ATTEMPTS", 2)
    options = {
        "key": "a",
        "secret": "b",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 1}},
        "client_kwargs": {"region_name": "x"},
    }
    with pytest.raises(StoreUnavailableError, match="cannot list"):
        open_store("s3://bucket/x", **options).list("")


def test_a_missing_bucket_is_not_found(moto_options: dict[str, Any]) -> None:
    with pytest.raises(NotFoundError):
        open_store("s3://no-such-bucket/x", **moto_options).get("cones.json")


def test_trouble_of_a_full_disk_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(place)

    def full(key: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_create", full)
    with pytest.raises(StoreUnavailableError, match="No space left"):
        store.put_new("a", b"x")
