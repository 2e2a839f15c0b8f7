"""The routes under /v1: pictures as OpenAI's clients ask for them, concepts, compositions."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cones_registry.errors import ConesError, NotFoundError, UsageError
from cones_registry.serving.answers import JSON, error_body, error_response
from cones_registry.serving.batching import AbandonedError
from cones_registry.serving.bodies import CompositionBody, ImagesBody, parse
from cones_registry.serving.openapi import document
from cones_registry.serving.service import Asked, Drawn, Progress, Service

if TYPE_CHECKING:
    from starlette.requests import Request

    from cones_registry.record import Concept

_LOGGER = logging.getLogger(__name__)
Endpoint = Callable[["Request"], Awaitable[Response]]
_PAGE: Final = 100
_MOST_PAGE: Final = 1000
_PING_SECONDS: Final = 15.0
_KINDS: Final = {"png": "image/png", "webp": "image/webp"}


def routes(service: Service) -> list[Route]:
    """All routes of the API."""

    async def images(request: Request) -> Response:
        body = parse(await request.body(), ImagesBody)
        with service.metrics.tracing.span("images", headers=request.headers, n=body.n):
            return await (_streamed if body.stream else _whole)(service, request, body)

    async def picture(request: Request) -> Response:
        name = request.path_params["name"]
        data = service.pictures.get(name)
        return Response(data, media_type=_KINDS[name.rpartition(".")[2]])

    async def models(_: Request) -> Response:
        return JSON({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.base.source:
            raise NotFoundError(f"this service draws with {service.base.source}, see /v1/models")
        return JSON(_model(service))

    async def concepts(request: Request) -> Response:
        asked = request.query_params
        limit = _limit(asked.get("limit"))
        found = await service.run(
            find_page,
            service,
            owner=asked.get("owner"),
            tag=asked.get("tag"),
            text=asked.get("text"),
            filters=asked.getlist("filter"),
            cursor=asked.get("cursor"),
            limit=limit + 1,
        )
        page = found[:limit]
        more = len(found) > limit
        content = {
            "object": "list",
            "data": [shown(concept) for concept in page],
            "has_more": more,
            "next_cursor": cursor_of(page[-1]) if more else None,
        }
        return _tagged(request, content)

    async def concept(request: Request) -> Response:
        ref = request.path_params["ref"]
        found = await service.run(service.registry.get, ref)
        return _tagged(request, shown(found))

    async def compositions(request: Request) -> Response:
        body = parse(await request.body(), CompositionBody)
        body_of = ImagesBody(prompt="", concepts=body.concepts)
        body_of.check(service.settings)
        composition = await service.run(service.compose, body.concepts, by_name=True)
        content = await service.run(composition.to_json)
        return JSON(content)

    async def openapi(_: Request) -> Response:
        return JSON(document(service.settings))

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def healthz(_: Request) -> Response:
        if service.is_alive or service.is_stopping:
            return JSON({"status": "alive"})
        return JSON({"status": "nothing draws here any longer"}, status_code=503)

    async def readyz(_: Request) -> Response:
        ready = service.is_ready
        content = {
            "status": "ready" if ready else "not ready",
            "waiting": service.batcher.waiting,
            "sync_age": round(service.sync_age, 1),
        }
        return JSON(content, status_code=200 if ready else 503)

    def route(path: str, endpoint: Endpoint, *methods: str) -> Route:
        return Route(path, _answered(service, path, endpoint), methods=list(methods) or ["GET"])

    return [
        route("/v1/images/generations", images, "POST"),
        route("/v1/images/files/{name}", picture),
        route("/v1/models", models),
        route("/v1/models/{name:path}", model),
        route("/v1/concepts", concepts),
        route("/v1/concepts/{ref:path}", concept),
        route("/v1/compositions", compositions, "POST"),
        route("/openapi.json", openapi),
        route("/metrics", metrics),
        route("/healthz", healthz),
        route("/readyz", readyz),
    ]


def _answered(service: Service, path: str, endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors as JSON and its outcome counted."""

    async def answer(request: Request) -> Response:
        outcome = "ok"
        try:
            return await endpoint(request)
        except (asyncio.CancelledError, AbandonedError, ClientDisconnect):
            outcome = "gone"
            # The client has gone, or the service has no more time: this is heard by few.
            return error_response(UsageError("the request was given up"), status=499)
        except ConesError as error:
            response = error_response(error)
            outcome = str(response.status_code)
            return response
        except Exception as error:
            outcome = "500"
            _LOGGER.exception("unexpected at %s", path)
            return error_response(error)
        finally:
            service.metrics.requests.labels(path, outcome).inc()

    return answer


async def _cancel_when_gone(request: Request, asked: Asked) -> None:
    """Give the pictures up once the client has closed the connection."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.25)
    asked.cancel()


def address_of(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client is not None else ""


def _picture(service: Service, request: Request, body: ImagesBody, drawn: Drawn) -> dict[str, Any]:
    """One picture as OpenAI's clients expect it, with its seed and its concepts pinned."""
    content: dict[str, Any] = {
        "seed": drawn.seed,
        "concepts": drawn.recipe["concepts"],
        "revised_prompt": None,
    }
    if body.response_format == "url":
        name = service.pictures.put(drawn.data, body.output_format)
        content["url"] = str(request.base_url.replace(path=f"/v1/images/files/{name}"))
    else:
        content["b64_json"] = base64.b64encode(drawn.data).decode("ascii")
    return content


