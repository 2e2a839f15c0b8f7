"""Dynamic batching: requests that wait are drawn together, whatever their concepts.

One thread draws with one base model. Requests of equal settings share a batch; who asks for much
does not keep others waiting, since places in a batch go round the callers in turn. A request that
fails, fails alone: its batch is halved until it stands by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cones_registry.errors import LimitExceededError, StoreUnavailableError
from cones_registry.generation.failed import FailedPicturesError
from cones_registry.serving.turns import Turns

if TYPE_CHECKING:
    from PIL.Image import Image

    from cones_registry.generation import Generator, Request

ProgressCallback = Callable[[int, int, "Image | None"], None]
"""``on_progress(step, steps, preview)``: called after each step, from the drawing thread."""
PhaseCallback = Callable[[str, float], None]
"""``on_phase(name, seconds)``: see ``Generator.generate``."""
_LOGGER = logging.getLogger(__name__)


class SharedSettings(NamedTuple):
    """What all pictures of one batch have in common; None is the base model's own."""

    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None


class QueueFullError(LimitExceededError):
    """More requests wait than the service keeps. Come again after ``retry_after`` seconds."""

    status: Final = 429

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(
            f"{waiting} requests wait already, which is all this service keeps. "
            f"Ask again in {retry_after} s"
        )
        self.retry_after = retry_after


class DrainingError(StoreUnavailableError):
    """The service is about to stop: it finishes what it has and takes nothing new."""

    retry_after: Final = 10

    def __init__(self) -> None:
        super().__init__("the service is stopping and takes nothing new. Ask again in 10 s")


class BatchObserver(Protocol):
    """Sees what the batcher does; the metrics of the service are one."""

    def batch(self, tickets: Sequence[Ticket]) -> AbstractContextManager[PhaseCallback]:
        """Entered while a batch is drawn; gives what is told of each phase."""
        ...


@dataclass(eq=False)
class Ticket:
    """One picture that was asked for, from its arrival to its answer.

    Attributes:
        request: what to draw, with its masks at hand.
        settings: what it must share with others in its batch.
        owner: who the place in the queue is for; the owners of one caller take turns.
        caller: who asks; callers take turns.
        trace: where in a trace it was asked for; None without one.
        on_progress: told after each step; None where nobody looks.
        wants_previews: whether ``on_progress`` gets the picture of each step.
        done: its picture, or what went wrong.
        arrived: ``time.monotonic()`` of its arrival.
        is_wanted: whether somebody still waits for it.
    """

    request: Request
    settings: SharedSettings
    owner: str
    on_progress: ProgressCallback | None = None
    wants_previews: bool = False
    caller: str = ""
    trace: Any = None
    done: Future[Image] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    is_wanted: bool = True

    def cancel(self) -> None:
        """Nobody waits for it any longer: it leaves the queue, or its picture is thrown away."""
        self.is_wanted = False
        self.done.cancel()


class AbandonedError(Exception):
    """Everybody who waited for the batch that was being drawn has gone: nobody will see this."""


