"""Stops a process at steps of an operation, lets the world go on for hours, and wakes it.

    python pause_driver.py OPERATION FOLDER all|few|STEP:FOLDER hour|days

Prints one JSON line for each stop: {"at": [step, key], "problems": [...]}. ``all`` stops at every
step, ``few`` once before each kind of object that the operation makes or deletes, ``put:log/`` once
before the first object of a folder.

A delete that was on its way when its process stopped for days is left out: see
``schema/registry.md``.

While the process stands still, other machines push (equal masks too), tag, compact, prune and
purge, at a clock that has moved on; the stopped process finds that clock when it wakes. The clock
is forged in all processes alike, and files get the times of it.
"""

import contextlib
import itertools
import json
import mmap
import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crash_driver import OPERATIONS, in_child, mask_of, tell, traces

from cones_registry import Registry
from cones_registry.errors import ConesError, ConflictError, NotFoundError
from cones_registry.store.local import LocalStore

GRACE = 600.0
"""Seconds, of prunes and compactions."""

HOUR, DAY = 3600.0, 86400.0
FIRST = {"alice/dog:1": 1, "alice/dog:2": 2, "bob/dog:1": 1, "bob/cat:1": 3, "carl/y:1": 5}


class Clock:
    """Seconds that all processes are ahead of the real clock; to sleep moves it on."""

    def __init__(self) -> None:
        self._ahead = mmap.mmap(-1, 8)

    @property
    def ahead(self) -> float:
        """How far it is ahead."""
        found: float = struct.unpack("d", self._ahead[:])[0]
        return found

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead[:] = struct.pack("d", self.ahead + seconds)

    def forge(self) -> None:
        """Give this process, and those forked from it, this clock."""
        now, nanoseconds, monotonic = time.time, time.time_ns, time.monotonic
        time.time = lambda: now() + self.ahead
        time.time_ns = lambda: nanoseconds() + int(self.ahead * 1e9)
        time.monotonic = lambda: monotonic() + self.ahead
        time.sleep = self.move
        LocalStore.now = lambda store: time.time()  # files get the times of this clock too


CLOCK = Clock()


def opened(folder: Path, cache: str, fault: Callable[[str, str], None] | None = None) -> Registry:
    """A handle of a machine; what it puts has the time of the forged clock."""

    def step(step: str, key: str) -> None:
        if step == "linked":
            os.utime(folder / "registry" / key, (time.time(), time.time()))
        if fault is not None:
            fault(step, key)

    registry = Registry.open(folder / "registry", cache=folder / cache)
    registry._session.store.fault = step
    registry._session.copy.fault = fault or step
    return registry


def prepare(folder: Path) -> None:
    """A registry in which there is something to fold, to prune and to purge."""
    CLOCK.move(-4 * GRACE)
    Registry.create(folder / "registry", cache=folder / "cache").close()
    registry = opened(folder, "cache")
    registry.push("alice/dog", mask_of(1), scope="prompt")
    registry.push("alice/dog", mask_of(2), scope="prompt")
    registry.push("bob/dog", mask_of(1), scope="prompt")
    registry.push_many(
        [
            ("bob/cat", mask_of(3), {"scope": "prompt"}),
            ("bob/old", mask_of(4), {"scope": "prompt"}),
            ("carl/y", mask_of(5), {"scope": "prompt"}),
        ]
    )
    registry.alias("alice/dog:1", "prod")
    registry.remove("bob/old")
    CLOCK.move(1.2 * GRACE)
    registry.plan_prune(grace=GRACE).execute()
    registry.compact(grace=GRACE)
    CLOCK.move(1.2 * GRACE)
    registry.tag("bob/cat", add=["pet"])
    registry.close()
    CLOCK.move(1.6 * GRACE)


def compact(registry: Registry) -> dict[str, int]:
    registry.compact(grace=GRACE)
    return {}


def prune(registry: Registry) -> dict[str, int]:
    registry.plan_prune(grace=GRACE).execute()
    return {}


VERBS = OPERATIONS | {"compact": compact, "prune": prune}


def act(name: str, folder: Path, stop_at: int) -> dict[str, Any]:
    """Run an operation and stop at its step number ``stop_at``; what came of it."""
    numbers = itertools.count(1)

    def fault(step: str, key: str) -> None:
        number = next(numbers)  # threads take each its own
        with (folder / "steps").open("a") as steps:
            steps.write(json.dumps([step, key]) + "\n")
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    registry = opened(folder, "cache", fault)
    result: dict[str, Any] = {"acknowledged": {}, "refused": ""}
    try:
        result["acknowledged"] = VERBS[name](registry)
    except ConesError as error:
        result["refused"] = f"{type(error).__name__}: {error}"
    # What woke goes on working, with what it remembers of the time before.
    result["acknowledged"] |= {registry.push("bob/after", mask_of(12), scope="prompt").ref: 12}
    result["sees"] = sorted(concept.ref for concept in registry.find())
    return result


