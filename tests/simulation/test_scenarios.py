"""Each fault that lost an acknowledged change, as the shortest story that shows it.

A story is told with machines A, B and F (a fresh one): ``a.do(call)`` is a whole operation,
``a.start(call)`` and ``a.run_until(task, verb, prefix)`` one that is left standing in the middle.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from model import MASKS
from world import Machine, World

from cones_registry import Registry
from cones_registry.errors import ConesError, ConflictError, NotFoundError, StoreUnavailableError

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
WEEK = 7 * DAY


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world with an empty registry."""
    with World(tmp_path / "world").opened() as world:
        founder = world.machine("founder")
        with world.as_machine(founder):
            Registry.create(founder.store, cache=founder.folder).close()
        yield world


def push(machine: Machine, ref: str, mask: int, **options: Any) -> Any:
    """Push one of the masks, whole."""
    return machine.do(lambda r: r.push(ref, MASKS[mask], scope="prompt", **options))


def whole(world: World, expected: dict[str, int], name: str = "F") -> None:
    """A fresh reader finds these versions and no others, with these masks, and nothing wrong."""
    fresh = world.machine(name)
    assert {concept.ref for concept in fresh.do(lambda r: r.find())} == expected.keys()
    for ref, mask in expected.items():
        assert fresh.do(lambda r, ref=ref: r.pull(ref)) == MASKS[mask]
    report = fresh.do(lambda r: r.check(read_data=True))
    assert report.ok, report.problems


def weeks_of_upkeep(world: World) -> None:
    """Prunes and a compaction, each long after everything before it."""
    keeper = world.machine("keeper")
    for _ in range(2):
        world.now += 8 * DAY
        keeper.do(lambda r: r.plan_prune(grace=WEEK).execute())
    keeper.do(lambda r: r.compact(grace=HOUR))


# -- 1: between the plan of a prune and its execution ---------------------------------------------


def test_what_was_restored_since_a_prune_was_planned_stays(world: World) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    b.do(lambda r: r.remove("alice/dog:1"))
    world.now += 8 * DAY
    plan = a.do(lambda r: r.plan_prune(grace=WEEK))
    b.do(lambda r: r.restore("alice/dog:1"))
    a.do(lambda r: plan.execute())
    weeks_of_upkeep(world)
    whole(world, {"alice/dog:1": 1})


# -- 2: between the plan of a purge and its execution, and the look and the commit of a push ------


def test_an_equal_mask_pushed_since_a_purge_was_planned_stays(world: World) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    plan = a.do(lambda r: r.plan_purge(owner="alice"))
    push(b, "bob/dog", 1)
    a.do(lambda r: plan.execute())
    whole(world, {"bob/dog:1": 1})


def test_what_the_owner_pushed_since_its_purge_was_planned_is_whole_until_the_next(
    world: World,
) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    plan = a.do(lambda r: r.plan_purge(owner="alice"))
    push(b, "alice/dog", 1)
    with pytest.raises(ConflictError, match="written again"):
        a.do(lambda r: plan.execute())
    whole(world, {"alice/dog:2": 1})
    a.do(lambda r: r.plan_purge(owner="alice").execute())
    whole(world, {}, "G")


def test_an_equal_mask_pushed_while_its_owner_is_purged_stays(world: World) -> None:
    """Bob's push has found the mask and stands just before its commit while alice is purged."""
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    b.do(lambda r: r.sync())
    pushing = b.start("push", lambda r: r.push("bob/dog", MASKS[1], scope="prompt"))
    assert b.run_until(pushing, "create", "log/")
    a.do(lambda r: r.plan_purge(owner="alice").execute())
    try:
        b.finish(pushing)
    except ConesError:
        whole(world, {})
        push(b, "bob/dog", 1)  # refused, and said so: again
    concepts = world.machine("F").do(lambda r: r.find())
    assert [concept.owner for concept in concepts] == ["bob"]
    whole(world, {concept.ref: 1 for concept in concepts}, "G")


def test_a_keyed_push_repeated_while_a_prune_deletes_keeps_its_bytes(world: World) -> None:
    """A push under a key is killed before its commit; its mask is nobody's, and marked. It is
    repeated while the prune's second phase runs: found, and to be committed."""
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/other", 2)
    first = b.start("push", lambda r: r.push("bob/dog", MASKS[1], scope="prompt", key="job"))
    assert b.run_until(first, "create", "log/")
    b.kill()
    world.now += 8 * DAY
    a.do(lambda r: r.plan_prune(grace=WEEK).execute())
    world.now += 8 * DAY
    plan = a.do(lambda r: r.plan_prune(grace=WEEK))
    again = b.start("push", lambda r: r.push("bob/dog", MASKS[1], scope="prompt", key="job"))
    b.run_until(again, "create", "log/")
    a.do(lambda r: plan.execute())
    try:
        b.finish(again)
    except ConesError:
        push(b, "bob/dog", 1, key="job")
    concepts = world.machine("F").do(lambda r: r.find(owner="bob"))
    assert len(concepts) == 1
    whole(world, {"alice/other:1": 2, concepts[0].ref: 1}, "G")


