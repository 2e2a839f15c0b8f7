"""The queue of the service, on a real base model: what is drawn together, in turn, and alone."""

import contextlib
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

from cones_registry import Generator, Request
from cones_registry.serving.batching import (
    Batcher,
    DrainingError,
    QueueFullError,
    SharedSettings,
    Ticket,
)

FEW = SharedSettings(steps=1)
MORE = SharedSettings(steps=2)


class Gate(Generator):
    """A generator that waits at the door, and remembers which batches went through."""

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []

    def generate(self, requests: Any, **settings: Any) -> Any:
        self.entered.set()
        assert self.open.wait(60)
        self.batches.append([request.prompt for request in requests])
        if any("bad" in request.prompt for request in requests):
            raise RuntimeError("this one cannot be drawn")
        return super().generate(requests, **settings)


@pytest.fixture
def gate(tiny_base: Any) -> Gate:
    return Gate(tiny_base)


def ticket(prompt: str, owner: str = "ann", settings: SharedSettings = FEW, **more: Any) -> Ticket:
    return Ticket(Request(prompt, seed=1), settings, owner, **more)


def submit_behind(gate: Gate, batcher: Batcher, *tickets: Ticket) -> None:
    """Queue ``tickets`` while the thread is busy with another, then let all go."""
    first = ticket("first", owner="zoe", settings=SharedSettings(steps=3))
    batcher.submit(first)
    assert gate.entered.wait(60)
    batcher.submit(*tickets)
    gate.open.set()


def test_requests_of_equal_settings_are_drawn_together_and_others_apart(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=8)
    tickets = [ticket("a"), ticket("b", settings=MORE), ticket("c"), ticket("d", settings=MORE)]
    submit_behind(gate, batcher, *tickets)
    pictures = [each.done.result(60) for each in tickets]
    assert batcher.drain(60) and len(pictures) == 4
    assert gate.batches[1:] == [["a", "c"], ["b", "d"]]


def test_each_request_gets_its_own_picture(gate: Gate, tiny_base: Any) -> None:
    batcher = Batcher(gate, max_batch=4)
    tickets = [Ticket(Request("a photo", seed=seed), FEW, "ann") for seed in range(6)]
    submit_behind(gate, batcher, *tickets)
    drawn = [each.done.result(60) for each in tickets]
    batcher.drain(60)
    for seed, picture in enumerate(drawn):
        alone = Generator(tiny_base).generate([Request("a photo", seed=seed)], steps=1)[0]
        difference = max(
            abs(a - b) for a, b in zip(picture.tobytes(), alone.tobytes(), strict=True)
        )
        assert difference <= 2, seed


def test_owners_take_turns_whoever_asked_for_more(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=2)
    greedy = [ticket(f"ann {number}") for number in range(4)]
    modest = [ticket("bob 0", owner="bob"), ticket("bob 1", owner="bob")]
    submit_behind(gate, batcher, *greedy, *modest)
    for each in [*greedy, *modest]:
        each.done.result(60)
    batcher.drain(60)
    assert gate.batches[1:] == [["ann 0", "bob 0"], ["ann 1", "bob 1"], ["ann 2", "ann 3"]]


def test_who_asks_under_many_names_gets_no_more_turns(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=2)
    greedy = [ticket(f"ann {name}", owner=name, caller="ann") for name in "uvwx"]
    modest = [ticket(f"bob {number}", owner="u", caller="bob") for number in range(2)]
    submit_behind(gate, batcher, *greedy, *modest)
    for each in [*greedy, *modest]:
        each.done.result(60)
    batcher.drain(60)
    assert gate.batches[1:] == [["ann u", "bob 0"], ["ann v", "bob 1"], ["ann w", "ann x"]]


def test_places_of_those_who_have_gone_are_free_at_once(gate: Gate) -> None:
    batcher = Batcher(gate, max_waiting=2)
    batcher.submit(ticket("holds the thread"))
    assert gate.entered.wait(60)
    gone = [ticket("a"), ticket("b")]
    batcher.submit(*gone)
    for each in gone:
        each.cancel()
    late = ticket("c")
    batcher.submit(late)
    gate.open.set()
    assert late.done.result(60).size
    batcher.drain(60)


