"""A world of simulated machines: one store in memory, virtual time, one machine running at once.

Each machine is a ``Registry`` handle with a cache folder and a clock of its own. What a machine
does runs in a thread that stops before and after every operation on the store until it is handed
the baton, so a schedule is a list of choices, and the same choices give the same run. While a world
is open, ``time.time``, ``time.monotonic``, ``time.sleep`` and ``os.urandom`` belong to the machine
that holds the baton, and questions to the local copies go to SQLite, see ``dialect``, unless
``CONES_SIMULATE_DUCKDB`` is set.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dialect

from cones_registry import Registry
from cones_registry.store import Entry, KeyExistsError, Store

_DUCKDB = bool(os.environ.get("CONES_SIMULATE_DUCKDB"))

START = 1_900_000_000.0
"""Seconds since 1970 at which every world begins."""


class Killed(BaseException):
    """Raised in a machine that was killed; nothing it does afterwards reaches the store."""


class Objects(dict[str, tuple[bytes, float]]):
    """What a store holds: key -> (bytes, seconds since 1970 when they were written)."""

    def backup(self) -> Objects:
        """A copy that can be put back."""
        return Objects(self)


class Task:
    """One operation of a machine, from its first step to its last.

    Attributes:
        done: whether it ended.
        result, error: what it returned or raised.
        at: (verb, key) of the store operation it stands before or after.
        wake: virtual time before which it sleeps.
    """

    def __init__(self, machine: Machine, name: str, call: Callable[[Registry], Any]) -> None:
        self.machine = machine
        self.name = name
        self.call = call
        self.done = False
        self.killed = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.at = ("start", "")
        self.wake = 0.0
        self.stale = False
        self._turn = threading.Lock()
        self._turn.acquire()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self.killed:
                self.result = self.call(self.machine.registry)
        except BaseException as error:
            self.error = error
        self.done = True
        self.machine.world.scheduler_turn.release()

    def step(self, verb: str, key: str) -> None:
        """Stand here until the scheduler says to go on."""
        if self.killed:
            raise Killed
        self.at = (verb, key)
        self.machine.world.scheduler_turn.release()
        self._turn.acquire()
        if self.killed:
            raise Killed

    def resume(self) -> None:
        """Run it to its next step, or to its end."""
        world = self.machine.world
        world.now = max(world.now, self.wake)
        world.running = self
        self._turn.release()
        world.scheduler_turn.acquire()
        world.running = None
        if self.done:
            self.thread.join()


class SimulatedStore(Store):
    """One machine's way to the objects; every operation is a step of the world."""

    def __init__(self, machine: Machine, objects: Objects, place: str) -> None:
        super().__init__("memory://simulated")
        self._machine = machine
        self._objects = objects
        self._place = place

    @property
    def place(self) -> str:
        """Which store this is."""
        return self._place

    def _step(self, verb: str, key: str) -> None:
        world = self._machine.world
        if world.running is not None:
            world.running.step(verb, key)
        world.passed(verb, key)

    def _around(self, verb: str, key: str, work: Callable[[], Any]) -> Any:
        self._step(verb, key)
        world = self._machine.world
        fault = world.fault(verb, key)
        if fault == "refused":
            raise PermissionError(errno.EACCES, "simulated", key)
        if fault == "throttled":
            raise ConnectionResetError("simulated")
        result = work()
        self._step(f"{verb}-done", key)
        if fault == "lost":
            raise PermissionError(errno.EACCES, "simulated: done, not acknowledged", key)
        if fault == "lost-passing":
            raise ConnectionResetError("simulated: done, not acknowledged")
        return result

    def _get(self, key: str) -> bytes:
        def work() -> bytes:
            if key not in self._objects:
                raise FileNotFoundError(key)
            return self._objects[key][0]

        data: bytes = self._around("get", key, work)
        return data

    def _get_range(self, key: str, start: int, end: int) -> bytes:
        return self._get(key)[start:end]

    def _create(self, key: str, data: bytes) -> None:
        def work() -> None:
            if key in self._objects:
                raise FileExistsError(key)
            self._objects[key] = (bytes(data), self._machine.world.now)

        self._around("create", key, work)

    def _delete(self, key: str) -> None:
        def work() -> None:
            if self._objects.pop(key, None) is None:
                raise FileNotFoundError(key)

        self._around("delete", key, work)

    def _head(self, key: str) -> Entry:
        def work() -> Entry:
            if key not in self._objects:
                raise FileNotFoundError(key)
            data, modified = self._objects[key]
            return Entry(key, len(data), modified)

        entry: Entry = self._around("head", key, work)
        return entry

    def _list(self, prefix: str) -> list[Entry]:
        """A page at a time, as object stores list: a page is an instant, a listing is not."""
        world = self._machine.world
        found: list[Entry] = []
        after = ""

        def page() -> list[Entry]:
            objects = world.listed(self._objects, prefix)
            keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
            return [
                Entry(key, len(objects[key][0]), objects[key][1]) for key in keys[: world.page_size]
            ]

        while True:
            entries = self._around("list", prefix, page)
            found += entries
            if len(entries) < world.page_size:
                return found
            after = entries[-1].key

    def now(self) -> float:
        """The store's clock, which is always right."""
        return self._machine.world.now

    # One thing after another: which of several threads is first would be chance.

    def each(self, work: Any, keys: Iterable[str], *, parallel: int = 1) -> Iterator[Any]:
        """As ``Store.each``."""
        for key in list(keys):
            yield work(key)

    def put_many(self, objects: Iterable[tuple[str, bytes]]) -> list[str]:
        """As ``Store.put_many``."""
        taken = []
        for key, data in objects:
            try:
                self._put(key, data)
            except KeyExistsError:
                taken.append(key)
        return taken


