"""The same application on Ray Serve: replicas with a base model each, spread and scaled by Ray."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

from cones_registry.errors import MissingExtraError, StoreUnavailableError, UsageError
from cones_registry.serving.settings import ServiceSettings

APPLICATION: Final = "cones"


def serve_on_ray(
    base: str,
    registry: str | None,
    settings: ServiceSettings,
    *,
    host: str,
    port: int,
    replicas: int,
    device: str,
    dtype: str,
    storage_options: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Serve from ``replicas`` replicas until SIGTERM or Ctrl-C.

    The cluster is the one RAY_ADDRESS names, else one on this machine that ends with the service.
    Ray puts a lost replica back, and starts up to four times as many where requests pile up.
    Every replica gathers batches of its own.

    Raises:
        MissingExtraError: without Ray Serve.
        StoreUnavailableError: the replicas did not start.
    """
    if port == 0:
        raise UsageError("Ray Serve needs a port of your choice. Give one with --port")
    ray, ray_serve = _import_ray_serve()
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS") or "local"
        more = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, configure_logging=False, **more)
    # A picture is fetched from whichever replica answers, so none keeps any for later.
    settings = dataclasses.replace(settings, is_replicated=True)

    def build() -> Any:
        from cones_registry.serving.running import make_app

        return make_app(
            base, registry, settings, device=device, dtype=dtype, storage_options=storage_options
        )

    try:
        ray_serve.start(http_options={"host": host, "port": port})
        deployment = ray_serve.deployment(
            ray_serve.ingress(build)(),
            name="Pictures",
            max_ongoing_requests=settings.max_waiting,
            graceful_shutdown_timeout_s=settings.drain_seconds,
            autoscaling_config={
                "min_replicas": replicas,
                "max_replicas": 4 * replicas,
                "target_ongoing_requests": 2 * settings.max_batch,
            },
        )
        ray_serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")
        say(f"http://{host}:{port}  ({replicas} replicas on Ray; Ctrl-C ends)")
        _wait_for_the_end()
    except RuntimeError as error:
        raise StoreUnavailableError(
            f"the replicas did not start: {error}. Check that every machine of the cluster has "
            "the package and reaches the base model and the registry"
        ) from error
    finally:
        ray_serve.delete(APPLICATION)
        if started:
            ray_serve.shutdown()
            ray.shutdown()


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
            "Install it: pip install 'cones-registry[serve,ray]' 'ray[serve]'"
        ) from error
    return ray, serve
