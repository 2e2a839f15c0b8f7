"""Kills a process at every step of an operation, then lets a fresh process look at what is left.

    python crash_driver.py OPERATION FOLDER

Prints one JSON line a step: {"step": n, "at": [step, key], "problems": [...]}, and at last
{"steps": n}. Every attempt runs in a process of its own, forked from this one before it opens
anything.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb  # noqa: F401  (imported once, so that the forks need not)
import numpy as np
import pyarrow.parquet  # noqa: F401

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import NotFoundError

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
FIRST = {"alice/dog:1": 1, "alice/dog:2": 2, "bob/dog:1": 1, "bob/cat:1": 3}


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(128) < 0.2).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


def prepare(folder: Path) -> None:
    registry = Registry.create(folder / "registry", cache=folder / "cache")
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("alice/dog", mask_of(2), scope="prompt")
    registry.push("bob/dog", mask_of(1), scope="prompt")
    registry.push_many(
        [("bob/cat", mask_of(3), {"scope": "prompt"}), ("bob/old", mask_of(4), {"scope": "prompt"})]
    )
    registry.alias("alice/dog:1", "prod")
    registry.remove("bob/old")
    registry.compact(grace=0)
    registry.tag("bob/cat", add=["pet"])
    registry.close()
    prepare_source(folder)


def push(registry: Registry) -> dict[str, int]:
    return {registry.push("bob/dog", mask_of(7), scope="prompt").ref: 7}


def push_key(registry: Registry) -> dict[str, int]:
    return {registry.push("bob/dog", mask_of(7), key="job", scope="prompt").ref: 7}


def push_many(registry: Registry) -> dict[str, int]:
    pushed = registry.push_many(
        [("bob/cat", mask_of(8), {"scope": "prompt"}), ("carl/x", mask_of(9), {"scope": "prompt"})]
    )
    return dict(zip((concept.ref for concept in pushed), (8, 9), strict=True))


def alias(registry: Registry) -> dict[str, int]:
    registry.alias("alice/dog:2", "prod", expect=1)
    return {"alice/dog:prod": 2}


def compact(registry: Registry) -> dict[str, int]:
    registry.compact(grace=0)
    return {}


def prune(registry: Registry) -> dict[str, int]:
    registry.plan_prune(grace=0).execute()
    return {}


def purge(registry: Registry) -> dict[str, int]:
    try:
        registry.plan_purge(owner="alice").execute()
    except NotFoundError:
        return {}  # a purge that was killed at its end had nothing left to do
    return {}


def sync(registry: Registry) -> dict[str, int]:
    """The registry is what is copied to; its own versions clash with none of the source's."""
    place = Path(registry.url.removeprefix("file://"))
    source = Registry.open(place.with_name("source"), cache=place.with_name("source-cache"))
    result = source.plan_sync(registry).execute()
    assert result.ok, result
    assert registry.get("zoe/fox:prod").version == 2
    return {"zoe/fox:1": 21, "zoe/fox:2": 22, "zoe/elk:1": 21}


def prepare_source(folder: Path) -> None:
    source = Registry.create(folder / "source", cache=folder / "source-cache")
    for name, seed in (("fox", 21), ("fox", 22), ("elk", 21), ("old", 23)):
        source.push(f"zoe/{name}", mask_of(seed), scope="prompt")
    source.alias("zoe/fox:2", "prod")
    source.remove("zoe/old")
    source.close()


OPERATIONS: dict[str, Callable[[Registry], dict[str, int]]] = {
    each.__name__: each for each in (push, push_key, push_many, alias, compact, prune, purge, sync)
}