@dataclass(eq=False)
class Machine:
    """A computer with a registry open.

    Attributes:
        offset: seconds by which its clock is ahead of the store's.
        place, objects: which store it works on; the world's.
        cache: name of its cache folder; its own.
        plan: what its last planning operation returned.
        paused_until: virtual time before which the scheduler leaves it alone.
    """

    world: World
    name: str
    offset: float = 0.0
    place: str = "simulated"
    objects: Objects | None = None
    cache: str = ""
    registry: Any = None
    task: Task | None = None
    plan: Any = None
    paused_until: float = 0.0
    todo: list[Any] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Its cache folder."""
        return self.world.folder / (self.cache or self.name)

    @property
    def store(self) -> SimulatedStore:
        """A way to the objects."""
        objects = self.world.objects if self.objects is None else self.objects
        return SimulatedStore(self, objects, self.place)

    def open(self) -> Registry:
        """A new handle on the same cache folder, as after a restart."""
        self.close()
        with self.world.as_machine(self):
            self.registry = Registry.open(self.store, cache=self.folder)  # type: ignore[arg-type]
        return self.registry

    def close(self) -> None:
        """Close the handle."""
        if self.registry is not None:
            self.registry.close()
            self.registry = None

    def start(self, name: str, call: Callable[[Registry], Any]) -> Task:
        """Begin an operation; it runs when it is resumed."""
        if self.registry is None:
            self.open()
        assert self.task is None or self.task.done
        self.task = Task(self, name, call)
        return self.task

    def do(self, call: Callable[[Registry], Any]) -> Any:
        """Run an operation to its end with nothing between; what it returns or raises."""
        task = self.start("directed", call)
        return self.finish(task)

    def finish(self, task: Task) -> Any:
        """Run the rest of an operation; what it returns or raises."""
        while not task.done:
            task.resume()
        if task.error is not None:
            raise task.error
        return task.result

    def run_until(self, task: Task, verb: str, prefix: str) -> bool:
        """Run an operation until it stands at `verb` of a key with `prefix`; whether it does."""
        while not task.done:
            if task.at[0] == verb and task.at[1].startswith(prefix):
                return True
            task.resume()
        return False

    def kill(self) -> None:
        """End it where it stands; its cache folder stays."""
        if self.task is not None and not self.task.done:
            self.task.killed = True
            while not self.task.done:
                self.task.resume()
        self.close()


class World:
    """Machines, their store, virtual time and chance.

    Attributes:
        now: seconds since 1970, by the store's clock.
        chance: makes every choice of the run.
        trace: one line for each operation that reached the store.
        page_size: keys a page of a listing holds.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.now = START
        self.chance = random.Random(seed)
        self.objects = Objects()
        self.machines: dict[str, Machine] = {}
        self.trace: list[str] = []
        self.page_size = 1000
        self.running: Task | None = None
        self.scheduler_turn = threading.Lock()
        self.scheduler_turn.acquire()
        self.faults: dict[str, float] = {}
        self.stale_lists = 0.0
        self._held: Machine | None = None
        self._older: dict[str, Objects] = {}

    def machine(self, name: str, **settings: Any) -> Machine:
        """The machine of that name, made if there is none."""
        if name not in self.machines:
            self.machines[name] = Machine(self, name, **settings)
        return self.machines[name]

    @contextlib.contextmanager
    def as_machine(self, machine: Machine) -> Iterator[None]:
        """Work of the caller's own that counts as the machine's, in one piece."""
        before, self._held = self._held, machine
        try:
            yield
        finally:
            self._held = before

    def acting(self) -> Machine | None:
        """Whose turn it is."""
        return self.running.machine if self.running is not None else self._held

    def passed(self, verb: str, key: str) -> None:
        """An operation takes some milliseconds, and is written down."""
        self.now += 0.001 + self.chance.random() * 0.02
        acting = self.acting()
        self.trace.append(f"{self.now - START:.3f} {acting.name if acting else '-'} {verb} {key}")

    def fault(self, verb: str, key: str) -> str | None:
        """What goes wrong with an operation that is about to reach the store."""
        if not self.faults or self.running is None:
            return None
        draw = self.chance.random()
        for kind, share in self.faults.items():
            if draw < share:
                if kind in ("lost", "lost-passing") and verb not in ("create", "delete"):
                    return None
                self.trace.append(f"{self.now - START:.3f} - {kind} {verb} {key}")
                return kind
            draw -= share
        return None

    def listed(self, objects: Objects, prefix: str) -> Objects:
        """What a listing shows: now and then what the one before it showed."""
        if not self.stale_lists or self.running is None:
            return objects
        older = self._older.get(prefix)
        self._older[prefix] = objects.backup()
        if older is not None and self.chance.random() < self.stale_lists:
            self.running.stale = True
            return older
        return objects

    # -- what the patched modules ask -------------------------------------------------------------

    def time(self) -> float:
        """The clock of whoever acts."""
        acting = self.acting()
        return self.now + (acting.offset if acting else 0.0)

    def sleep(self, seconds: float) -> None:
        """Time passes; others may go on meanwhile."""
        if self.running is None:
            self.now += seconds
            return
        self.running.wake = self.now + seconds
        self.running.step("sleep", "")

    @contextlib.contextmanager
    def opened(self) -> Iterator[World]:
        """Everything below happens in this world."""
        real = {
            "time": time.time,
            "time_ns": time.time_ns,
            "monotonic": time.monotonic,
            "sleep": time.sleep,
        }
        urandom, state = os.urandom, random.getstate()
        here = threading.get_ident()

        def ours() -> bool:
            ident = threading.get_ident()
            running = self.running
            return ident == here or (running is not None and running.thread.ident == ident)

        def patched(name: str, inside: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: inside(*args) if ours() else real[name](*args)

        time.time = patched("time", self.time)  # type: ignore[assignment]
        time.time_ns = patched("time_ns", lambda: int(self.time() * 1e9))  # type: ignore[assignment]
        time.monotonic = patched("monotonic", lambda: self.now)  # type: ignore[assignment]
        time.sleep = patched("sleep", self.sleep)  # type: ignore[assignment]
        os.urandom = lambda count: self.chance.randbytes(count) if ours() else urandom(count)  # type: ignore[assignment]
        random.seed(self.chance.random())
        copies = contextlib.nullcontext() if _DUCKDB else dialect.without_what_takes_time()
        try:
            with copies:
                yield self
        finally:
            for machine in self.machines.values():
                machine.kill()
            for name, function in real.items():
                setattr(time, name, function)
            os.urandom = urandom
            random.setstate(state)
            shutil.rmtree(self.folder, ignore_errors=True)
