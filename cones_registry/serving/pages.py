"""The pages: concepts, composing, storage, batch runs. Rendered here; reading needs no script."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from cones_registry.errors import ConesError, NotFoundError, UsageError
from cones_registry.pages.templating import STYLE, Section, Site, render
from cones_registry.pages.views import history_line, newest, provenance_facts, view
from cones_registry.quantities import counted, share, size
from cones_registry.serving.answers import status_of
from cones_registry.serving.api import address_of, cursor_of, event_of, find_page
from cones_registry.serving.bodies import ConceptChoice, ImagesBody
from cones_registry.serving.guard import COOKIE, Sessions, Tokens, session_cookie
from cones_registry.serving.service import Asked, Job, Progress, Service

if TYPE_CHECKING:
    from starlette.requests import Request

_LOGGER = logging.getLogger(__name__)
Endpoint = Callable[["Request"], Awaitable[Response]]
SCRIPT: Final = STYLE.with_name("progress.js")
_CARDS: Final = 60
_MOST_COMPOSED: Final = 4
_SHOWN_PICTURES: Final = 60
_LIKE: Final = 4
_CHANGES: Final = 50
_SECTIONS: Final = (
    Section("Concepts", "/concepts"),
    Section("Compose", "/compose"),
    Section("Storage", "/storage"),
    Section("Batches", "/batches"),
)


class Page(Response):
    """An HTML page."""

    media_type = "text/html"


SITE: Final = Site(
    title="cones_registry",
    home="/concepts",
    link=lambda name: f"/{name}",
    concept=lambda each: f"/concepts/{quote(each.owner)}/{quote(each.name)}",
    preview=lambda digest: f"/previews/{digest.partition(':')[2]}.webp",
    sections=_SECTIONS,
)


def routes(service: Service, sessions: Sessions, batches: tuple[str, ...] = ()) -> list[Route]:
    """All routes of the pages."""

    tokens = Tokens(service.settings.tokens)

    async def home(_: Request) -> Response:
        return RedirectResponse("/concepts", status_code=307)

    async def concepts(request: Request) -> Response:
        asked = request.query_params
        search = {name: asked.get(name, "") for name in ("text", "owner", "tag", "filter")}
        problem, found = "", []
        try:
            found = await service.run(
                find_page,
                service,
                owner=search["owner"],
                tag=search["tag"],
                text=search["text"],
                filters=[search["filter"]] if search["filter"] else [],
                cursor=asked.get("cursor"),
                limit=_CARDS + 1,
            )
        except UsageError as error:
            problem = str(error)
        shown, links = found[:_CARDS], []
        given = {name: value for name, value in search.items() if value}
        if asked.get("cursor"):
            links.append(_link(f"/concepts?{urlencode(given)}", "First page", "first"))
        if len(found) > _CARDS:
            after = urlencode({**given, "cursor": cursor_of(shown[-1])})
            links.append(_link(f"/concepts?{after}", "Next page", "next"))
        return _page(
            "concepts.html",
            "Concepts",
            status=400 if problem else 200,
            heading="Concepts",
            search={"action": "/concepts", **search},
            summary=f"{counted(len(shown), 'concept')} on this page",
            problem=problem,
            concepts=[view(each) for each in shown],
            pages=links,
        )

    async def concept(request: Request) -> Response:
        owner, name = request.path_params["owner"], request.path_params["name"]

        def gather() -> dict[str, Any]:
            registry = service.registry
            versions = registry.find(owner=owner, name=name, order_by="version DESC")
            if not versions:
                raise NotFoundError(f"there is no concept {owner}/{name}, or it was removed")
            latest = newest(versions)
            full = registry.get(latest.ref)
            alike = [registry.get(each.ref) for each in registry.similar(latest.ref, limit=_LIKE)]
            return {
                "concept": view(latest, mask=registry.pull(latest.ref)),
                "versions": [view(each) for each in versions],
                "provenance": provenance_facts(full.provenance),
                "history": [
                    history_line(each)
                    for each in registry.history(f"{owner}/{name}", limit=_CHANGES)
                ],
                "similar": [view(each) for each in alike],
            }

        found = await service.run(gather)
        return _page(
            "service_concept.html",
            "Concepts",
            form_token=_form_token(request, sessions),
            allow_write=service.settings.allow_write,
            **found,
        )

    async def change(request: Request) -> Response:
        if not service.settings.allow_write:
            raise _Refused("these pages only read. Start the service with --allow-write")
        form = await _form(request, sessions)
        owner, name = request.path_params["owner"], request.path_params["name"]
        ref = f"{owner}/{name}:{form.get('version', '')}"
        registry = service.registry
        match request.path_params["verb"]:
            case "alias":
                await service.run(registry.alias, ref, form.get("alias", ""))
            case "tag":
                add = form.get("add", "").split()
                await service.run(registry.tag, ref, add=add, remove=form.get("remove", "").split())
            case "remove":
                await service.run(registry.remove, ref)
            case verb:
                raise NotFoundError(f"there is nothing to {verb} here")
        return RedirectResponse(f"/concepts/{quote(owner)}/{quote(name)}", status_code=303)

    async def preview(request: Request) -> Response:
        digest = f"sha256:{request.path_params['name'].removesuffix('.webp')}"
        data = await service.run(service.registry.preview, digest)
        kept = {"cache-control": "private, max-age=31536000, immutable"}
        return Response(data, media_type="image/webp", headers=kept)

    async def compose(request: Request) -> Response:
        refs = [ref.strip() for ref in request.query_params.getlist("concept") if ref.strip()]
        problem, composed = "", None
        if refs:
            try:
                composed = await service.run(_composed, service, refs)
            except ConesError as error:
                problem = str(error)
        return _page(
            "compose.html",
            "Compose",
            status=400 if problem else 200,
            refs=[*refs, *[""] * _MOST_COMPOSED][:_MOST_COMPOSED],
            prompt=request.query_params.get("prompt") or (composed or {}).get("prompt", ""),
            problem=problem,
            composed=composed,
            form_token=_form_token(request, sessions),
        )

    async def draw(request: Request) -> Response:
        if service.settings.is_replicated:
            raise _Refused("several replicas answer here, so pages cannot wait for a picture")
        form = await _form(request, sessions)
        job: Job | None = None

        def on_progress(progress: Progress) -> None:
            if job is not None and progress.steps:
                job.step, job.steps = progress.step, progress.steps
                job.tell()

        seed = form.get("seed", "").strip()
        if seed and not (seed.isascii() and seed.isdigit() and len(seed) < 20):
            raise UsageError(f"seed {seed[:40]!r} is no whole number")
        body = ImagesBody(
            prompt=form.get("prompt", ""),
            seed=int(seed) if seed else None,
        )
        asked = await service.ask(
            body,
            request.state.caller,
            address=address_of(request),
            on_progress=on_progress,
        )
        job = Job.of(asked)
        service.jobs.add(job)
        service.background(_finish(service, job, asked))
        return RedirectResponse(f"/jobs/{job.id}", status_code=303)

    async def job_page(request: Request) -> Response:
        job = service.jobs.get(request.path_params["id"], request.state.caller)
        return _page("job.html", "Compose", job=job, back=_again(job))

    async def job_events(request: Request) -> Response:
        job = service.jobs.get(request.path_params["id"], request.state.caller)

        async def events() -> AsyncIterator[bytes]:
            while True:
                changed = job.changed
                facts = {"step": job.step, "steps": job.steps, "done": job.is_done}
                yield event_of("progress", facts)
                if job.is_done:
                    return
                await changed.wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def storage(_: Request) -> Response:
        found = await service.run(_storage, service)
        return _page("storage.html", "Storage", **found)

    async def batch_list(_: Request) -> Response:
        runs = [await service.run(_batch, number, url) for number, url in enumerate(batches)]
        return _page("batches.html", "Batches", runs=runs)

    async def batch_picture(request: Request) -> Response:
        number, name = request.path_params["number"], request.path_params["name"]
        if number >= len(batches):
            raise NotFoundError("no such run")
        data = await service.run(_batch_picture, batches[number], name)
        return Response(data, media_type=f"image/{name.rpartition('.')[2]}")

    async def login(_: Request) -> Response:
        return _page("login.html", "", problem="")

    async def log_in(request: Request) -> Response:
        form = parse_form(await request.body())
        caller = tokens.holder(form.get("token", ""))
        if caller is None:
            return _page("login.html", "", status=401, problem="This token is not known.")
        response = RedirectResponse("/concepts", status_code=303)
        response.set_cookie(
            COOKIE,
            sessions.issue(caller),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def style(_: Request) -> Response:
        return _static(STYLE, "text/css")

    async def script(_: Request) -> Response:
        return _static(SCRIPT, "text/javascript")

    def route(path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        return Route(path, _shown(service, path, endpoint), methods=[method])

    return [
        route("/", home),
        route("/concepts", concepts),
        route("/concepts/{owner}/{name}", concept),
        route("/concepts/{owner}/{name}/{verb}", change, "POST"),
        route("/previews/{name}", preview),
        route("/compose", compose),
        route("/compose", draw, "POST"),
        route("/jobs/{id}", job_page),
        route("/jobs/{id}/events", job_events),
        route("/storage", storage),
        route("/batches", batch_list),
        route("/batches/{number:int}/{name}", batch_picture),
        route("/login", login),
        route("/login", log_in, "POST"),
        route("/style.css", style),
        route("/progress.js", script),
    ]


class _Refused(UsageError):
    """Understood, and not allowed."""


def _shown(service: Service, path: str, endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors as a page and its outcome counted."""

    async def answer(request: Request) -> Response:
        outcome = "ok"
        try:
            return await endpoint(request)
        except ConesError as error:
            status = 403 if isinstance(error, _Refused) else status_of(error)
            outcome = str(status)
            return _page("problem.html", "", status=status, problem=str(error))
        except ClientDisconnect:
            outcome = "gone"
            return Response(status_code=499)
        except Exception:
            outcome = "500"
            _LOGGER.exception("unexpected at %s", path)
            problem = "Something unexpected went wrong; the service's log says what."
            return _page("problem.html", "", status=500, problem=problem)
        finally:
            service.metrics.requests.labels(path, outcome).inc()

    return answer


