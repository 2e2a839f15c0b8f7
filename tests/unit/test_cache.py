"""Rules of the one cache in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from cones_registry.cache import ByteCache


def test_byte_cache_keeps_what_was_used_last_within_its_bound() -> None:
    cache: ByteCache[bytes] = ByteCache(10, len)
    loads: list[str] = []

    def get(key: str, size: int = 4) -> bytes:
        def load() -> bytes:
            loads.append(key)
            return bytes(size)

        return cache.get(key, load)

    get("a"), get("b"), get("a"), get("c")
    assert loads == ["a", "b", "c"]
    assert cache.byte_count == 8
    get("a")
    assert loads == ["a", "b", "c"]
    get("b")
    assert loads == ["a", "b", "c", "b"]
    get("huge", 11)
    assert (len(cache), cache.byte_count) == (2, 8)


def test_a_value_is_loaded_once_for_all_who_wait() -> None:
    cache: ByteCache[bytes] = ByteCache(10, len)
    started, loads = threading.Event(), []

    def load() -> bytes:
        loads.append(started.wait(10))
        return b"value"

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(cache.get, "key", load) for _ in range(4)]
        started.set()
        assert {each.result() for each in found} == {b"value"}
    assert loads == [True]


def test_the_newest_may_stay_however_large() -> None:
    cache: ByteCache[bytes] = ByteCache(lambda: 10, len, keep_newest=True)
    for key, size in (("a", 4), ("b", 11)):
        cache.get(key, lambda size=size: bytes(size))  # type: ignore[misc]
    assert "b" in cache
    assert len(cache) == 1


def test_what_is_forgotten_takes_no_bytes() -> None:
    cache: ByteCache[bytes] = ByteCache(10, len)
    for key in ("a", "b"):
        cache.get(key, lambda: bytes(4))
    cache.forget(lambda key, value: key == "a")
    assert ("a" in cache, "b" in cache, cache.byte_count) == (False, True, 4)
