"""What a foreign error means. The only place that knows how file systems and clients fail.

Sources: s3fs.errors (HTTP 412 without a named condition becomes EINVAL, 409 and 503 become EBUSY,
500 becomes EREMOTEIO), botocore, azure-core and gcsfs exception classes, errno(3).
"""

import asyncio
import errno
from enum import Enum
from typing import Final


class Trouble(Enum):
    """What went wrong, as far as the caller can act on it."""

    EXISTS = "a create met an object"
    MISSING = "no such object"
    PASSING = "throttled, conflicting, timed out or broken off: the next attempt may pass"
    UNCLEAR_CREATE = "invalid argument: on a create perhaps that the object exists"
    DENIED = "not allowed"
    TOO_LARGE = "more bytes than any object may have"
    FULL = "no room on the disk, or none within a quota"
    CREDENTIALS = "the server knows these credentials no longer, or not in this form"
    ELSEWHERE = "the bucket is in another region, or at another address"
    LASTING = "anything else"


class ObjectTooLargeError(Exception):
    """A backend met an object above the size limit before reading it."""


_PASSING_NUMBERS: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "EIO", "EREMOTEIO", "ETIMEDOUT", "ECONNRESET", "ESTALE"),
        *("ECONNREFUSED", "ECONNABORTED", "EPIPE", "EHOSTUNREACH", "ENETUNREACH", "ENETRESET"),
    )
    if hasattr(errno, name)
)
# Classes of clients that need not be installed, by name; base classes are looked at too.
_PASSING_CLASSES: Final = frozenset(
    (
        "FSTimeoutError",  # fsspec
        "HTTPClientError",  # botocore: connection refused, closed, timed out
        "ConnectionClosedError",
        "EndpointConnectionError",
        "IncompleteReadError",
        "ResponseParserError",
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ServiceRequestError",  # azure-core
        "ServiceResponseError",
        "IncompleteRead",  # http.client
        "ProtocolError",  # urllib3
        "ChecksumError",  # gcsfs
    )
)
_FULL_NUMBERS: Final = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)
)
# Of S3. The answer to HEAD has no body, so that of these nothing is left but the number.
_CREDENTIAL_CODES: Final = frozenset(
    (
        *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"),
        *("SignatureDoesNotMatch", "RequestTimeTooSkewed", "ExpiredTokenException"),
    )
)
_ELSEWHERE_CODES: Final = frozenset(
    (
        *("PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed"),
        *("IllegalLocationConstraintException", "301", "307"),
    )
)
_PASSING_STATUS: Final = frozenset((408, 409, 429, 500, 502, 503, 504))
_PASSING_CODES: Final = frozenset(
    (
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "ConditionalRequestConflict",
        "OperationAborted",
        "ServerBusy",
    )
)


def classify(error: BaseException) -> Trouble:
    """The meaning of anything a backend raised."""
    if isinstance(error, ObjectTooLargeError):
        return Trouble.TOO_LARGE
    if isinstance(error, FileExistsError):
        return Trouble.EXISTS
    status, code = _answer(error)
    if code in _CREDENTIAL_CODES:
        return Trouble.CREDENTIALS
    if code in _ELSEWHERE_CODES or status in (301, 307):
        return Trouble.ELSEWHERE
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return Trouble.MISSING
    if isinstance(error, PermissionError):
        return Trouble.DENIED
    if status == 412 or code == "PreconditionFailed":
        return Trouble.EXISTS
    if code in _PASSING_CODES or status in _PASSING_STATUS:
        return Trouble.PASSING
    if isinstance(error, TimeoutError | asyncio.TimeoutError | ConnectionError):
        return Trouble.PASSING
    if any(kind.__name__ in _PASSING_CLASSES for kind in type(error).__mro__):
        return Trouble.PASSING
    if isinstance(error, OSError):
        if error.errno in _PASSING_NUMBERS:
            return Trouble.PASSING
        if error.errno in _FULL_NUMBERS:
            return Trouble.FULL
        if error.errno == errno.EINVAL:
            return Trouble.UNCLEAR_CREATE
    if status == 404:
        return Trouble.MISSING
    if status in (401, 403) or any(
        kind.__name__ in ("NoCredentialsError", "ClientAuthenticationError")
        for kind in type(error).__mro__
    ):
        return Trouble.DENIED
    return Trouble.LASTING


def _answer(error: BaseException) -> tuple[int | None, str | None]:
    """(HTTP status, error code) of the server's answer behind an error, where there is one."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, response.get("Error", {}).get("Code")
        for name in ("status_code", "status", "code"):
            value = getattr(candidate, name, None)
            if isinstance(value, int):
                return value, None
            if isinstance(value, str) and value.isdigit():
                return int(value), None
    return None, None
