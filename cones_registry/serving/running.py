"""Running the service: the base model loaded, the port opened, what waits drawn before the end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cones_registry.errors import ConflictError, StoreUnavailableError
from cones_registry.serving.application import create_app
from cones_registry.serving.service import Service
from cones_registry.serving.settings import ServiceSettings

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette


def serve(
    base: str,
    registry: str | None,
    settings: ServiceSettings,
    *,
    host: str,
    port: int,
    batches: tuple[str, ...] = (),
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "local",
    replicas: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    storage_options: Mapping[str, Any] | None = None,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were taken are answered first.

    Args:
        base: what draws.
        registry: path or URL, None for none.
        settings: limits.
        host: where to listen.
        port: where to listen; 0 takes a free one.
        batches: runs of ``cones batch`` that are shown.
        engine: "local", or "ray" for ``replicas`` of the service on a Ray cluster, each of which
            takes ``cpus`` and ``gpus``.
        say: is told the address once requests are taken.

    Raises:
        ConflictError: the port is taken. What loading the base model and the registry raises.
    """
    if engine == "ray":
        from cones_registry.serving.ray_serve import serve_on_ray

        serve_on_ray(
            base, registry, settings, host=host, port=port, replicas=replicas,
            cpus=cpus, gpus=gpus, device=device, dtype=dtype,
            storage_options=dict(storage_options or {}), say=say,
        )  # fmt: skip
        return
    listening = listen(host, port)
    app = make_app(
        base, registry, settings, batches=batches, device=device, dtype=dtype,
        storage_options=dict(storage_options or {}),
    )  # fmt: skip
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    server = _server(app, settings)
    say(f"http://{shown}:{address[1]}  (API under /v1, pages under /concepts; Ctrl-C ends)")
    # uvicorn ends gracefully on SIGTERM and raises it once more afterwards: it was an orderly end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=[listening])


def _server(app: Starlette, settings: ServiceSettings) -> uvicorn.Server:
    """A server that drains from the moment it is told to end, and has no patience with silence."""
    import asyncio

    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes a connection that brings no whole request in the time a body has."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(settings.body_seconds, self._close_if_silent)

        def _close_if_silent(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # What is left when the time is over is answered here, before connections are cut.
            draining = asyncio.ensure_future(asyncio.to_thread(app.state.service.drain))
            await super().shutdown(sockets)
            await draining

    return Server(
        uvicorn.Config(
            app,
            http=Protocol,
            loop="asyncio",
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=round(settings.drain_seconds) + 5,
            server_header=False,
        )
    )


def make_app(
    base: str,
    registry: str | None,
    settings: ServiceSettings,
    *,
    batches: tuple[str, ...] = (),
    device: str = "auto",
    dtype: str = "auto",
    storage_options: Mapping[str, Any] | None = None,
) -> Starlette:
    """The application with its base model loaded and its registry opened and read."""
    from cones_registry.base_model import BaseModel
    from cones_registry.registry import Registry

    opened = None
    if registry is not None:
        opened = Registry.open(
            registry,
            read_only=not settings.allow_write,
            max_staleness=float("inf"),
            **dict(storage_options or {}),
        )
        opened.sync()
    model = BaseModel.load(base, device=device, dtype=dtype)
    return create_app(Service(model, opened, settings), batches=batches)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the model is loaded: a taken port is said at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # who connects while the model is loaded waits, and is answered
    except OSError as error:
        listening.close()
        if "in use" in str(error):
            raise ConflictError(
                f"port {port} of {host} is taken. Name another with --port, or 0 for a free one"
            ) from error
        raise StoreUnavailableError(f"cannot listen at {host}:{port}: {error}") from error
    return listening