def in_child(work: Callable[[], Any], result: Path) -> tuple[int, Any]:
    """(wait status, what `work` returned) of a forked process."""
    result.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            result.write_text(json.dumps(work()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status, json.loads(result.read_text()) if result.exists() else None


def attempt(name: str, folder: Path, kill_at: int) -> dict[str, int]:
    """Run an operation and be killed at its step number `kill_at`."""
    registry = Registry.open(folder / "registry", cache=folder / "cache")
    count = 0

    def fault(step: str, key: str) -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            (folder / "at").write_text(json.dumps([step, key]))
            os.kill(os.getpid(), signal.SIGKILL)

    registry._session.store.fault = fault
    registry._session.copy.fault = fault
    return OPERATIONS[name](registry)


def verify(name: str, folder: Path, acknowledged: dict[str, int]) -> list[str]:
    """What a fresh reader, and then a second attempt, find wrong."""
    problems = []
    purged = name == "purge"
    before = {ref: n for ref, n in FIRST.items() if not (purged and ref.startswith("alice/"))}
    registry = Registry.open(folder / "registry", cache=folder / "fresh")
    report = registry.check(read_data=True)
    problems += [f"{p.kind} {p.where}: {p.message}" for p in report.problems]
    found = {concept.ref for concept in registry.find()}
    for ref, seed in {**before, **acknowledged}.items():
        if registry.pull(ref) != mask_of(seed):
            problems.append(f"{ref} is another mask")
    if name == "push_many" and ("bob/cat:2" in found) != ("carl/x:1" in found):
        problems.append("half a commit is seen")
    if "pet" not in registry.get("bob/cat:1").tags:
        problems.append("a tag is lost")
    if not purged and registry.get("alice/dog:prod").version not in (1, 2):
        problems.append("the alias is lost")
    again = Registry.open(folder / "registry", cache=folder / "cache")
    if name == "alias":
        again.alias("alice/dog:2", "prod")
    else:
        OPERATIONS[name](again)
    number = again.push("bob/dog", mask_of(11), scope="prompt").version
    if f"bob/dog:{number}" in found | acknowledged.keys():
        problems.append(f"bob/dog:{number} was given twice")
    reader = Registry.open(folder / "registry", cache=folder / "fresh")
    for ref, seed in {**before, **acknowledged, f"bob/dog:{number}": 11}.items():
        if reader.pull(ref) != mask_of(seed):
            problems.append(f"{ref} is another mask after the second attempt")
    refs = [concept.ref for concept in reader.find()]
    if name == "push_key" and len(reader.find(owner="bob", name="dog")) != 3:
        problems.append("a key made more or less than one version")
    if len(refs) != len(set(refs)):
        problems.append("a version is there twice")
    if purged:
        problems += traces(folder, b"alice")
    report = reader.check(read_data=True)
    problems += [f"afterwards: {p.kind} {p.where}: {p.message}" for p in report.problems]
    return problems


def traces(folder: Path, text: bytes) -> list[str]:
    """Files of registry and local copies that still hold `text`, in name or content."""
    import zstandard

    found = []
    for path in [*(folder / "registry").rglob("*"), *(folder / "fresh").rglob("*.duckdb")]:
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".zst":
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 28)
        if text in data or text in bytes(path.relative_to(folder)):
            found.append(f"{path} still says {text.decode()}")
    return found


def tell(value: Any) -> None:
    """One JSON line on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main(name: str, root: Path) -> None:
    template = root / "template"
    status, _ = in_child(lambda: prepare(template), root / "result")
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    step = 0
    while True:
        step += 1
        # The URL of a registry is part of what its local copy is for: always the same place.
        place = root / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place, copy_function=shutil.copy2)
        status, acknowledged = in_child(partial(attempt, name, place, step), root / "result")
        killed = os.WIFSIGNALED(status)
        if not killed and status:
            raise SystemExit(f"step {step}: {name} failed")
        known = acknowledged or {}
        status, problems = in_child(partial(verify, name, place, known), root / "result")
        if status:
            problems = ["the check itself failed"]
        at = json.loads((place / "at").read_text()) if killed else None
        tell({"step": step, "at": at, "problems": problems})
        if not killed:
            tell({"steps": step - 1})
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
