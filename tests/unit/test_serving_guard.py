"""The door of the service, without the house behind it."""

import asyncio
from typing import Any

import pytest

from cones_registry.errors import NotFoundError
from cones_registry.serving.guard import BodyTooLargeError, BodyTooSlowError, Guard, Sessions
from cones_registry.serving.service import Job, Jobs
from cones_registry.serving.settings import ServiceSettings

SETTINGS = ServiceSettings(body_seconds=0.05, max_body=100)
MORE = {"type": "http.request", "body": b"x" * 60, "more_body": True}
LAST = {"type": "http.request", "body": b"x", "more_body": False}


def ask(*messages: dict[str, Any], settings: ServiceSettings = SETTINGS, **headers: str) -> int:
    """Bring messages to the door, then stay silent; the status of the answer."""
    waiting = list(messages)
    statuses: list[int] = []

    async def receive() -> Any:
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    given = {"host": "127.0.0.1", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/images/generations",
        "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    asyncio.run(Guard(inside, settings, Sessions(b"key"))(scope, receive, send))
    return statuses[0]


def test_a_body_that_does_not_arrive_is_waited_for_no_longer_than_was_said() -> None:
    assert ask(MORE, LAST) == 200
    with pytest.raises(BodyTooSlowError):
        ask(MORE)


def test_a_body_without_a_length_is_cut_at_the_limit() -> None:
    with pytest.raises(BodyTooLargeError):
        ask(MORE, MORE, LAST)


@pytest.mark.parametrize("host", ["", "[", "evil.example", "127.0.0.1.evil.example", "a@b:c:d"])
def test_names_that_are_none_are_not_answered_to(host: str) -> None:
    assert ask(LAST, host=host) == 421


@pytest.mark.parametrize("origin", ["null", "http://[", "http://127.0.0.1.evil.example", "x"])
def test_other_sites_are_refused_however_they_call_themselves(origin: str) -> None:
    assert ask(LAST, origin=origin) == 403
    assert ask(LAST, origin="http://127.0.0.1") == 200


def test_a_token_is_asked_for_in_whatever_form_a_wrong_one_comes() -> None:
    settings = ServiceSettings(tokens={"the-right-token-01234": "ann"})
    assert ask(LAST, settings=settings, authorization="Bearer the-right-token-01234") == 200
    for wrong in ("", "Bearer", "Bearer \xff", "Basic the-right-token-01234", "Bearer x y"):
        assert ask(LAST, settings=settings, authorization=wrong) == 401
    for cookie in ("cones_session=a.b.c", "cones_session=" + "\xe9" * 9, "x" * 5000, "=;=;"):
        assert ask(LAST, settings=settings, cookie=cookie) == 401


def test_a_cookie_of_one_service_opens_no_other() -> None:
    settings = ServiceSettings(tokens={"the-right-token-01234": "ann"})
    cookie = f"cones_session={Sessions(b'key').issue('ann')}"
    assert ask(LAST, settings=settings, cookie=cookie) == 200
    other = f"cones_session={Sessions(b'another').issue('ann')}"
    assert ask(LAST, settings=settings, cookie=other) == 401


def test_what_somebody_else_has_drawn_is_as_if_it_were_not_there() -> None:
    jobs = Jobs()
    jobs.add(Job("id", "ann", "a photo", (), 1))
    assert jobs.get("id", "ann").prompt == "a photo"
    for id, caller in (("id", "bob"), ("other", "ann")):
        with pytest.raises(NotFoundError):
            jobs.get(id, caller)


def test_a_browser_says_itself_whether_a_form_is_of_our_own_page() -> None:
    assert ask(LAST, origin="null", **{"sec-fetch-site": "same-origin"}) == 200
    for site in ("cross-site", "same-site", "nonsense"):
        assert ask(LAST, origin="http://127.0.0.1", **{"sec-fetch-site": site}) == 403
