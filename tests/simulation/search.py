"""Random runs: what machines do, in which order, and what goes wrong is drawn from a seed.

python tests/simulation/search.py PROFILE FIRST LAST     what each failing seed finds
python tests/simulation/search.py PROFILE SEED --trace   every step of one run
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from model import ACKNOWLEDGED, MASKS, VOID, Model, Operation, perform
from world import Machine, Objects, World

from cones_registry import Registry
from cones_registry.errors import ConesError, ConflictError

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
PRUNE_GRACE = 7 * DAY


@dataclass(frozen=True)
class Profile:
    """What may happen in a run.

    Attributes:
        weights: verb -> how often it is drawn.
        operations: how many, of all machines together.
        faults: kind -> share of the operations on the store that it befalls.
        kills, pauses, jumps: chance before each step that a machine is killed, that one is left
            alone while an hour passes at most, and that time goes on while none is at work.
        stale: share of listings that show what the listing before showed.
        offsets: seconds that a machine's clock may be ahead.
        backups: whether a backup of the store is made and put back.
    """

    name: str
    weights: dict[str, int]
    operations: int = 9
    faults: dict[str, float] = field(default_factory=dict)
    kills: float = 0.0
    pauses: float = 0.0
    jumps: float = 0.05
    stale: float = 0.0
    offsets: tuple[float, ...] = (0.0,)
    backups: bool = False


_CHANGES = {"push": 5, "push_many": 1, "push_key": 2, "tag": 2, "untag": 2, "alias": 2}
_REMOVES = {"remove": 3, "restore": 3}
_UPKEEP = {"look": 1, "compact": 1, "reopen": 1}
_PRUNES = {"plan_prune": 4, "execute": 6}
_PURGES = {"plan_purge": 3, "execute": 5}
_FAULTS = {"lost": 0.02, "refused": 0.02, "throttled": 0.03, "lost-passing": 0.03}
PROFILES = {
    each.name: each
    for each in (
        Profile("calm", _CHANGES | _REMOVES | _UPKEEP),
        Profile(
            "faults", _CHANGES | _REMOVES | _UPKEEP | {"repeat": 2}, faults=_FAULTS, kills=0.01
        ),
        Profile("stale", {"push": 5, "push_key": 2, "look": 2, "compact": 2}, stale=0.1),
        Profile(
            "prune",
            {"push": 3, "push_key": 2, "remove": 4, "restore": 6} | _PRUNES,
            operations=12,
            kills=0.005,
            jumps=0.7,
        ),
        Profile(
            "purge",
            {"push": 6, "push_many": 1, "push_key": 3, "alias": 1, "compact": 1} | _PURGES,
            kills=0.005,
        ),
        Profile(
            "repeat",
            {"push": 4, "repeat": 8, "reopen": 1} | _PRUNES | {"plan_purge": 1},
            operations=12,
            faults={"refused": 0.06},
            jumps=0.5,
        ),
        Profile(
            "clocks",
            {"push": 3, "tag": 3, "untag": 3, "remove": 3, "restore": 3, "quota": 2, "reopen": 5}
            | {"plan_prune": 1, "execute": 2, "plan_purge": 1},
            jumps=0.1,
            offsets=(0.0, -60.0, 60.0, -2 * HOUR, 2 * HOUR, -25 * HOUR, 25 * HOUR, -30 * DAY),
        ),
        Profile(
            "paused",
            {"push": 5, "push_key": 2, "alias": 1, "remove": 2, "restore": 2, "compact": 1}
            | _PRUNES
            | _PURGES,
            pauses=0.02,
            jumps=0.2,
        ),
        Profile(
            "backup",
            {"push": 5, "tag": 1, "look": 1, "compact": 4, "reopen": 1},
            backups=True,
            jumps=0.0,
        ),
    )
}


class Run:
    """One run of one seed."""

    def __init__(self, profile: Profile, seed: int, folder: Path) -> None:
        self.profile = profile
        self.world = World(folder, seed)
        self.model = Model()
        self.chance = self.world.chance
        self._step = 0
        self._marks = 0
        self._left = profile.operations
        self._backup: tuple[Objects, float] | None = None
        self._unclear: dict[str, tuple[Registry, Operation]] = {}

    def step(self) -> float:
        """Count on."""
        self._step += 1
        return self._step

    def run(self) -> list[str]:
        """Everything, from an empty store to what the last reader finds."""
        world, profile = self.world, self.profile
        with world.opened():
            with world.as_machine(world.machine("founder")):
                first = world.machine("founder")
                Registry.create(first.store, cache=first.folder).close()
                first.open()
            # What was there before anything went wrong.
            first.do(self._push(first, "alice", "dog", 0))
            first.do(self._push(first, "bob", "dog", 3))
            count = self.chance.choice((2, 2, 3))
            machines = [world.machine(f"m{number}") for number in range(count)]
            for machine in machines:
                machine.offset = self.chance.choice(profile.offsets)
            world.faults, world.stale_lists = profile.faults, profile.stale
            world.page_size = self.chance.choice((2, 5, 1000))
            self._go(machines)
            world.faults, world.stale_lists, world.page_size = {}, 0.0, 1000
            self._judge([each for each in [*machines, first] if each.registry is not None])
        return self.model.findings

    # -- the schedule -----------------------------------------------------------------------------

    def _go(self, machines: list[Machine]) -> None:
        world, chance, profile = self.world, self.chance, self.profile
        switch = chance.choice((0.02, 0.1, 0.3, 1.0))
        current: Machine | None = None
        while True:
            working = [m for m in machines if m.task is not None and not m.task.done]
            able = [m for m in working if m.paused_until <= world.now]
            if not working:
                if self._left <= 0:
                    return
                self._between(machines)
            elif not able:
                world.now = min(m.paused_until for m in working)
                continue
            idle = [m for m in machines if m not in working] if self._left > 0 else []
            choices = able + idle
            if current not in choices or chance.random() < switch:
                current = chance.choice(choices)
            if current in idle:
                self._left -= 1
                self._begin(current)
                continue
            if profile.kills and chance.random() < profile.kills:
                world.trace.append(f"kill {current.name}")
                current.kill()
                continue
            if profile.pauses and chance.random() < profile.pauses:
                current.paused_until = world.now + chance.choice((MINUTE, 20 * MINUTE, HOUR))
                world.trace.append(f"pause {current.name}")
                current = None
                continue
            assert current.task is not None
            current.task.resume()

    def _between(self, machines: list[Machine]) -> None:
        """While nobody is at work: time may go on, a backup may be made or put back."""
        world, chance, profile = self.world, self.chance, self.profile
        if chance.random() < profile.jumps:
            seconds = chance.choice((MINUTE, 2 * HOUR, 8 * DAY, 8 * DAY, 8 * DAY))
            world.now += seconds
            world.trace.append(f"{seconds:g} s pass")
        if profile.backups and chance.random() < 0.3:
            if self._backup is None:
                self._backup = (world.objects.backup(), self.step())
                world.trace.append("backup is made")
            else:
                self._put_back()

    def _put_back(self) -> None:
        assert self._backup is not None
        objects, made = self._backup
        self._backup = None
        self.world.objects.clear()
        self.world.objects.update(objects)
        self.world.trace.append("backup is put back")
        for each in self.model.operations:
            if each.begin > made:
                each.outcome = VOID if each.outcome == ACKNOWLEDGED else each.outcome
        self._unclear.clear()

    # -- what machines do -------------------------------------------------------------------------

    def _begin(self, machine: Machine) -> None:
        weights = dict(self.profile.weights)
        if machine.plan is None:
            weights.pop("execute", None)
        if machine.name not in self._unclear:
            weights.pop("repeat", None)
        verb = self.chance.choices(list(weights), list(weights.values()))[0]
        work = getattr(self, f"_do_{verb}")(machine)
        if work is not None:
            machine.start(verb, work)

    def _where(self) -> tuple[str, str]:
        return self.chance.choice(("alice", "bob")), self.chance.choice(("dog", "dog", "cat"))

    def _version(self) -> tuple[str, str, str]:
        """(ref, owner, name) of a version somebody was told of."""
        ref = self.chance.choice(sorted(self.model.versions()))
        owner, _, rest = ref.partition("/")
        return ref, owner, rest.partition(":")[0]

    def _note(self, operation: Operation, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return perform(self.model, operation, self.step, call)

    def _push(self, machine: Machine, owner: str, name: str, mask: int) -> Callable[[Any], Any]:
        self._marks += 1
        mark = f"mark{self._marks}"
        operation = Operation(
            "push", machine.name, owner, name, pushes=((owner, name, mask),), mark=mark
        )

        def call(registry: Any) -> Any:
            return [registry.push(f"{owner}/{name}", MASKS[mask], scope="prompt", note=mark)]

        return self._remembering(machine, operation, call)

    def _remembering(
        self, machine: Machine, operation: Operation, call: Callable[[Any], Any]
    ) -> Callable[[Any], Any]:
        """Note it; and that it may be repeated on this handle, if nobody knows what came of it."""
        noted = self._note(operation, call)

        def work(registry: Any) -> Any:
            try:
                return noted(registry)
            except ConesError:
                self._unclear[machine.name] = (registry, operation, call)  # type: ignore[assignment]
                raise

        return work

    def _do_push(self, machine: Machine) -> Callable[[Any], Any]:
        return self._push(machine, *self._where(), self.chance.randrange(3))

    def _do_push_many(self, machine: Machine) -> Callable[[Any], Any]:
        owner, name = self._where()
        masks = self.chance.sample(range(3), 2)
        self._marks += 1
        mark = f"mark{self._marks}"
        pushes = tuple((owner, each, mask) for each, mask in zip((name, "cow"), masks, strict=True))
        operation = Operation("push", machine.name, owner, name, pushes=pushes, mark=mark)
        options = {"scope": "prompt", "note": mark}
        items = [(f"{owner}/{each}", MASKS[mask], options) for owner, each, mask in pushes]
        return self._remembering(machine, operation, lambda registry: registry.push_many(items))

    def _do_push_key(self, machine: Machine) -> Callable[[Any], Any]:
        owner, name = self._where()
        number = self.chance.randrange(2)
        operation = Operation(
            "push",
            machine.name,
            owner,
            name,
            pushes=((owner, name, number),),
            mark=f"{owner}-{name}-key{number}",
            key=f"key{number}",
        )

        def call(registry: Any) -> Any:
            return [
                registry.push(
                    f"{owner}/{name}",
                    MASKS[number],
                    scope="prompt",
                    key=f"key{number}",
                    note=operation.mark,
                )
            ]

        return self._note(operation, call)

    def _do_repeat(self, machine: Machine) -> Callable[[Any], Any] | None:
        registry, before, call = self._unclear.pop(machine.name)  # type: ignore[misc]
        if registry is not machine.registry:
            return None
        operation = Operation(
            "push",
            machine.name,
            before.owner,
            before.name,
            pushes=before.pushes,
            mark=before.mark,
        )
        return self._remembering(machine, operation, call)

    def _about(
        self, machine: Machine, verb: str, about: tuple[Any, ...], value: Any, ref: str
    ) -> Operation:
        owner, _, rest = ref.partition("/")
        return Operation(verb, machine.name, owner, rest.partition(":")[0], about, value)

    def _do_tag(self, machine: Machine) -> Callable[[Any], Any]:
        ref, _, _ = self._version()
        operation = self._about(machine, "tag", ("tag", ref, "pet"), True, ref)
        return self._note(operation, lambda registry: registry.tag(ref, add=["pet"]))

    def _do_untag(self, machine: Machine) -> Callable[[Any], Any]:
        ref, _, _ = self._version()
        operation = self._about(machine, "untag", ("tag", ref, "pet"), False, ref)
        return self._note(operation, lambda registry: registry.tag(ref, remove=["pet"]))

    def _do_alias(self, machine: Machine) -> Callable[[Any], Any]:
        ref, owner, name = self._version()
        number = int(ref.rpartition(":")[2])
        operation = self._about(machine, "alias", ("alias", owner, name, "prod"), number, ref)
        return self._note(operation, lambda registry: registry.alias(ref, "prod"))

    def _do_remove(self, machine: Machine) -> Callable[[Any], Any]:
        ref, _, _ = self._version()
        operation = self._about(machine, "remove", ("removed", ref), True, ref)
        return self._note(operation, lambda registry: registry.remove(ref))

    def _do_restore(self, machine: Machine) -> Callable[[Any], Any]:
        removed = sorted({e.about[1] for e in self.model.operations if e.verb == "remove"})  # type: ignore[index]
        ref = self.chance.choice(removed) if removed else self._version()[0]
        operation = self._about(machine, "restore", ("removed", ref), False, ref)
        return self._note(operation, lambda registry: registry.restore(ref))

    def _do_quota(self, machine: Machine) -> Callable[[Any], Any]:
        owner, limit = self.chance.choice(("alice", "bob")), self.chance.randrange(100, 200)
        operation = Operation("quota", machine.name, owner, "", ("quota", owner), limit)
        return self._note(operation, lambda registry: registry.set_quota(owner, concepts=limit))

    def _do_look(self, machine: Machine) -> Callable[[Any], Any]:
        def look(registry: Any) -> None:
            since = self.step()
            concepts = registry.find()
            assert machine.task is not None
            if not machine.task.stale:
                self.model.check_reading(concepts, machine.name, since)

        return self._note(Operation("look", machine.name), look)

    def _do_compact(self, machine: Machine) -> Callable[[Any], Any]:
        return self._note(
            Operation("compact", machine.name), lambda registry: registry.compact(grace=HOUR)
        )

    def _do_reopen(self, machine: Machine) -> None:
        machine.open()
        self._unclear.pop(machine.name, None)
        machine.plan = None

    def _do_plan_prune(self, machine: Machine) -> Callable[[Any], Any]:
        def plan(registry: Any) -> None:
            machine.plan = ("prune", "", registry.plan_prune(grace=PRUNE_GRACE))

        return self._note(Operation("plan", machine.name), plan)

    def _do_plan_purge(self, machine: Machine) -> Callable[[Any], Any]:
        def plan(registry: Any) -> None:
            machine.plan = ("purge", "alice", registry.plan_purge(owner="alice"))

        return self._note(Operation("plan", machine.name), plan)

    def _do_execute(self, machine: Machine) -> Callable[[Any], Any]:
        verb, owner, plan = machine.plan
        machine.plan = None
        return self._note(Operation(verb, machine.name, owner), lambda registry: plan.execute())

    # -- what came of it --------------------------------------------------------------------------

    def _judge(self, machines: list[Machine]) -> None:
        world, model = self.world, self.model
        model.check_purged(world.objects)
        if self.chance.random() < 0.7:
            self._housekeeping()
        reader = world.machine("reader")
        try:
            concepts = self._read(reader)
            quotas = {q.owner: q.concepts for q in reader.do(lambda r: r.quotas())}
            model.check_numbers()
            model.check_reading(concepts, "a fresh reader")
            model.check_registers(concepts, quotas, "a fresh reader")
            self._pull(reader, {concept.ref for concept in concepts})
            report = reader.do(lambda r: r.check(read_data=True))
            model.findings += [f"check: {p.kind} {p.where}: {p.message}" for p in report.problems]
            for machine in machines:
                if machine.registry is None:
                    continue
                seen = {_seen(each) for each in self._read(machine)}
                if seen != {_seen(each) for each in concepts}:
                    other = sorted(seen ^ {_seen(each) for each in concepts})
                    model.findings.append(f"{machine.name} and a fresh reader differ: {other}")
            assert self._last_push(reader)[0].version
            model.check_numbers()
        except Exception as error:
            model.findings.append(f"a reader fails: {type(error).__name__}: {str(error)[:300]}")

    def _last_push(self, reader: Machine) -> Any:
        """There can always be pushed, at the latest when the next prune has cleared away what a
        killed one left."""
        try:
            return reader.do(self._push(reader, "bob", "dog", 0))
        except ConflictError:
            self.world.now += 2 * DAY
            self.world.machine("keeper").do(lambda r: r.plan_prune(grace=PRUNE_GRACE).execute())
            return reader.do(self._push(reader, "bob", "dog", 0))

    def _pull(self, reader: Machine, listed: set[str]) -> None:
        """Every version that must be there has its mask, whatever ``check`` thinks of it."""
        versions = self.model.versions()
        live = sorted(
            ref
            for ref, (push, _) in versions.items()
            if ref in listed and self.model.fate(ref, push) == "live"
        )
        for ref, mask in zip(live, reader.do(lambda r: r.pull_many(live)), strict=True):
            if mask != MASKS[versions[ref][1]]:
                self.model.findings.append(f"another mask is read back: {ref}")

    def _read(self, machine: Machine) -> list[Any]:
        found: list[Any] = machine.do(lambda registry: registry.find())
        return found

    def _housekeeping(self) -> None:
        """What an administrator does in the weeks after: prune and compact, with nobody at work."""
        world = self.world
        keeper = world.machine("keeper")
        try:
            for _ in range(2):
                world.now += 8 * DAY
                keeper.do(lambda r: r.plan_prune(grace=PRUNE_GRACE).execute())
            keeper.do(lambda r: r.compact(grace=HOUR))
        except Exception as error:
            self.model.findings.append(
                f"housekeeping fails: {type(error).__name__}: {str(error)[:300]}"
            )


def _seen(concept: Any) -> tuple[Any, ...]:
    return (concept.ref, concept.mask_digest, concept.tags, concept.aliases)


def run(profile: str, seed: int, folder: Path) -> Run:
    """The run of a seed, judged."""
    each = Run(PROFILES[profile], seed, folder / f"{profile}-{seed}")
    each.run()
    return each


def scratch() -> Path:
    """A folder in memory where there is one: cache folders are made and removed by the thousand."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="simulation-", dir=shared if shared.is_dir() else None))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", choices=[*PROFILES, "all"])
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, nargs="?")
    parser.add_argument("--trace", action="store_true")
    arguments = parser.parse_args()
    names = list(PROFILES) if arguments.profile == "all" else [arguments.profile]
    last = arguments.first + 1 if arguments.last is None else arguments.last
    folder = scratch()
    write = sys.stdout.write
    all_failed = 0
    for name in names:
        started, failed = time.monotonic(), 0
        for seed in range(arguments.first, last):
            result = run(name, seed, folder)
            failed += bool(result.model.findings)
            for finding in result.model.findings[:4]:
                write(f"{name} {seed}: {finding}\n")
            if arguments.trace:
                write("\n".join([*result.world.trace, *map(str, result.model.operations), ""]))
        all_failed += failed
        took = (time.monotonic() - started) / max(1, last - arguments.first)
        write(f"{name}: {failed} of {last - arguments.first} seeds, {took * 1000:.0f} ms each\n")
    folder.rmdir()
    return 1 if all_failed else 0


if __name__ == "__main__":
    sys.exit(main())
