"""A store that fails in every way it can: nothing is lost, nothing wrong is returned."""

import errno
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import ConesError, CorruptDataError, StoreUnavailableError
from cones_registry.store import Entry, open_store
from cones_registry.store.trouble import Trouble, classify

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
_COUNT = itertools.count()


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(128) < 0.2).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


class Answered(Exception):
    """An error of a client library, with the server's answer in it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.response = {
            "ResponseMetadata": {"HTTPStatusCode": status},
            "Error": {"Code": code, "Message": code},
        }


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (Answered(412, "PreconditionFailed"), Trouble.EXISTS),
        (Answered(409, "ConditionalRequestConflict"), Trouble.PASSING),
        (Answered(503, "SlowDown"), Trouble.PASSING),
        (Answered(500, "InternalError"), Trouble.PASSING),
        (Answered(403, "AccessDenied"), Trouble.DENIED),
        (Answered(404, "NoSuchKey"), Trouble.MISSING),
        (FileExistsError(), Trouble.EXISTS),
        (OSError(errno.EINVAL, "Invalid"), Trouble.UNCLEAR_CREATE),
        (OSError(errno.EBUSY, "SlowDown"), Trouble.PASSING),
        (TimeoutError(), Trouble.PASSING),
        (ConnectionResetError(), Trouble.PASSING),
        (FileNotFoundError(), Trouble.MISSING),
        (PermissionError(), Trouble.DENIED),
        (OSError(errno.ENOSPC, "full"), Trouble.FULL),
        (ValueError("?"), Trouble.LASTING),
    ],
)
def test_foreign_errors_are_told_apart(error: Exception, trouble: Trouble) -> None:
    assert classify(error) is trouble


def test_412_translated_without_its_condition_is_told_from_a_bad_request(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    def invalid(key: str, data: bytes) -> None:
        raise OSError(errno.EINVAL, "At least one of the pre-conditions did not hold")

    store.put_new("there", b"x")
    store._create = invalid  # type: ignore[method-assign]
    with pytest.raises(ConesError, match="exists already"):
        store.put_new("there", b"y")
    with pytest.raises(StoreUnavailableError, match="cannot create 'not-there'"):
        store.put_new("not-there", b"y")


class Faults:
    """Wraps a store's raw operations so that a share of them goes wrong."""

    def __init__(self, store: Any, seed: int, share: float) -> None:
        self.random = random.Random(seed)
        self.share = share
        self.create, self.get, self.list, self.delete = (
            store._create,
            store._get,
            store._list,
            store._delete,
        )
        store._create, store._get, store._list, store._delete = (
            self.faulty_create,
            self.faulty_get,
            self.faulty_list,
            self.faulty_delete,
        )
        self.old_lists: dict[str, list[Entry]] = {}

    def trouble(self) -> Exception:
        return self.random.choice(
            [
                Answered(503, "SlowDown"),
                Answered(500, "InternalError"),
                Answered(409, "ConditionalRequestConflict"),
                TimeoutError("read timed out"),
                ConnectionResetError("reset"),
            ]
        )

    def happens(self) -> bool:
        return self.random.random() < self.share

    def around(self, call: Callable[[], Any]) -> Any:
        if self.happens():
            raise self.trouble()
        result = call()
        if self.happens():  # it arrived; the acknowledgement did not
            raise self.trouble()
        return result

    def faulty_create(self, key: str, data: bytes) -> None:
        def twice() -> None:
            self.create(key, data)
            if self.happens():  # a proxy sent it again
                self.create(key, data)

        self.around(twice)

    def faulty_get(self, key: str) -> bytes:
        data: bytes = self.around(lambda: self.get(key))
        if self.happens() and data:  # a bit flipped on the way
            position = self.random.randrange(len(data))
            data = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        return data

    def faulty_list(self, prefix: str) -> list[Entry]:
        now: list[Entry] = self.around(lambda: self.list(prefix))
        if self.happens() and prefix in self.old_lists:
            return self.old_lists[prefix]
        self.old_lists[prefix] = now
        return now

    def faulty_delete(self, key: str) -> None:
        self.around(lambda: self.delete(key))


@pytest.mark.parametrize("seed", range(int(os.environ.get("CONES_EXAMPLES", "4"))))
def test_under_faults_nothing_acknowledged_is_lost_and_nothing_wrong_returned(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cones_registry.store.base.FIRST_WAIT", 0.0)
    url = f"memory://faults-{os.getpid()}-{next(_COUNT)}"
    Registry.create(url, cache=tmp_path / "creator")
    writers = [Registry.open(url, cache=tmp_path / f"cache-{n}") for n in range(2)]
    faults = [Faults(w._session.store, seed * 10 + n, 0.06) for n, w in enumerate(writers)]
    chance = random.Random(seed)
    acknowledged: dict[str, int] = {}
    for number in range(25):
        writer = chance.choice(writers)
        try:
            match chance.randrange(6):
                case 0:
                    writer.compact(grace=0)
                case 1 if acknowledged:
                    ref, seed_of = chance.choice(sorted(acknowledged.items()))
                    assert writer.pull(ref) == mask_of(seed_of)
                case 2 if acknowledged:
                    writer.tag(chance.choice(sorted(acknowledged)), add=["seen"])
                case _:
                    concept = writer.push(
                        f"a/c{chance.randrange(3)}", mask_of(number), scope="prompt"
                    )
                    assert concept.ref not in acknowledged, "given twice"
                    acknowledged[concept.ref] = number
        except (StoreUnavailableError, CorruptDataError):
            continue  # refused, and said so
        except LookupError:
            assert faults  # a stale listing: an older view, not a wrong one
    reader = Registry.open(url, cache=tmp_path / "reader")
    found = {concept.ref for concept in reader.find()}
    assert acknowledged.keys() <= found
    for ref, number in acknowledged.items():
        assert reader.pull(ref) == mask_of(number)
    report = reader.check(read_data=True)
    assert report.ok, report.problems


def test_a_torn_temporary_file_is_never_seen(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")

    def die(step: str, key: str) -> None:
        if step == "written":
            raise KeyboardInterrupt

    store.fault = die
    with pytest.raises(KeyboardInterrupt):
        store.put_new("log/a", b"x" * 1000)
    assert store.list("") == []
    assert store.head("log/a") is None
