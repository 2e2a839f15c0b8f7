"""The door: who may come in, how much they may bring, and what browsers are told."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from cones_registry.errors import LimitExceededError, UsageError
from cones_registry.serving.answers import error_response
from cones_registry.serving.settings import ServiceSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE: Final = "cones_session"
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/login", "/style.css"})
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SESSION_SECONDS: Final = 12 * 3600
_MOST_CALLERS: Final = 10_000
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not "no-referrer": browsers would then send forms of our own pages with "Origin: null".
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class BodyTooLargeError(LimitExceededError):
    """The body of a request passes the service's limit."""

    status: Final = 413


class BodyTooSlowError(LimitExceededError):
    """The body of a request does not arrive in time."""

    status: Final = 408


class Sessions:
    """Logins of browsers: a signed cookie, so that nothing is kept on this side.

    key: signs; whoever has it may sign in.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, caller: str) -> str:
        """A cookie's value that stands for ``caller`` until the service stops, 12 hours at most."""
        until = str(int(time.time()) + _SESSION_SECONDS)
        name = caller.encode().hex()
        return f"{name}.{until}.{self._sign(f'{name}.{until}')}"

    def caller(self, value: str) -> str | None:
        """Who a cookie stands for; None for one that is not ours or too old."""
        body, _, signature = value.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            return None
        name, _, until = body.partition(".")
        return bytes.fromhex(name).decode() if int(until) > time.time() else None

    def form_token(self, cookie: str) -> str:
        """What forms carry, so that no other site can send them for a person."""
        return self._sign(f"form {cookie}")

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class Tokens:
    """Who holds which token. Compared in constant time; digests make all of one length."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._names = {_digest(token): name for token, name in tokens.items()}

    def __bool__(self) -> bool:
        return bool(self._names)

    def holder(self, token: str) -> str | None:
        """Whose token this is; None for none."""
        given, found = _digest(token), None
        for known, name in self._names.items():  # all of them, whichever fits
            if hmac.compare_digest(known, given):
                found = name
        return found


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what is guarded.
        settings: tokens, hosts and limits.
        sessions: logins of browsers.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, sessions: Sessions) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions
        self._tokens = Tokens(settings.tokens)
        # caller -> (requests left, when that was counted)
        self._allowances: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at the door, or let the request in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    told.setdefault(name, value)
                told.setdefault("cache-control", "no-store")
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        await self._app(scope, self._bounded(receive), send_guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host = _host_of(headers.get("host", ""))
        if self._settings.hosts and host not in self._settings.hosts:
            return error_response(
                UsageError(
                    f"this service does not answer to the name {host[:100]!r}. "
                    "Name it with --allow-host"
                ),
                status=421,
            )
        if scope["method"] not in _SAFE and not _same_origin(headers):
            return error_response(
                UsageError("a request of another site's page is not taken"), status=403
            )
        if int_of(headers.get("content-length")) > self._settings.max_body:
            return self._too_large()
        caller = self.caller(headers)
        if caller is None:
            if scope["path"] in OPEN_PATHS:
                caller = "anybody"
            elif "text/html" in headers.get("accept", ""):
                return _to_login
            else:
                return error_response(
                    UsageError("no valid token. Send it as 'Authorization: Bearer TOKEN'"),
                    status=401,
                    headers={"www-authenticate": "Bearer"},
                )
        client = scope.get("client")
        scope.setdefault("state", {})
        scope["state"]["caller"] = caller
        if scope["path"] in OPEN_PATHS and scope["path"] != "/login":
            return None
        address = client[0] if client else "?"
        wait = self._overdrawn(caller if self._tokens and caller != "anybody" else address)
        if wait:
            return error_response(
                LimitExceededError(
                    f"more than {self._settings.requests_per_minute} requests a minute. "
                    f"Ask again in {wait} s"
                ),
                status=429,
                headers={"retry-after": str(wait)},
            )
        return None

    def caller(self, headers: Headers) -> str | None:
        """Who asks; "anybody" where no token is needed, None without a valid one."""
        if not self._tokens:
            return "anybody"
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._tokens.holder(token.strip())
        cookie = session_cookie(headers)
        return self._sessions.caller(cookie) if cookie else None

    def _overdrawn(self, caller: str) -> int:
        """Seconds until ``caller`` may ask again; 0 for now."""
        most = self._settings.requests_per_minute
        if not most:
            return 0
        now = time.monotonic()
        left, then = self._allowances.pop(caller, (float(most), now))
        left = min(most, left + (now - then) * most / 60)
        self._allowances[caller] = (left - 1 if left >= 1 else left, now)
        while len(self._allowances) > _MOST_CALLERS:
            self._allowances.popitem(last=False)
        return 0 if left >= 1 else max(1, round((1 - left) * 60 / most))

    def _bounded(self, receive: Receive) -> Receive:
        """``receive`` that stops at the limits, whatever the length was said to be."""
        taken, is_whole = 0, False
        until = time.monotonic() + self._settings.body_seconds

        async def receive_bounded() -> Message:
            nonlocal taken, is_whole
            if is_whole:  # only whether the client is still there
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                raise BodyTooSlowError(
                    f"the body did not arrive within {self._settings.body_seconds:g} s"
                ) from None
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                taken += len(message.get("body", b""))
                if taken > self._settings.max_body:
                    raise BodyTooLargeError(self._limit_text())
            return message

        return receive_bounded

    def _too_large(self) -> ASGIApp:
        return error_response(BodyTooLargeError(self._limit_text()), status=413)

    def _limit_text(self) -> str:
        return f"the body is larger than {self._settings.max_body:,} bytes, all this service takes"


def session_cookie(headers: Headers) -> str:
    """The value of the session's cookie; empty without one."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def int_of(text: str | None) -> int:
    """A header's number; 0 where it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else 0


def _host_of(text: str) -> str:
    """The name in a ``Host`` header; empty where it is none."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


def _same_origin(headers: Headers) -> bool:
    """Whether a changing request comes from this service's own pages, or from no page at all."""
    site = headers.get("sec-fetch-site")
    if site is not None:  # of the browser itself; a page cannot set it
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


async def _to_login(scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.responses import RedirectResponse

    await RedirectResponse("/login", status_code=303)(scope, receive, send)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
