"""The Ray engine: actors with a base model each, who take the next piece of work when idle."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from cones_registry.base_model import BaseModel
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import (
    BaseIdentity,
    EngineSettings,
    Result,
    Work,
    identity_of,
)
from cones_registry.batch.worker import Worker
from cones_registry.errors import ConesError, MissingExtraError, StoreUnavailableError, UsageError

# What reaches the actors of the environment this process has: the registry and the credentials of
# the object stores, from their providers' own variables; never through the job file.
PASSED_ON: Final = ("CONES_", "AWS_", "AZURE_", "GOOGLE_", "GCS_", "FSSPEC_", "HF_")
# Those that a library reads when it is first imported, and that hold no secret: Ray writes the
# runtime environment of an actor, in clear, into log files that everybody on the machine may read.
OPEN_VARIABLES: Final = frozenset(
    {
        *("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_REGION"),
        *("AZURE_STORAGE_ACCOUNT_NAME", "GOOGLE_CLOUD_PROJECT", "HF_DATASETS_OFFLINE"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"),
    }
)
REGISTRY_VARIABLE: Final = "CONES_REGISTRY"
OPTIONS_VARIABLE: Final = "CONES_STORAGE_OPTIONS"
MAX_ATTEMPTS: Final = 3
PATIENCE: Final = 30.0  # seconds until a run that waits for its workers says so
_LOGGER = logging.getLogger(__name__)


class RayEngine:
    """Works on a Ray cluster.

    address: of the cluster; "auto" finds a running one; None is what RAY_ADDRESS says, else one is
    started on this machine. workers: number of actors. cpus, gpus: what each of them takes
    (fractions are fine).
    storage_options: what the registry was opened with; the actors open it with the same. Like all
        credentials they reach an actor in a call of its own, and stand in no file of Ray's.
    Work whose actor is lost is done by another one, up to three times in all; lost actors are
    replaced. Raises MissingExtraError without ray.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int = 1,
        cpus: float = 1.0,
        gpus: float = 0.0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if workers < 1:
            raise UsageError(f"workers={workers}, expected at least 1")
        self._ray = _import_ray()
        self._address = address
        self._workers = workers
        self._resources = {"num_cpus": cpus, "num_gpus": gpus}
        self._storage_options = dict(storage_options or {})
        self._actors: dict[Any, Any] = {}
        self._settings: EngineSettings | None = None
        self._started_ray = False

    def start(self, settings: EngineSettings) -> BaseIdentity:
        """Make the actors; all of them load the base model at once.

        Raises UsageError if a cluster on this machine alone has no room for them.
        """
        ray = self._ray
        self._settings = settings
        own = False
        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS") or "local"
            own = address == "local"
            connect(ray, address)
            self._started_ray = True
        if own:
            cpus, gpus = self._resources["num_cpus"], self._resources["num_gpus"]
            require_room(ray.cluster_resources(), self._workers, "workers", CPU=cpus, GPU=gpus)
        self._actors = dict.fromkeys(self._make_actor() for _ in range(self._workers))
        loading = [actor.identity.remote() for actor in self._actors]
        try:
            ready, missing = ray.wait(loading, num_returns=len(loading), timeout=PATIENCE)
            if missing and not own:
                _LOGGER.warning(
                    "%d of %d Ray workers are ready; waiting for the others, which may have to "
                    "wait for room on the cluster (free now: %s)",
                    len(ready), len(loading), ray.available_resources(),
                )  # fmt: skip
            identities = ray.get(loading)
        except ray.exceptions.RayError as error:
            raise _translated(error) from error
        if len(set(identities)) != 1:
            raise UsageError(
                f"the workers have different base models at {settings.base!r}: {set(identities)}. "
                "Give a hub id, or a folder that holds the same files on every machine"
            )
        return identities[0]  # type: ignore[no-any-return]

    def run(self, work: Sequence[Work[Result]]) -> Iterator[Result]:
        """Do all work; an idle actor takes the next piece."""
        ray = self._ray
        waiting = deque((piece, 1) for piece in work)
        running: dict[Any, tuple[Any, Work[Result], int]] = {}
        idle = list(self._actors)
        while waiting or running:
            while waiting and idle:
                actor = idle.pop()
                piece, attempt = waiting.popleft()
                upcoming = waiting[0][0] if waiting else None
                running[actor.do.remote(piece, upcoming)] = actor, piece, attempt
            done, _ = ray.wait(list(running), num_returns=1)
            actor, piece, attempt = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                self._actors.pop(actor, None)
                replacement = self._make_actor()
                self._actors[replacement] = None
                idle.append(replacement)
                if attempt < MAX_ATTEMPTS:
                    waiting.append((piece, attempt + 1))
                    continue
                result = piece.lost(f"lost with its worker {attempt} times: {error}")
            except ray.exceptions.RayTaskError as error:
                idle.append(actor)
                result = piece.lost(str(error.cause))
            else:
                idle.append(actor)
            yield result

    def stop(self) -> None:
        """End the actors, and the cluster if this engine started it."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = {}
        if self._started_ray:
            self._ray.shutdown()
            self._started_ray = False

    def _make_actor(self) -> Any:
        remote = self._ray.remote(**self._resources)(_Actor)
        variables = passed_on(os.environ, self._settings, self._storage_options)
        shown = {name: value for name, value in variables.items() if name in OPEN_VARIABLES}
        settings = None if self._settings is None else replace(self._settings, registry=None)
        actor = remote.options(runtime_env={"env_vars": shown}).remote(settings)
        # Calls of an actor are done in the order they are made: this one before it opens anything.
        actor.equip.remote(_Secret({k: v for k, v in variables.items() if k not in shown}))
        return actor


@dataclass(frozen=True)
class _Secret:
    """Environment variables that are written nowhere: an error or a log that names them hides them.

    A mapping of plain text would be printed with its values.
    """

    variables: Mapping[str, str] = field(repr=False)


class _Actor:
    """A worker in a process of its own; loads when first called, so that errors come back whole."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings

    def equip(self, secret: _Secret) -> None:
        """Take over the registry and the credentials of the process that began the run."""
        os.environ.update(secret.variables)

    @cached_property
    def _compositions(self) -> Compositions:
        from cones_registry.registry import Registry

        url = os.environ.get(REGISTRY_VARIABLE)
        options = json.loads(os.environ.get(OPTIONS_VARIABLE, "{}"))
        # The records are pinned, so nothing that happens to the catalogue meanwhile matters here.
        registry = (
            Registry.open(
                url,
                read_only=True,
                max_staleness=float("inf"),
                memory=self._settings.mask_bytes,
                **options,
            )
            if url
            else None
        )
        return Compositions(registry)

    @cached_property
    def _worker(self) -> Worker:
        settings = self._settings
        base = BaseModel.load(settings.base, device=settings.device, dtype=settings.dtype)
        return Worker(base, self._compositions, format=settings.format)

    def identity(self) -> BaseIdentity:
        return identity_of(self._worker.base)

    def do(self, piece: Work[Result], upcoming: Work[Any] | None) -> Result:
        if upcoming is not None:  # most likely this actor's next; another's masks do no harm
            upcoming.prepare(self._compositions)
        return piece.do(self._worker)