def _page(template: str, active: str, *, status: int = 200, **values: Any) -> Response:
    return Page(render(template, SITE, active=active, **values), status_code=status)


def _static(path: Path, media_type: str) -> Response:
    headers = {"cache-control": "public, max-age=300"}
    return Response(path.read_bytes(), media_type=media_type, headers=headers)


def _link(href: str, text: str, rel: str) -> dict[str, Any]:
    return {"href": href, "text": text, "rel": rel, "current": False}


def parse_form(data: bytes) -> dict[str, str]:
    """Fields of a form; of one that stands twice the last."""
    try:
        fields = parse_qs(data.decode("utf-8"), keep_blank_values=True, max_num_fields=50)
    except ValueError as error:
        raise UsageError(f"the form cannot be read: {error}") from None
    return {name: values[-1] for name, values in fields.items()}


def _form_token(request: Request, sessions: Sessions) -> str:
    return sessions.form_token(session_cookie(request.headers))


async def _form(request: Request, sessions: Sessions) -> dict[str, str]:
    """The form a page of ours sent; one of another site does not know the token."""
    form = parse_form(await request.body())
    if not hmac.compare_digest(
        form.get("form_token", "").encode(), _form_token(request, sessions).encode()
    ):
        raise _Refused("this form is too old. Load its page again")
    return form