class Batcher:
    """The queue of one base model and the thread that draws from it.

    Args:
        generator: draws.
        max_batch: most pictures drawn at a time.
        max_waiting: most requests that wait; one more is refused.
        gather_seconds: how long the first request of a batch waits for company.
        preview_every: steps between two previews, where somebody wants any.
        observer: is told of each batch.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        max_batch: int = 8,
        max_waiting: int = 256,
        gather_seconds: float = 0.02,
        preview_every: int = 5,
        observer: BatchObserver | None = None,
    ) -> None:
        self._generator = generator
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._gather_seconds = gather_seconds
        self._preview_every = preview_every
        self._observer = observer
        self._changed = threading.Condition()
        self._turns = Turns()
        self._drawing: list[Ticket] = []
        self._seconds_per_picture = 1.0  # a running mean, for Retry-After
        self._draining = False
        self._thread = threading.Thread(target=self._draw_for_ever, name="cones-draw", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._turns)

    @property
    def is_alive(self) -> bool:
        """Whether the drawing thread goes on; it ends by draining alone."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Pictures that are being drawn."""
        return len(self._drawing)

    def submit(self, *tickets: Ticket) -> None:
        """Put requests into the queue, all of them or none.

        Raises:
            QueueFullError: not all of them fit.
            DrainingError: the service is stopping.
        """
        with self._changed:
            if self._draining:
                raise DrainingError
            if len(self._turns) + len(tickets) > self._max_waiting:
                self._turns.drop_unwanted()
            waiting = len(self._turns)
            if waiting + len(tickets) > self._max_waiting:
                seconds = waiting * self._seconds_per_picture
                raise QueueFullError(waiting, max(1, min(60, round(seconds))))
            for ticket in tickets:
                self._turns.add(ticket)
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Take nothing new, draw what waits, then stop; whether all of it was drawn in time.

        What is left after ``timeout`` seconds, waiting or half drawn, fails with ``DrainingError``.
        """
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            left = [*self._turns, *self._drawing]
            self._turns.clear()
            self._changed.notify_all()
        for ticket in left:
            ticket.is_wanted = False
            _fail(ticket, DrainingError())
        return not left

    # -- the drawing thread -----------------------------------------------------------------------

    def _draw_for_ever(self) -> None:
        while True:
            tickets = self._next_batch()
            if tickets is None:
                return
            began = time.monotonic()
            try:
                with self._observed(tickets) as on_phase:
                    self._draw(tickets, on_phase)
            except Exception as error:  # of ours: those that wait are told, and others are drawn
                _LOGGER.exception("a batch was lost")
                for ticket in tickets:
                    _fail(ticket, error)
            each = (time.monotonic() - began) / len(tickets)
            with self._changed:
                self._drawing = []
                self._seconds_per_picture += 0.2 * (each - self._seconds_per_picture)

    def _observed(self, tickets: list[Ticket]) -> AbstractContextManager[PhaseCallback | None]:
        return nullcontext() if self._observer is None else self._observer.batch(tickets)

    def _next_batch(self) -> list[Ticket] | None:
        """Wait for the next batch; None once the service has drained."""
        with self._changed:
            while True:
                self._turns.drop_unwanted()
                if not len(self._turns):
                    if self._draining:
                        return None
                    self._changed.wait()
                    continue
                # The first in turn decides the settings; it waits a moment for company.
                first = self._turns.first()
                left = first.arrived + self._gather_seconds - time.monotonic()
                if (
                    left > 0
                    and not self._draining
                    and self._count(first.settings) < self._max_batch
                ):
                    self._changed.wait(left)
                    continue
                self._drawing = self._take(first.settings)
                if self._drawing:
                    return self._drawing

    def _count(self, settings: SharedSettings) -> int:
        return sum(ticket.settings == settings for ticket in self._turns)

    def _take(self, settings: SharedSettings) -> list[Ticket]:
        """Take a batch out of the queue, one request of each caller in turn."""
        taken: list[Ticket] = []
        while len(taken) < self._max_batch:
            ticket = self._turns.take(settings)
            if ticket is None:
                break
            if ticket.done.set_running_or_notify_cancel():
                taken.append(ticket)
        return taken

    def _draw(self, tickets: list[Ticket], on_phase: PhaseCallback | None) -> None:
        """Draw a batch; where it fails, halves of it, until what fails stands alone."""
        try:
            pictures = self._generator.generate(
                [ticket.request for ticket in tickets],
                **tickets[0].settings._asdict(),
                **self._callbacks(tickets),
                on_phase=on_phase,
            )
        except AbandonedError as error:
            for ticket in tickets:
                _fail(ticket, error)
        except FailedPicturesError as error:
            for number, (ticket, picture) in enumerate(zip(tickets, error.pictures, strict=True)):
                if picture is None:
                    _fail(ticket, FailedPicturesError([None], {0: error.reasons[number]}))
                else:
                    _give(ticket, picture)
        except Exception as error:  # whatever a library raised, it is the request's answer
            if len(tickets) == 1:
                _fail(tickets[0], error)
                return
            middle = len(tickets) // 2
            self._draw(tickets[:middle], on_phase)
            self._draw(tickets[middle:], on_phase)
        else:
            for ticket, picture in zip(tickets, pictures, strict=True):
                _give(ticket, picture)

    def _callbacks(self, tickets: list[Ticket]) -> dict[str, Any]:
        """What the generator calls back; models whose pipeline calls nobody draw to the end."""
        if not self._generator.takes_on_step:
            return {}

        def on_step(pipeline: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if not any(ticket.is_wanted for ticket in tickets):
                raise AbandonedError
            for ticket in tickets:
                if ticket.on_progress is not None:
                    ticket.on_progress(step + 1, pipeline.num_timesteps, None)
            return tensors

        def on_preview(step: int, pictures: Sequence[Image]) -> None:
            for ticket, picture in zip(tickets, pictures, strict=True):
                if ticket.wants_previews and ticket.on_progress is not None:
                    ticket.on_progress(step + 1, 0, picture)

        callbacks: dict[str, Any] = {"on_step": on_step}
        if any(ticket.wants_previews for ticket in tickets):
            callbacks |= {"on_preview": on_preview, "preview_every": self._preview_every}
        return callbacks


def _give(ticket: Ticket, picture: Image) -> None:
    with suppress(InvalidStateError):  # answered already: the service is stopping
        ticket.done.set_result(picture)


def _fail(ticket: Ticket, error: Exception) -> None:
    with suppress(InvalidStateError):
        ticket.done.set_exception(error)