def test_a_prune_that_stands_before_its_delete_takes_nothing_used_since(world: World) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    a.do(lambda r: r.remove("alice/dog:1"))
    world.now += 8 * DAY
    a.do(lambda r: r.plan_prune(grace=WEEK).execute())
    world.now += 8 * DAY
    plan = a.do(lambda r: r.plan_prune(grace=WEEK))
    pruning = a.start("prune", lambda r: plan.execute())
    assert a.run_until(pruning, "delete", "")
    pushing = b.start("push", lambda r: r.push("bob/dog", MASKS[1], scope="prompt"))
    for _ in range(400):  # it may wait for the prune to end
        if pushing.done or pushing.at[0] == "sleep":
            break
        pushing.resume()
    a.finish(pruning)
    try:
        b.finish(pushing)
    except ConesError:
        push(b, "bob/dog", 1)
    concepts = world.machine("F").do(lambda r: r.find())
    assert [concept.owner for concept in concepts] == ["bob"]
    whole(world, {concept.ref: 1 for concept in concepts}, "G")


# -- 3: a backup of the store is put back ---------------------------------------------------------


def backed_up(world: World) -> tuple[Machine, Machine]:
    """A and B saw versions that the store, put back, does not have."""
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    a.do(lambda r: r.compact(grace=HOUR))
    backup = world.objects.backup()
    push(a, "alice/dog", 2)
    push(b, "bob/cat", 3)
    world.now += MINUTE
    a.do(lambda r: r.compact(grace=HOUR))
    b.do(lambda r: r.find())
    world.objects.clear()
    world.objects.update(backup)
    return a, b


def test_an_old_copy_shows_what_the_backup_has(world: World) -> None:
    a, b = backed_up(world)
    for machine in (a, b):
        assert [concept.ref for concept in machine.do(lambda r: r.find())] == ["alice/dog:1"]
        machine.open()
        assert [concept.ref for concept in machine.do(lambda r: r.find())] == ["alice/dog:1"]


def test_what_is_pushed_after_a_backup_was_put_back_survives_old_compactors(world: World) -> None:
    a, b = backed_up(world)
    new = world.machine("C")
    push(new, "carl/dog", 1)
    push(new, "alice/dog", 3)
    a.do(lambda r: r.compact(grace=HOUR))
    world.now += DAY
    b.do(lambda r: r.compact(grace=HOUR))
    weeks_of_upkeep(world)
    whole(world, {"alice/dog:1": 1, "carl/dog:1": 1, "alice/dog:2": 3})


def test_an_old_machine_pushes_after_a_backup_was_put_back(world: World) -> None:
    a, b = backed_up(world)
    pushed = [push(a, "alice/dog", 3), push(b, "bob/cat", 2)]
    weeks_of_upkeep(world)
    expected = {pushed[0].ref: 3, pushed[1].ref: 2, "alice/dog:1": 1}
    whole(world, expected)


# -- 4: one name, two stores ----------------------------------------------------------------------


def test_a_copied_registry_on_another_endpoint_is_another_registry(world: World) -> None:
    """Staging is a copy of production's bucket under the same name on another server."""
    a = world.machine("A", place="production")
    push(a, "alice/dog", 1)
    staging = world.objects.backup()
    push(a, "alice/dog", 2)
    other = world.machine("A-staging", objects=staging, place="staging", cache="A")
    assert [concept.ref for concept in other.do(lambda r: r.find())] == ["alice/dog:1"]
    push(other, "alice/cat", 3)
    other.do(lambda r: r.compact(grace=HOUR))
    fresh = world.machine("F-staging", objects=staging, place="staging")
    refs = {concept.ref for concept in fresh.do(lambda r: r.find())}
    assert refs == {"alice/dog:1", "alice/cat:1"}
    whole(world, {"alice/dog:1": 1, "alice/dog:2": 2})


# -- 5: a push that failed is repeated on the same handle -----------------------------------------


def failed_push(world: World, machine: Machine, ref: str, mask: int) -> None:
    """Its commit does not reach the store."""
    task = machine.start("push", lambda r: r.push(ref, MASKS[mask], scope="prompt"))
    assert machine.run_until(task, "create", "log/")
    world.faults = {"refused": 1.0}
    with pytest.raises(StoreUnavailableError):
        machine.finish(task)
    world.faults = {}