def _composed(service: Service, refs: list[str]) -> dict[str, Any]:
    """What the compose page shows of some concepts together."""
    composition = service.compose([ConceptChoice(ref) for ref in refs], by_name=True)
    names = (f"{each.concept.owner}/{each.concept.name}" for each in composition.members)
    words = " and ".join(f"a <{name}>" for name in names)
    return {
        "prompt": words,
        "density": share(composition.density),
        "contributions": [
            {
                "ref": each.ref,
                "neurons": f"{each.neuron_count:,}",
                "alone": share(each.exclusive_share),
            }
            for each in composition.contributions
        ],
        "overlaps": [
            {
                "pair": f"{each.first} and {each.second}",
                "shared": f"{each.shared_count:,}",
                "expected": f"{each.expected_count:,.0f}",
                "clash": each.shared_count > 3 * max(1.0, each.expected_count),
            }
            for each in composition.overlaps
        ],
    }


async def _finish(service: Service, job: Job, asked: Asked) -> None:
    """Wait for the pictures of a job and put them where its page finds them."""
    try:
        async for drawn in service.each(asked):
            job.pictures.append(service.pictures.put(drawn.data, asked.format))
            job.tell()
    except ConesError as error:
        job.error = str(error)
    except Exception:
        _LOGGER.exception("a picture for a page was lost")
        job.error = "something unexpected went wrong; the service's log says what"
    finally:
        job.error = job.error or ("" if job.is_done else "it was given up")
        job.tell()