def test_a_fault_of_the_observer_is_an_answer_and_the_next_batch_is_drawn(gate: Gate) -> None:
    class Faulty:
        def batch(self, tickets: Any) -> Any:
            if tickets[0].request.prompt == "a":
                raise RuntimeError("out of order")
            return contextlib.nullcontext()

    gate.open.set()
    batcher = Batcher(gate, observer=Faulty())
    first, second = ticket("a"), ticket("b")
    batcher.submit(first)
    with pytest.raises(RuntimeError, match="out of order"):
        first.done.result(60)
    batcher.submit(second)
    assert second.done.result(60).size and batcher.is_alive
    batcher.drain(60)


def test_a_request_that_fails_fails_alone(gate: Gate) -> None:
    batcher = Batcher(gate, max_batch=8)
    tickets = [ticket(name) for name in ("a", "b", "bad", "c", "d")]
    submit_behind(gate, batcher, *tickets)
    for each in tickets:
        if each.request.prompt == "bad":
            with pytest.raises(RuntimeError, match="cannot be drawn"):
                each.done.result(60)
        else:
            assert each.done.result(60).size
    batcher.drain(60)


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_again(gate: Gate) -> None:
    batcher = Batcher(gate, max_waiting=3)
    submit_behind(gate, batcher)
    gate.open.clear()
    gate.entered.clear()
    batcher.submit(ticket("holds the thread", settings=MORE))
    assert gate.entered.wait(60)
    batcher.submit(ticket("a"), ticket("b"))
    with pytest.raises(QueueFullError) as error:
        batcher.submit(ticket("c"), ticket("d"))
    assert 1 <= error.value.retry_after <= 60 and batcher.waiting == 2
    gate.open.set()
    assert batcher.drain(60)


def test_what_nobody_waits_for_leaves_the_queue(gate: Gate) -> None:
    batcher = Batcher(gate)
    tickets = [ticket("a"), ticket("b"), ticket("c")]
    first = ticket("first", settings=MORE)
    batcher.submit(first)
    assert gate.entered.wait(60)
    batcher.submit(*tickets)
    tickets[1].cancel()
    gate.open.set()
    tickets[2].done.result(60)
    with pytest.raises(CancelledError):
        tickets[1].done.result(60)
    batcher.drain(60)
    assert gate.batches == [["first"], ["a", "c"]] and batcher.waiting == 0


def test_a_batch_that_nobody_waits_for_is_given_up_between_two_steps(tiny_base: Any) -> None:
    steps: list[int] = []
    batcher = Batcher(Generator(tiny_base), gather_seconds=0)
    lost = ticket("a", settings=SharedSettings(steps=50))

    def on_progress(step: int, _: int, __: Any) -> None:
        steps.append(step)
        lost.cancel()

    lost.on_progress = on_progress
    batcher.submit(lost)
    follower = ticket("b")
    batcher.submit(follower)
    assert follower.done.result(60).size
    batcher.drain(60)
    assert len(steps) < 50


def test_draining_draws_what_waits_and_takes_nothing_new(gate: Gate) -> None:
    batcher = Batcher(gate)
    waiting = ticket("a")
    submit_behind(gate, batcher, waiting)
    assert batcher.drain(60)
    assert waiting.done.result(0).size
    with pytest.raises(DrainingError):
        batcher.submit(ticket("late"))


def test_draining_ends_in_time_and_answers_what_is_left(gate: Gate) -> None:
    batcher = Batcher(gate)
    drawn = ticket("holds the thread")
    batcher.submit(drawn)
    assert gate.entered.wait(60)
    left = ticket("a")
    batcher.submit(left)
    began = time.monotonic()
    assert not batcher.drain(0.2)
    for each in (left, drawn):
        with pytest.raises(DrainingError):
            each.done.result(0)
    assert time.monotonic() - began < 30
    gate.open.set()


def test_steps_and_previews_are_told_to_who_asked(tiny_base: Any) -> None:
    told: list[tuple[int, bool]] = []
    batcher = Batcher(Generator(tiny_base), preview_every=2)
    watched = ticket(
        "a",
        settings=SharedSettings(steps=4),
        on_progress=lambda step, steps, picture: told.append((step, picture is not None)),
        wants_previews=True,
    )
    silent = ticket("b", settings=SharedSettings(steps=4))
    batcher.submit(watched, silent)
    watched.done.result(60)
    silent.done.result(60)
    batcher.drain(60)
    assert [step for step, preview in told if not preview] == [1, 2, 3, 4]
    assert [step for step, preview in told if preview] == [2, 4]
