"""Answers as JSON, errors with the names of the command line's exit codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from cones_registry.errors import (
    EXIT_CODES,
    BaseModelMismatchError,
    ConesError,
    ConflictError,
    LimitExceededError,
    MissingExtraError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)

STATUS: Final[Mapping[type[ConesError], int]] = {
    UsageError: 400,
    NotFoundError: 404,
    ConflictError: 409,
    BaseModelMismatchError: 409,
    LimitExceededError: 422,
    StoreUnavailableError: 503,
    MissingExtraError: 501,
}


class JSON(Response):
    """A JSON document."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Compact UTF-8; numbers that JSON does not know are an error of ours."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")


def error_body(error: BaseException) -> dict[str, Any]:
    """OpenAI's form of an error; ``code`` is the name of the exit code it ends a command with."""
    if isinstance(error, ConesError):
        code, message = EXIT_CODES[error.exit_code], str(error)
    else:
        code, message = (
            EXIT_CODES[1],
            "something unexpected went wrong; the service's log says what",
        )
    kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def status_of(error: BaseException) -> int:
    """HTTP status of an error; an error that has one of its own says so."""
    own = getattr(error, "status", None)
    if isinstance(error, ConesError) and own is not None:
        return int(own)
    for kind, status in STATUS.items():
        if isinstance(error, kind):
            return status
    return 500


def error_response(
    error: BaseException, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed."""
    told = dict(headers or {})
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        told["retry-after"] = str(wait)
    return JSON(error_body(error), status_code=status or status_of(error), headers=told)