def _again(job: Job) -> str:
    """The compose page with the same concepts and prompt."""
    return "/compose?" + urlencode({"concept": job.refs, "prompt": job.prompt}, doseq=True)


def _storage(service: Service) -> dict[str, Any]:
    """What is kept and what that saves."""
    registry = service.registry
    found = registry.stats()
    days = registry.query(
        "SELECT CAST(created AS DATE) AS day, count(*) AS versions, sum(blob_bytes) AS bytes "
        "FROM concepts GROUP BY day ORDER BY day DESC LIMIT 30"
    ).to_pylist()
    most = max((each["versions"] for each in days), default=1)
    return {
        "facts": [
            ("Owners", f"{found.owners:,}"),
            ("Concepts", f"{found.concepts:,}"),
            ("Versions", f"{found.versions:,}"),
            ("Masks take", size(found.used_bytes)),
            ("Saved by keeping equal masks once", size(found.saved_by_dedup)),
            ("The same kept as K/V weights", size(found.dense_bytes)),
            ("The same kept as LoRAs of rank 4", size(found.lora_bytes)),
        ],
        "owners": [
            {
                "owner": each.owner,
                "concepts": f"{each.concepts:,}",
                "versions": f"{each.versions:,}",
                "size": size(each.blob_bytes),
            }
            for each in found.largest_owners
        ],
        "days": [
            {
                "day": str(each["day"]),
                "versions": f"{each['versions']:,}",
                "size": size(int(each["bytes"] or 0)),
                "width": round(240 * each["versions"] / most, 1),
                "y": 18 * number,
            }
            for number, each in enumerate(days)
        ],
        "height": 18 * len(days),
    }


def _batch(number: int, url: str) -> dict[str, Any]:
    """How far a batch run is, and its newest pictures."""
    from cones_registry.batch import run_state

    name = url.rstrip("/").rpartition("/")[2]
    try:
        state = run_state(url, newest=_SHOWN_PICTURES)
    except ConesError as error:  # the other runs are shown
        return {"name": name, "problem": str(error), "pictures": []}
    return {
        "name": name,
        "problem": "",
        "done": state.done,
        "total": state.total,
        "failed": state.failed,
        "pictures": [f"/batches/{number}/{quote(name)}" for name in state.newest],
    }


def _batch_picture(url: str, name: str) -> bytes:
    from cones_registry.batch import run_picture

    return run_picture(url, name)
