"""Service: one base model, one registry, one queue; what the API and the pages both ask."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cones_registry.errors import ConesError, NotFoundError, UsageError
from cones_registry.generation import (
    Generator,
    Request,
    encode_picture,
    read_request,
    recipe_of,
)
from cones_registry.serving.batching import Batcher, SharedSettings, Ticket
from cones_registry.serving.bodies import ConceptChoice, ImagesBody
from cones_registry.serving.metrics import Metrics
from cones_registry.serving.settings import ServiceSettings
from cones_registry.weighting import format_weighted

if TYPE_CHECKING:
    from PIL.Image import Image

    from cones_registry.base_model import BaseModel
    from cones_registry.registry import Registry
    from cones_registry.resolver import Composition

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)
_THREADS = 8
_KEPT_JOBS = 500


@dataclass(frozen=True)
class Progress:
    """How far a picture is. preview: of this step, where somebody asked for it."""

    number: int
    step: int
    steps: int
    preview: Image | None = None


@dataclass(frozen=True)
class Drawn:
    """One finished picture.

    data: the file, its recipe inside. recipe: the same as a mapping.
    """

    number: int
    seed: int
    data: bytes
    recipe: Mapping[str, Any]


@dataclass
class Asked:
    """The pictures of one request: pinned, checked, and in the queue.

    Attributes:
        id: random, unguessable.
        caller: who asked.
        prompt: as it was written.
        tickets: one for each picture.
        composition: what acts on them; None without concepts.
        unread: end of the prompt that the text encoder does not read; mostly empty.
    """

    id: str
    caller: str
    prompt: str
    tickets: tuple[Ticket, ...]
    settings: SharedSettings
    composition: Composition | None
    format: str
    unread: str = ""
    arrived: float = field(default_factory=time.time)

    def cancel(self) -> None:
        """Nobody waits for it any longer."""
        for ticket in self.tickets:
            ticket.cancel()


class Service:
    """What the HTTP routes stand on. Make it inside a running event loop; ``close`` drains it.

    Args:
        base: draws; any number of concepts at once.
        registry: where concepts come from; None for a service without any.
        settings: limits and times.
    """

    def __init__(
        self, base: BaseModel, registry: Registry | None, settings: ServiceSettings
    ) -> None:
        self.base = base
        self.settings = settings
        self.metrics = Metrics()
        self.pictures = PictureShelf(settings.kept_pictures, settings.kept_seconds)
        self._registry = registry
        self.generator = Generator(base)
        self.batcher = Batcher(
            self.generator,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            gather_seconds=settings.gather_seconds,
            observer=self.metrics,
        )
        self.jobs = Jobs()
        self._tasks: set[asyncio.Future[None]] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="cones-serve")
        self._synced = time.monotonic()
        self._stopping = threading.Event()
        self._syncing = threading.Thread(target=self._keep_synced, daemon=True, name="cones-sync")
        if registry is not None:
            self._syncing.start()
        self.metrics.watch("cones_waiting", "Pictures that wait.", lambda: self.batcher.waiting)
        self.metrics.watch("cones_running", "Pictures being drawn.", lambda: self.batcher.running)
        self.metrics.watch(
            "cones_sync_age_seconds", "Since the registry was read.", lambda: self.sync_age
        )
        self.metrics.watch_counts(
            "cones_mask_cache",
            "Masks that were needed, by whether they were in memory.",
            "outcome",
            self._mask_lookups,
        )

    @property
    def registry(self) -> Registry:
        """The registry; UsageError where the service was started without one."""
        if self._registry is None:
            raise UsageError("this service has no registry. Start it with -r PATH_OR_URL")
        return self._registry

    @property
    def sync_age(self) -> float:
        """Seconds since the registry's news were last read; 0 without a registry."""
        return 0.0 if self._registry is None else time.monotonic() - self._synced

    @property
    def is_alive(self) -> bool:
        """Whether requests that are taken are drawn."""
        return self.batcher.is_alive

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken and the registry answers."""
        patience = max(30.0, 10 * self.settings.sync_seconds)
        return self.is_alive and not self.is_stopping and self.sync_age < patience

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is taken any longer."""
        return self._stopping.is_set()

    async def run(self, action: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call ``action`` in a thread: what reads the registry or encodes may take a while."""
        loop = asyncio.get_running_loop()
        work = partial(contextvars.copy_context().run, action, *arguments, **named)
        return await loop.run_in_executor(self._threads, work)

    async def ask(
        self,
        body: ImagesBody,
        caller: str,
        *,
        address: str = "",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Asked:
        """Check a request, pin its concepts to the versions of this moment, and queue it.

        Args:
            body: what is asked for.
            caller: who asks.
            address: where from; callers without a token take turns by it.
            on_progress: called in the event loop after each step.

        Raises:
            ConesError: whatever is wrong with it; nothing is queued then.
        """
        body.check(self.settings)
        settings, seed = self._settled(body.settings()), body.first_seed()
        read = await self.run(self._read, body)
        requests = [replace(read, seed=seed + number) for number in range(body.n)]
        composition = cast("Composition | None", read.composition)
        # Checks everything; nothing is drawn before somebody takes the first picture.
        looks = {"on_preview": _nobody} if body.partial_images else {}
        unread = await self.run(self.generator.unread, read)
        await self.run(self.generator.stream, requests[:1], **settings._asdict(), **looks)
        trace = self.metrics.tracing.here()
        loop = asyncio.get_running_loop()
        tickets = tuple(
            Ticket(
                request,
                settings,
                body.user or _first_owner(composition),
                caller=caller if self.settings.tokens else address,
                trace=trace,
                on_progress=None
                if on_progress is None
                else partial(_tell, loop, on_progress, number),
                wants_previews=body.partial_images > 0,
            )
            for number, request in enumerate(requests)
        )
        self.batcher.submit(*tickets)
        if self.settings.log_prompts:
            _LOGGER.info("%s asks for %d of %r", caller, body.n, body.prompt)
        return Asked(
            secrets.token_urlsafe(16),
            caller,
            body.prompt,
            tickets,
            settings,
            composition,
            body.output_format,
            unread,
        )

    def _settled(self, settings: SharedSettings) -> SharedSettings:
        """With the base model's own in the place of None, so that equal settings are equal."""
        usual = self.base.defaults
        return settings._replace(
            steps=usual.steps if settings.steps is None else settings.steps,
            guidance_scale=usual.guidance_scale
            if settings.guidance_scale is None
            else settings.guidance_scale,
        )

    async def drawn(self, asked: Asked) -> list[Drawn]:
        """Wait for all pictures of a request.

        Raises:
            the first error of any of them; the others are drawn no longer then.
        """
        try:
            return list(
                await asyncio.gather(
                    *(self._one(asked, number) for number in range(len(asked.tickets)))
                )
            )
        except BaseException:
            asked.cancel()
            raise

    async def each(self, asked: Asked) -> AsyncIterator[Drawn]:
        """The pictures of a request as they are done."""
        tasks = [
            asyncio.ensure_future(self._one(asked, number)) for number in range(len(asked.tickets))
        ]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()
            asked.cancel()

    async def _one(self, asked: Asked, number: int) -> Drawn:
        ticket = asked.tickets[number]
        picture = await asyncio.wrap_future(ticket.done)
        return await self.run(self._encoded, asked, number, picture)

    def _encoded(self, asked: Asked, number: int, picture: Image) -> Drawn:
        request = asked.tickets[number].request
        settings = asked.settings
        both = settings.width is not None and settings.height is not None
        recipe = recipe_of(
            request,
            self.base,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            size=(settings.width, settings.height) if both else None,  # type: ignore[arg-type]
            scheduler=settings.scheduler,
            concepts=asked.composition.members if asked.composition is not None else (),
        )
        with self.metrics.phase("encode"):
            data = encode_picture(picture, recipe, format=asked.format)
        return Drawn(number, request.seed, data, recipe)

    def compose(self, concepts: Sequence[ConceptChoice], *, by_name: bool = False) -> Composition:
        """What concepts come to together, as the registry has them now. Reads; call in a thread.

        by_name: prompts will name them, so that two may have been learnt with one token.
        """
        refs = [format_weighted(each.ref, each.weight) for each in concepts]
        with self.metrics.phase("resolve"):
            if by_name:
                return self.registry.resolve(named=refs)
            return self.registry.resolve(*refs)

    def _read(self, body: ImagesBody) -> Request:
        """The request with the concepts it names as the registry has them now."""
        composition = self.compose(body.concepts) if body.concepts else None
        request = Request(
            body.prompt, composition=composition, negative_prompt=body.negative_prompt
        )
        with self.metrics.phase("resolve"):
            return read_request(request, self._registry)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside answering; it is not forgotten before it is done."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _keep_synced(self) -> None:
        while not self._stopping.wait(self.settings.sync_seconds):
            try:
                self.registry.sync()
            except ConesError as error:
                _LOGGER.warning("the registry could not be read: %s", error)
            except Exception:
                _LOGGER.exception("the registry could not be read")
            else:
                self._synced = time.monotonic()

    def _mask_lookups(self) -> Mapping[str, int]:
        if self._registry is None:
            return {"hit": 0, "miss": 0}
        hits, misses = self._registry.mask_lookups
        return {"hit": hits, "miss": misses}

    def drain(self) -> bool:
        """Take nothing new, draw what waits; whether all of it was drawn in time."""
        self._stopping.set()
        return self.batcher.drain(self.settings.drain_seconds)

    def close(self) -> bool:
        """Drain, and end every thread."""
        drained = self.drain()
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._syncing.is_alive():
            self._syncing.join(self.settings.sync_seconds + 5)
        return drained


@dataclass
class Job:
    """A request whose picture is fetched later: what its page shows meanwhile.

    It holds what is shown and no masks or pictures, as many jobs are remembered.

    Attributes:
        id: of its page; unguessable.
        caller: who asked, and may look.
        prompt: as it was written.
        refs: concepts, pinned.
        count: pictures that were asked for.
        step: how far its first picture is.
        steps: of each picture.
        pictures: names on the shelf of those that are done.
        error: what went wrong.
        changed: set and replaced whenever something changes.
    """

    id: str
    caller: str
    prompt: str
    refs: tuple[str, ...]
    count: int
    step: int = 0
    steps: int = 0
    pictures: list[str] = field(default_factory=list)
    error: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, asked: Asked) -> Job:
        """The job of a request that is in the queue."""
        members = asked.composition.members if asked.composition is not None else ()
        refs = tuple(member.ref for member in members)
        return cls(asked.id, asked.caller, asked.prompt, refs, len(asked.tickets))

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.error) or len(self.pictures) == self.count

    def tell(self) -> None:
        """Wake those who look."""
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """The jobs that are remembered, the oldest given up for new ones."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def add(self, job: Job) -> None:
        """Remember a job."""
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT_JOBS:
            self._jobs.popitem(last=False)

    def get(self, id: str, caller: str) -> Job:
        """The job of ``caller``; NotFoundError for another's, as for none."""
        job = self._jobs.get(id)
        if job is None or job.caller != caller:
            raise NotFoundError("no such picture, or no longer")
        return job