def connect(ray: Any, address: str, **of_own_cluster: Any) -> None:
    """Connect to the cluster at ``address``; "local" starts one on this machine.

    of_own_cluster: what ``ray.init`` is told where it starts one.
    """
    quiet = {"log_to_driver": False, "configure_logging": False}
    if address != "local":
        ray.init(address=address, **quiet)
        return
    # Ray runs workers at niceness 15, to yield to what else runs: on a busy machine they would
    # get next to nothing. Here they are the run itself, as urgent as the command that began it.
    with _errors_only("ray"):
        ray.init(
            address="local",
            include_dashboard=False,
            _system_config={"worker_niceness": 0, "enable_metrics_collection": False},
            **quiet,
            **of_own_cluster,
        )


def require_room(there: Mapping[str, float], count: int, what: str, **each: float) -> None:
    """Raise UsageError where ``count`` actors on this machine would wait for ever.

    there: resources of the cluster. what: option that says how many. each: resources of one.
    """
    for name, amount in each.items():
        room = there.get(name, 0.0)
        if amount * count > room:
            raise UsageError(
                f"{count} {what} with {amount:g} {name} each do not fit on this machine, which "
                f"has {room:g}. Give fewer --{what}, a smaller --{name.lower()}s for each, or the "
                "address of a cluster"
            )


def passed_on(
    environment: Mapping[str, str],
    settings: EngineSettings | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The environment of an actor: registry and credentials, as this process has them."""
    chosen = {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}
    if settings is not None and settings.registry is not None:
        chosen[REGISTRY_VARIABLE] = settings.registry
    if storage_options:
        chosen[OPTIONS_VARIABLE] = json.dumps(dict(storage_options))
    return chosen


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """A logger that tells errors alone: advice about a cluster that ends with the run is none."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _translated(error: Exception) -> ConesError:
    cause = getattr(error, "cause", None)
    if isinstance(cause, ConesError):
        return cause
    return StoreUnavailableError(
        f"a Ray worker did not start: {cause or error}. Check that every machine of the cluster "
        "has the package and reaches the base model and the registry"
    )


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the Ray engine needs ray, which is not installed. "
            "Install it: pip install 'cones-registry[ray]'"
        ) from error
    return ray
