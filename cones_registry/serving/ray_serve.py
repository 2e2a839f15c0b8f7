"""The same application on Ray Serve: replicas with a base model each, spread and scaled by Ray."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from cones_registry.errors import ConesError, MissingExtraError, StoreUnavailableError
from cones_registry.serving.settings import ServiceSettings

if TYPE_CHECKING:
    from starlette.applications import Starlette

APPLICATION: Final = "cones"
DEPLOYMENT: Final = "Pictures"
_OBJECT_STORE: Final = 256 << 20  # bytes of a cluster of our own: requests and answers alone
_LIGHT_REQUESTS: Final = 64  # pages and lists that a replica answers beside what waits to be drawn


@dataclass(frozen=True)
class ReplicaSettings:
    """All that a replica is made from, wherever and whenever Ray starts one.

    Attributes:
        base: what draws.
        registry: path or URL; None for none.
        settings: limits and tokens.
        device: where the base model runs.
        dtype: of the base model.
        storage_options: what the registry is opened with.
        variables: environment variables with credentials of the object stores. Like everything
            here they are part of the deployment, which Ray keeps in memory and prints nowhere.
    """

    base: str
    registry: str | None = field(repr=False)
    settings: ServiceSettings = field(repr=False)
    device: str
    dtype: str
    storage_options: Mapping[str, Any] = field(repr=False)
    variables: Mapping[str, str] = field(repr=False)

    def make_app(self) -> Starlette:
        """The application, in the process of the replica."""
        from cones_registry.serving.running import make_app

        os.environ.update(self.variables)
        return make_app(
            self.base,
            self.registry,
            self.settings,
            device=self.device,
            dtype=self.dtype,
            storage_options=self.storage_options,
        )


def serve_on_ray(
    base: str,
    registry: str | None,
    settings: ServiceSettings,
    *,
    host: str,
    port: int,
    replicas: int,
    cpus: float,
    gpus: float,
    device: str,
    dtype: str,
    storage_options: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Serve from ``replicas`` replicas until SIGTERM or Ctrl-C.

    The cluster is the one RAY_ADDRESS names, else one on this machine that ends with the service.
    Ray puts a lost replica back, and starts up to four times as many where requests pile up.
    Every replica gathers batches of its own.

    Args:
        cpus: that each replica takes.
        gpus: that each replica takes.

    Raises:
        MissingExtraError: without Ray Serve.
        ConflictError: the port is taken.
        UsageError: a cluster on this machine has no room for the replicas.
        StoreUnavailableError: the replicas did not start.
    """
    ray, ray_serve = _import_ray_serve()
    from cones_registry.batch.ray_engine import OPEN_VARIABLES, connect, passed_on, require_room
    from cones_registry.serving.running import listen

    address = os.environ.get("RAY_ADDRESS") or "local"
    with listen(host, port) as listening:  # a taken port is said at once
        port = listening.getsockname()[1]
    connect(ray, address, object_store_memory=_OBJECT_STORE)
    # A picture is fetched from whichever replica answers, so none keeps any for later.
    settings = replace(settings, is_replicated=True)
    variables = passed_on(os.environ)
    shown = {name: value for name, value in variables.items() if name in OPEN_VARIABLES}
    hidden = {name: value for name, value in variables.items() if name not in shown}
    made_from = ReplicaSettings(base, registry, settings, device, dtype, storage_options, hidden)
    try:
        if address == "local":
            require_room(ray.cluster_resources(), replicas, "replicas", CPU=cpus, GPU=gpus)
        ray_serve.start(http_options={"host": host, "port": port})
        deployment = ray_serve.deployment(
            ray_serve.ingress(_builder(made_from))(_Replica),
            name=DEPLOYMENT,
            ray_actor_options={
                "num_cpus": cpus,
                "num_gpus": gpus,
                "runtime_env": {"env_vars": shown},
            },
            max_ongoing_requests=settings.max_waiting + settings.max_batch + _LIGHT_REQUESTS,
            max_queued_requests=settings.max_waiting,
            graceful_shutdown_timeout_s=settings.drain_seconds + 5,
            autoscaling_config={
                "min_replicas": replicas,
                "max_replicas": 4 * replicas,
                "target_ongoing_requests": 2 * settings.max_batch,
            },
        )
        ray_serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")
        say(f"http://{host}:{port}  ({replicas} replicas on Ray; Ctrl-C ends)")
        _wait_for_the_end()
    except ConesError:
        raise
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise StoreUnavailableError(
            f"the replicas did not start: {error}. Check that every machine of the cluster has "
            "the package and reaches the base model and the registry"
        ) from error
    finally:
        if address == "local":
            ray_serve.shutdown()  # replicas finish what they have taken
        else:
            ray_serve.delete(APPLICATION)
        ray.shutdown()


class _Replica:
    """One replica. Its application is built by Ray's wrapper of this class."""

    app: Starlette

    def check_health(self) -> None:
        """Ray asks now and then, and puts a new replica in the place of one that raises."""
        if not self.app.state.service.is_alive:
            raise RuntimeError("nothing draws here any longer")


def _builder(made_from: ReplicaSettings) -> Callable[[], Starlette]:
    """A function, which alone Ray calls in the replica; anything else it would carry there."""

    def build() -> Starlette:
        return made_from.make_app()

    return build


def _wait_for_the_end() -> None:
    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _import_ray_serve() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise MissingExtraError(
            "the Ray engine of the service needs Ray Serve, which is not installed. "
            "Install it: pip install 'cones-registry[model,serve-ray]'"
        ) from error
    return ray, serve