async def _whole(service: Service, request: Request, body: ImagesBody) -> Response:
    """One answer with all pictures."""
    asked = await service.ask(body, request.state.caller, address=address_of(request))
    watching = asyncio.ensure_future(_cancel_when_gone(request, asked))
    try:
        drawn = await service.drawn(asked)
    finally:
        watching.cancel()
    content: dict[str, Any] = {
        "created": int(asked.arrived),
        "data": [_picture(service, request, body, each) for each in drawn],
    }
    if asked.unread:
        content["unread"] = asked.unread
    return JSON(content)


async def _streamed(service: Service, request: Request, body: ImagesBody) -> Response:
    """Server-sent events: steps, pictures on the way, and the finished ones."""
    news: asyncio.Queue[Progress] = asyncio.Queue(maxsize=1000)

    def on_progress(progress: Progress) -> None:
        if not news.full():  # a client that does not read misses steps, not pictures
            news.put_nowait(progress)

    asked = await service.ask(
        body, request.state.caller, address=address_of(request), on_progress=on_progress
    )

    async def events() -> AsyncIterator[bytes]:
        finished = service.each(asked)
        coming = asyncio.ensure_future(anext(finished, None))
        partial = [0] * len(asked.tickets)
        try:
            while True:
                step = asyncio.ensure_future(news.get())
                await asyncio.wait(
                    {step, coming}, timeout=_PING_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if step.done():
                    for event in _step_events(step.result(), partial, body.partial_images):
                        yield event
                else:
                    step.cancel()
                    if not coming.done():
                        yield b": still at it\n\n"
                if coming.done() and news.empty():
                    drawn = coming.result()
                    if drawn is None:
                        return
                    content = _picture(service, request, body, drawn)
                    yield event_of("image_generation.completed", {"index": drawn.number, **content})
                    coming = asyncio.ensure_future(anext(finished, None))
        except ConesError as error:
            yield event_of("error", error_body(error))
        except Exception as error:
            _LOGGER.exception("a stream was lost")
            yield event_of("error", error_body(error))
        finally:
            coming.cancel()
            asked.cancel()

    return StreamingResponse(events(), media_type="text/event-stream")


def _step_events(progress: Progress, partial: list[int], most: int) -> list[bytes]:
    """What one step says: how far it is, or a picture on the way."""
    if progress.preview is None:
        facts = {"index": progress.number, "step": progress.step, "steps": progress.steps}
        return [event_of("image_generation.progress", facts)]
    if partial[progress.number] >= most:
        return []
    buffer = io.BytesIO()
    progress.preview.save(buffer, "PNG")
    content = {
        "index": progress.number,
        "partial_image_index": partial[progress.number],
        "b64_json": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }
    partial[progress.number] += 1
    return [event_of("image_generation.partial_image", content)]


def event_of(kind: str, content: dict[str, Any]) -> bytes:
    """One server-sent event; its kind stands in the data too, as OpenAI has it."""
    data = json.dumps({"type": kind, **content}, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.base.source,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "cones_registry",
        "fingerprint": service.base.fingerprint,
    }


def find_page(
    service: Service,
    *,
    owner: str | None,
    tag: str | None,
    text: str | None,
    filters: list[str],
    cursor: str | None,
    limit: int,
) -> list[Concept]:
    """The newest versions that fit, by owner and name, from ``cursor`` on."""
    from cones_registry.filters import where

    condition = where(filters)
    sql, values = condition.sql, list(condition.values)
    if cursor:
        after_owner, slash, after_name = cursor.partition("/")
        if not slash:
            raise UsageError(f"cursor {cursor[:80]!r} is none; take next_cursor of the last page")
        sql, values = f"({sql}) AND (owner, name) > (?, ?)", [*values, after_owner, after_name]
    newest = (
        f"({sql}) AND version = (SELECT max(other.version) FROM concepts AS other "
        "WHERE other.owner = concepts.owner AND other.name = concepts.name)"
    )
    return service.registry.find(
        owner=owner or None,
        tag=tag or None,
        text=text or None,
        where=(newest, values),
        order_by="owner, name",
        limit=limit,
    )


def cursor_of(concept: Concept) -> str:
    """Where the next page begins."""
    return f"{concept.owner}/{concept.name}"


def shown(concept: Concept) -> dict[str, Any]:
    """A concept as the API shows it: its record and its ref."""
    return {"ref": concept.ref, **concept.to_json()}


def _tagged(request: Request, content: Any) -> Response:
    """JSON with an ETag; 304 for who has it already."""
    response = JSON(content)
    tag = f'"{hashlib.sha256(bytes(response.body)).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    known = request.headers.get("if-none-match", "")
    if known == "*" or tag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def _limit(text: str | None) -> int:
    if text is None:
        return _PAGE
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST_PAGE):
        raise UsageError(f"limit is {text[:40]!r}; expected 1 to {_MOST_PAGE}")
    return int(text)
