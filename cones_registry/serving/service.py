"""Service: one base model, one registry, one queue; what the API and the pages both ask."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """

    id: str
    caller: str
    prompt: str
    tickets: tuple[Ticket, ...]
    settings: SharedSettings
    composition: Composition | None
    format: str
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
        self.pictures = PictureShelf(settings.kept_pictures)
        self._registry = registry
        self.generator = Generator(base)
        self.batcher = Batcher(
            self.generator,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            gather_seconds=settings.gather_seconds,
            observer=self.metrics,
        )
        self.jobs: OrderedDict[str, Job] = OrderedDict()
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
    def is_ready(self) -> bool:
        """Whether requests are taken and the registry answers."""
        return not self._stopping.is_set() and self.sync_age < max(
            30.0, 10 * self.settings.sync_seconds
        )

    async def run(self, action: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call ``action`` in a thread: what reads the registry or encodes may take a while."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(action, *arguments, **named))

    async def ask(
        self,
        body: ImagesBody,
        caller: str,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Asked:
        """Check a request, pin its concepts to the versions of this moment, and queue it.

        on_progress: called in the event loop after each step.

        Raises:
            ConesError: whatever is wrong with it; nothing is queued then.
        """
        body.check(self.settings)
        settings, seed = body.settings(), body.first_seed()
        read = await self.run(self._read, body)
        requests = [replace(read, seed=seed + number) for number in range(body.n)]
        composition = cast("Composition | None", read.composition)
        # Checks everything; nothing is drawn before somebody takes the first picture.
        await self.run(self.generator.stream, requests[:1], **settings._asdict())
        owner = f"{caller}\0{body.user or _first_owner(composition)}"
        loop = asyncio.get_running_loop()
        tickets = tuple(
            Ticket(
                request,
                settings,
                owner,
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

    def close(self) -> bool:
        """Take nothing new, draw what waits; whether all of it was drawn in time."""
        self._stopping.set()
        drained = self.batcher.drain(self.settings.drain_seconds)
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._syncing.is_alive():
            self._syncing.join(self.settings.sync_seconds + 5)
        return drained


@dataclass
class Job:
    """A request whose picture is fetched later: what its page shows meanwhile.

    Attributes:
        asked: the request.
        step, steps: how far its first picture is.
        pictures: names on the shelf, None for those that are not done.
        error: what went wrong.
        changed: set and replaced whenever something changes.
    """

    asked: Asked | None = None
    step: int = 0
    steps: int = 0
    pictures: list[str] = field(default_factory=list)
    error: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        done = self.asked is not None and len(self.pictures) == len(self.asked.tickets)
        return bool(self.error) or done

    def tell(self) -> None:
        """Wake those who look."""
        self.changed.set()
        self.changed = asyncio.Event()


class PictureShelf:
    """Finished pictures that are fetched by address, the oldest of them given up for new ones.

    limit: bytes of all together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, data: bytes, suffix: str) -> str:
        """Keep a picture; its name, which nobody can guess."""
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        with self._lock:
            self._files[name] = data
            self._bytes += len(data)
            while self._bytes > self._limit and len(self._files) > 1:
                _, oldest = self._files.popitem(last=False)
                self._bytes -= len(oldest)
        return name

    def get(self, name: str) -> bytes:
        """A picture; NotFoundError once it had to make room."""
        with self._lock:
            data = self._files.get(name)
        if data is None:
            raise NotFoundError("no such picture, or no longer: ask for it again")
        return data


def _tell(
    loop: asyncio.AbstractEventLoop,
    on_progress: Callable[[Progress], None],
    number: int,
    step: int,
    steps: int,
    preview: Image | None,
) -> None:
    """From the drawing thread into the event loop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(on_progress, Progress(number, step, steps, preview))


def _first_owner(composition: Composition | None) -> str:
    return composition.members[0].concept.owner if composition and composition.members else ""
