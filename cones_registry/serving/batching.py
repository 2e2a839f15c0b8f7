"""Dynamic batching: requests that wait are drawn together, whatever their concepts.

One thread draws with one base model. Requests of equal settings share a batch; who asks for much
does not keep others waiting, since places in a batch go round the owners in turn. A request that
fails, fails alone: its batch is halved until it stands by itself.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cones_registry.errors import LimitExceededError, StoreUnavailableError
from cones_registry.generation.failed import FailedPicturesError

if TYPE_CHECKING:
    from PIL.Image import Image

    from cones_registry.generation import Generator, Request

ProgressCallback = Callable[[int, int, "Image | None"], None]
"""``on_progress(step, steps, preview)``: called after each step, from the drawing thread."""


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
    """Is told what the batcher does; the metrics of the service are one."""

    def batch_began(self, size: int, waited: Sequence[float]) -> None:
        """A batch of ``size`` pictures is drawn now; they waited so many seconds each."""

    def batch_ended(self, size: int, seconds: float) -> None:
        """It took ``seconds``, whether or not every picture came of it."""


@dataclass(eq=False)
class Ticket:
    """One picture that was asked for, from its arrival to its answer.

    Attributes:
        request: what to draw, with its masks at hand.
        settings: what it must share with others in its batch.
        owner: who the place in the queue is for; owners take turns.
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
    done: Future[Image] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    is_wanted: bool = True

    def cancel(self) -> None:
        """Nobody waits for it any longer: it leaves the queue, or its picture is thrown away."""
        self.is_wanted = False
        self.done.cancel()


class _Abandoned(Exception):
    """Everybody who waited for the batch that is being drawn has gone."""


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
        # Owners in the order of their turns; each with its requests, oldest first.
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._waiting = 0
        self._running = 0
        self._seconds_per_picture = 1.0  # a running mean, for Retry-After
        self._draining = False
        self._thread = threading.Thread(target=self._draw_for_ever, name="cones-draw", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    @property
    def running(self) -> int:
        """Pictures that are being drawn."""
        return self._running

    def submit(self, *tickets: Ticket) -> None:
        """Put requests into the queue, all of them or none.

        Raises:
            QueueFullError: not all of them fit.
            DrainingError: the service is stopping.
        """
        with self._changed:
            if self._draining:
                raise DrainingError
            if self._waiting + len(tickets) > self._max_waiting:
                seconds = self._waiting * self._seconds_per_picture
                raise QueueFullError(self._waiting, max(1, min(60, round(seconds))))
            for ticket in tickets:
                self._queues.setdefault(ticket.owner, deque()).append(ticket)
            self._waiting += len(tickets)
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Take nothing new, draw what waits, then stop; whether all of it was drawn in time.

        What is left after ``timeout`` seconds fails with ``DrainingError``.
        """
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        self._thread.join(timeout)
        left: list[Ticket] = []
        with self._changed:
            for queue in self._queues.values():
                left += queue
            self._queues.clear()
            self._waiting = 0
            self._changed.notify_all()
        for ticket in left:
            _fail(ticket, DrainingError())
        return not left and not self._thread.is_alive()

    # -- the drawing thread -----------------------------------------------------------------------

    def _draw_for_ever(self) -> None:
        while True:
            tickets = self._next_batch()
            if tickets is None:
                return
            began = time.monotonic()
            if self._observer is not None:
                waited = [began - ticket.arrived for ticket in tickets]
                self._observer.batch_began(len(tickets), waited)
            self._draw(tickets)
            seconds = time.monotonic() - began
            with self._changed:
                self._running = 0
                self._seconds_per_picture += 0.2 * (
                    seconds / len(tickets) - self._seconds_per_picture
                )
            if self._observer is not None:
                self._observer.batch_ended(len(tickets), seconds)

    def _next_batch(self) -> list[Ticket] | None:
        """Wait for the next batch; None once the service has drained."""
        with self._changed:
            while True:
                self._forget_cancelled()
                if not self._queues:
                    if self._draining:
                        return None
                    self._changed.wait()
                    continue
                # The first in turn decides the settings; it waits a moment for company.
                first = next(iter(self._queues.values()))[0]
                left = first.arrived + self._gather_seconds - time.monotonic()
                if (
                    left > 0
                    and not self._draining
                    and self._count(first.settings) < self._max_batch
                ):
                    self._changed.wait(left)
                    continue
                tickets = self._take(first.settings)
                self._running = len(tickets)
                if tickets:
                    return tickets

    def _count(self, settings: SharedSettings) -> int:
        return sum(
            ticket.settings == settings for queue in self._queues.values() for ticket in queue
        )

    def _forget_cancelled(self) -> None:
        """Take requests out of the queue that nobody waits for."""
        for owner, queue in list(self._queues.items()):
            wanted = deque(ticket for ticket in queue if ticket.is_wanted)
            self._waiting -= len(queue) - len(wanted)
            if wanted:
                self._queues[owner] = wanted
            else:
                del self._queues[owner]

    def _take(self, settings: SharedSettings) -> list[Ticket]:
        """Take a batch out of the queue: one request of each owner in turn, oldest first."""
        taken: list[Ticket] = []
        owners = deque(self._queues)
        while owners and len(taken) < self._max_batch:
            owner = owners.popleft()
            queue = self._queues[owner]
            ticket = next((each for each in queue if each.settings == settings), None)
            if ticket is None:
                continue
            queue.remove(ticket)
            if ticket.done.set_running_or_notify_cancel():
                taken.append(ticket)
            self._waiting -= 1
            if queue:
                # Had a turn: goes behind the others, in this batch and for the next.
                self._queues.move_to_end(owner)
                owners.append(owner)
            else:
                del self._queues[owner]
        return taken

    def _draw(self, tickets: list[Ticket]) -> None:
        """Draw a batch; where it fails, halves of it, until what fails stands alone."""
        try:
            pictures = self._generator.generate(
                [ticket.request for ticket in tickets],
                **tickets[0].settings._asdict(),
                **self._callbacks(tickets),
            )
        except _Abandoned:
            for ticket in tickets:
                _fail(ticket, _Abandoned())
        except FailedPicturesError as error:
            for number, (ticket, picture) in enumerate(zip(tickets, error.pictures, strict=True)):
                if picture is None:
                    _fail(ticket, FailedPicturesError([None], {0: error.reasons[number]}))
                else:
                    ticket.done.set_result(picture)
        except Exception as error:  # whatever a library raised, it is the request's answer
            if len(tickets) == 1:
                _fail(tickets[0], error)
                return
            middle = len(tickets) // 2
            self._draw(tickets[:middle])
            self._draw(tickets[middle:])
        else:
            for ticket, picture in zip(tickets, pictures, strict=True):
                ticket.done.set_result(picture)

    def _callbacks(self, tickets: list[Ticket]) -> dict[str, Any]:
        """What the generator calls back; models whose pipeline calls nobody draw to the end."""
        if not self._generator.takes_on_step:
            return {}

        def on_step(pipeline: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if not any(ticket.is_wanted for ticket in tickets):
                raise _Abandoned
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


def _fail(ticket: Ticket, error: Exception) -> None:
    if not ticket.done.done():
        ticket.done.set_exception(error)
