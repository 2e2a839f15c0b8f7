"""What a service allows, and how it waits."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cones_registry.errors import UsageError

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Limits and times of one service; every value has a bound that a person chose.

    Attributes:
        tokens: token -> name of who holds it; empty: anybody who reaches the port.
        hosts: names the service answers to, without port; others are refused, so that a page of
            the web cannot speak to a service on a person's own machine.
        max_body: bytes of a request's body.
        max_prompt: characters of a prompt.
        max_side: pixels of the longer side.
        max_steps: denoising steps.
        max_pictures: of one request (``n``).
        max_concepts: named by one request.
        max_batch: pictures drawn at a time.
        max_waiting: pictures that wait; one more is refused.
        gather_seconds: how long the first request of a batch waits for company.
        requests_per_minute: of one token (or address); 0: no limit.
        sync_seconds: how often the registry is asked for news.
        drain_seconds: how long a service that stops draws what waits.
        kept_pictures: bytes of pictures kept for ``response_format: "url"``.
        kept_seconds: how long such a picture is kept at most.
        body_seconds: how long a request may take to arrive, from its first line to its last byte.
        allow_write: whether pages may alias, tag and remove.
        log_prompts: whether prompts stand in the log.
        session_key: signs cookies and forms; replicas of one service share it.
        is_replicated: whether another replica may answer the next request, so that pictures cannot
            be kept for it.
    """

    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    hosts: frozenset[str] = LOOPBACK
    max_body: int = 64 << 10
    max_prompt: int = 4_000
    max_side: int = 2_048
    max_steps: int = 150
    max_pictures: int = 10
    max_concepts: int = 16
    max_batch: int = 8
    max_waiting: int = 256
    gather_seconds: float = 0.02
    requests_per_minute: int = 0
    sync_seconds: float = 2.0
    drain_seconds: float = 60.0
    kept_pictures: int = 256 << 20
    kept_seconds: float = 3600.0
    body_seconds: float = 30.0
    allow_write: bool = False
    log_prompts: bool = False
    session_key: bytes = field(default_factory=partial(secrets.token_bytes, 32), repr=False)
    is_replicated: bool = False


def parse_tokens(text: str) -> dict[str, str]:
    """Tokens of a file or a variable: one a line, ``NAME:TOKEN`` or ``TOKEN`` alone; # comments.

    Raises:
        UsageError: a token under 16 characters, or one that stands twice.
    """
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, token = line.partition(":")
        if not colon:
            name, token = f"token {len(tokens) + 1}", line
        token = token.strip()
        if len(token) < 16 or not token.isascii() or " " in token:
            raise UsageError(
                f"token {number} is not one: expected at least 16 ASCII characters without "
                "spaces. To make one: openssl rand -hex 24"
            )
        if token in tokens:
            raise UsageError(
                f"token {number} stands twice; every holder needs a token of their own"
            )
        tokens[token] = name.strip()
    return tokens