class PictureShelf:
    """Finished pictures that are fetched by address for a while.

    Args:
        limit: bytes of all together; the oldest make room.
        seconds: how long each is kept at most.
        clock: seconds that pass.
    """

    def __init__(
        self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, data: bytes, suffix: str) -> str:
        """Keep a picture; its name, which nobody can guess."""
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        with self._lock:
            self._files[name] = self._clock(), data
            self._bytes += len(data)
            self._make_room()
        return name

    def get(self, name: str) -> bytes:
        """A picture; NotFoundError once its time is over or it had to make room."""
        with self._lock:
            self._make_room()
            found = self._files.get(name)
        if found is None:
            raise NotFoundError("no such picture, or no longer: ask for it again")
        return found[1]

    def _make_room(self) -> None:
        old = self._clock() - self._seconds
        while self._files:
            name, (kept, data) = next(iter(self._files.items()))
            if kept >= old and (self._bytes <= self._limit or len(self._files) == 1):
                return
            del self._files[name]
            self._bytes -= len(data)


def _tell(
    loop: asyncio.AbstractEventLoop,
    on_progress: Callable[[Progress], None],
    number: int,
    step: int,
    steps: int,
    preview: Image | None,
) -> None:
    """From the drawing thread into the event loop; nobody looks any longer once that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(on_progress, Progress(number, step, steps, preview))


def _nobody(step: int, pictures: Sequence[Image]) -> None:
    """Looks at no preview: given where it is only asked whether there could be any."""


def _first_owner(composition: Composition | None) -> str:
    return composition.members[0].concept.owner if composition and composition.members else ""