def test_a_push_repeated_after_a_prune_has_its_bytes(world: World) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    failed_push(world, b, "bob/dog", 2)
    for _ in range(2):
        world.now += 8 * DAY
        a.do(lambda r: r.plan_prune(grace=WEEK).execute())
    try:
        pushed = push(b, "bob/dog", 2)
    except ConesError:
        pushed = push(b, "bob/dog", 2)
    whole(world, {"alice/dog:1": 1, pushed.ref: 2})


def test_a_push_repeated_after_a_purge_says_nothing_of_the_purged(world: World) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    failed_push(world, b, "alice/dog", 2)
    a.do(lambda r: r.plan_purge(owner="alice").execute())
    with contextlib.suppress(ConesError):
        push(b, "alice/dog", 2)
    found = world.machine("F").do(lambda r: r.find())
    # Whoever pushes again after a purge pushes something new: under a new number, with its bytes.
    assert all(concept.version > 2 for concept in found)
    whole(world, {concept.ref: 2 for concept in found}, "G")


# -- 6: clocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offset",
    [
        -60.0,
        -25 * HOUR,
        25 * HOUR,
    ],
)
@pytest.mark.parametrize("change", ["restore", "tag", "quota"])
def test_a_change_from_a_machine_whose_clock_is_wrong_holds_or_is_refused(
    world: World, change: str, offset: float
) -> None:
    """A's clock is right, B's is not; B's copy is current, and its process is new."""
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    a.do(lambda r: r.tag("alice/dog:1", add=["pet"]))
    a.do(lambda r: r.set_quota("alice", concepts=100))
    a.do(lambda r: r.remove("alice/dog:1"))
    if change == "tag":
        a.do(lambda r: r.restore("alice/dog:1"))
    b.do(lambda r: r.find())
    b.offset = offset
    b.open()
    fresh = world.machine("F")
    with contextlib.suppress(ConesError):
        if change == "restore":
            b.do(lambda r: r.restore("alice/dog:1"))
            assert [concept.ref for concept in fresh.do(lambda r: r.find())] == ["alice/dog:1"]
        elif change == "tag":
            assert "pet" not in b.do(lambda r: r.tag("alice/dog:1", remove=["pet"])).tags
            assert "pet" not in fresh.do(lambda r: r.get("alice/dog:1")).tags
        else:
            b.do(lambda r: r.set_quota("alice", concepts=200))
            assert fresh.do(lambda r: r.quota("alice")).concepts == 200


@pytest.mark.parametrize("offset", [25 * HOUR, 30 * DAY])
def test_one_machine_far_ahead_does_not_stop_the_changes_of_others(
    world: World, offset: float
) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    b.offset = offset
    b.open()
    with contextlib.suppress(ConesError):
        b.do(lambda r: r.tag("alice/dog:1", add=["pet"]))
        b.do(lambda r: r.remove("alice/dog:1"))
    with contextlib.suppress(NotFoundError):
        a.do(lambda r: r.restore("alice/dog:1"))
    a.do(lambda r: r.tag("alice/dog:1", remove=["pet"]))
    assert world.machine("F").do(lambda r: r.get("alice/dog:1")).tags == ()


def test_a_removal_by_a_clock_far_behind_can_be_restored_for_the_whole_grace(world: World) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    world.now += 30 * DAY
    b.offset = -30 * DAY
    with contextlib.suppress(ConesError):
        b.do(lambda r: r.remove("alice/dog:1"))
        plan = a.do(lambda r: r.plan_prune(grace=WEEK))
        assert not plan.versions
        a.do(lambda r: plan.execute())
        a.do(lambda r: r.restore("alice/dog:1"))
    whole(world, {"alice/dog:1": 1})


def test_a_purge_by_a_clock_behind_ends(world: World) -> None:
    a, b = world.machine("A"), world.machine("B")
    push(a, "alice/dog", 1)
    push(a, "bob/dog", 2)
    b.do(lambda r: r.find())
    b.offset = -60.0
    b.open()
    receipt = b.do(lambda r: r.plan_purge(owner="alice").execute())
    assert receipt.found == 0
    whole(world, {"bob/dog:1": 2})


# -- 7 and 8 --------------------------------------------------------------------------------------


def test_a_registry_that_lost_its_first_object_is_not_founded_again(world: World) -> None:
    a = world.machine("A")
    push(a, "alice/dog", 1)
    del world.objects["cones.json"]
    with world.as_machine(a), pytest.raises(ConflictError):
        Registry.create(a.store, cache=world.folder / "new").close()