def others(folder: Path, length: str) -> dict[str, Any]:
    """What other machines do meanwhile: (ref -> mask) acknowledged, and what failed."""
    CLOCK.move(HOUR if length == "hour" else 8 * DAY)
    registry = opened(folder, "other")
    acknowledged: dict[str, int] = {}
    problems: list[str] = []

    def push(name: str, seed: int) -> None:
        with contextlib.suppress(ConflictError):  # a deletion that names the mask is not done
            acknowledged[registry.push(name, mask_of(seed), scope="prompt").ref] = seed

    def must(what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except ConesError as error:
            problems.append(f"{what} failed: {type(error).__name__}: {error}")

    push("bob/new", 21)
    # Equal to what is pruned, purged, and for an hour to one of what is pushed; what else is being
    # pushed is nobody's, and pruned.
    equal = (8, 4, 2) if length == "hour" else (4, 2)
    for seed in equal:
        push(f"dan/same{seed}", seed)
    must("tag", lambda: registry.tag("bob/dog:1", add=["later"]))
    must("compact", lambda: registry.compact(grace=GRACE))
    for _ in range(2):
        must("prune", lambda: registry.plan_prune(grace=GRACE).execute())
        CLOCK.move(2 * GRACE if length == "hour" else 1.5 * DAY)
    must("purge", lambda: registry.plan_purge(owner="carl").execute())
    must("prune", lambda: registry.plan_prune(grace=GRACE).execute())
    must("compact", lambda: registry.compact(grace=GRACE))
    for seed in equal:
        push(f"eve/same{seed}", seed)
    return {"acknowledged": acknowledged, "problems": problems}


def keep(folder: Path) -> None:
    """What an administrator does in the time after."""
    registry = opened(folder, "keeper")
    for _ in range(3):
        CLOCK.move(2 * DAY)
        registry.plan_prune(grace=GRACE).execute()
        registry.compact(grace=GRACE)


def verify(folder: Path, name: str, woken: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What a fresh reader finds wrong."""
    problems = list(other["problems"])
    purged = name == "purge" and not woken["refused"]
    expected = {ref: seed for ref, seed in FIRST.items() if not ref.startswith("carl/")}
    if name == "purge":  # also where it was broken off: whether, nobody promised
        expected = {ref: n for ref, n in expected.items() if not ref.startswith("alice/")}
    both = woken["acknowledged"].keys() & other["acknowledged"].keys()
    problems += [f"{ref} was given twice" for ref in sorted(both)]
    expected |= other["acknowledged"] | woken["acknowledged"]
    registry = opened(folder, "fresh")
    listed = [concept.ref for concept in registry.find()]
    if len(listed) != len(set(listed)):
        problems.append("a version is there twice")
    if set(woken["sees"]) != set(listed):
        problems.append(f"who woke sees others: {sorted(set(woken['sees']) ^ set(listed))}")
    for ref, seed in expected.items():
        try:
            if registry.pull(ref) != mask_of(seed):
                problems.append(f"{ref} is another mask")
        except (ConesError, NotFoundError) as error:
            problems.append(f"{ref}: {type(error).__name__}: {error}")
    if name == "push_key" and len(registry.find(owner="bob", name="dog")) != 2:
        problems.append("a key made more or less than one version")
    if "pet" not in registry.get("bob/cat:1").tags or "later" not in registry.get("bob/dog:1").tags:
        problems.append("a tag is lost")
    if name != "purge":
        stands = registry.get("alice/dog:prod").version
        if stands not in (1, 2) or (woken["acknowledged"].get("alice/dog:prod", stands) != stands):
            problems.append(f"the alias stands at {stands}")
    report = registry.check(read_data=True)
    problems += [f"{p.kind} {p.where}: {p.message}" for p in report.problems]
    if purged:
        problems += traces(folder, b"alice")
    return problems


def stopped(name: str, root: Path, step: int, length: str) -> list[str] | None:
    """Stop at one step, let the world go on, and look; None if the operation has fewer steps."""
    place, result = root / "place", root / "woken"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(root / "template", place, copy_function=shutil.copy2)
    ahead = CLOCK.ahead
    try:
        result.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            status, _ = in_child_of(partial(act, name, place, step), result)
            os._exit(status)
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return None if status == 0 else ["the operation itself failed"]
        failed, other = in_child(partial(others, place, length), root / "result")
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
        if status or failed:
            return ["who woke failed" if status else "the others failed"]
        woken = json.loads(result.read_text())
        status, _ = in_child(partial(keep, place), root / "result")
        if status:
            return ["upkeep failed"]
        status, problems = in_child(partial(verify, place, name, woken, other), root / "result")
        return ["the check itself failed"] if status else problems
    finally:
        CLOCK.move(ahead - CLOCK.ahead)


def in_child_of(work: Callable[[], Any], result: Path) -> tuple[int, None]:
    """Do the work in this process, and write down what came of it; (exit status, None)."""
    import traceback

    try:
        result.write_text(json.dumps(work()))
        return 0, None
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1, None


def chosen(steps: list[list[str]], where: str, length: str) -> list[int]:
    """Numbers of the steps to stop at, from 1."""
    first: dict[tuple[str, str], int] = {}
    every = []
    for number, (step, key) in enumerate(steps, 1):
        if length == "days" and step == "delete" and key.startswith("masks/"):
            continue
        every.append(number)
        if step in ("put", "delete"):
            kind = key.partition("/")[0] + (".pointer" if key.endswith(".pointer") else "/")
            first.setdefault((step, kind), number)
    if where == "all":
        return every
    if where == "few":
        return list(first.values())
    step, _, folder = where.partition(":")
    return [first[step, folder]]


def main(name: str, root: Path, where: str, length: str) -> None:
    CLOCK.forge()
    status, _ = in_child(lambda: prepare(root / "template"), root / "result")
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    assert stopped(name, root, 0, length) is None
    steps = [json.loads(line) for line in (root / "place" / "steps").read_text().splitlines()]
    for number in chosen(steps, where, length):
        problems = stopped(name, root, number, length)
        if problems is None:
            continue  # threads do side by side what they do; this time it was fewer steps
        tell({"step": number, "at": steps[number - 1], "problems": problems})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
