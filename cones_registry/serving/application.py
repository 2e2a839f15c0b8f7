"""The ASGI application: guard, routes, and the service behind them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware

from cones_registry.errors import NotFoundError
from cones_registry.serving import api, pages
from cones_registry.serving.answers import error_response
from cones_registry.serving.guard import BodyTooLargeError, Guard, Sessions
from cones_registry.serving.service import Service

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_LOGGER = logging.getLogger(__name__)


def create_app(service: Service, *, batches: tuple[str, ...] = ()) -> Starlette:
    """The application around ``service``; its shutdown drains the queue.

    batches: folders or URLs of runs of ``cones batch`` that are shown.
    """
    sessions = Sessions(service.settings.session_key)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.close)

    async def unknown(request: Request, _: Exception) -> Response:
        return error_response(NotFoundError(f"nothing is at {request.url.path}"))

    async def wrong_method(request: Request, _: Exception) -> Response:
        return error_response(
            NotFoundError(f"{request.method} is not for {request.url.path}"), status=405
        )

    async def too_large(_: Request, error: Exception) -> Response:
        return error_response(error, status=413)

    async def unexpected(request: Request, error: Exception) -> Response:
        _LOGGER.error("unexpected at %s", request.url.path, exc_info=error)
        return error_response(error)

    app = Starlette(
        routes=[*api.routes(service), *pages.routes(service, sessions, batches)],
        middleware=[Middleware(Guard, settings=service.settings, sessions=sessions)],
        exception_handlers={
            404: unknown,
            405: wrong_method,
            BodyTooLargeError: too_large,
            Exception: unexpected,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app
