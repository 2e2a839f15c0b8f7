"""One tree of errors, one exit code per class.

Every message says the fact, what was expected, and what to do next. Every class is also the
built-in exception that fits, so that code which knows nothing of this package can still catch it.
"""

from typing import ClassVar, Final


class ConesError(Exception):
    """Base of every error this package raises on purpose. Exit code 1: unexpected."""

    exit_code: ClassVar[int] = 1


class UsageError(ConesError, ValueError):
    """The caller asked for something that cannot be: wrong shape, type, name or option."""

    exit_code = 2


class NotFoundError(ConesError, LookupError):
    """A concept, version, alias, layer or file that was named does not exist."""

    exit_code = 10


class ConflictError(ConesError, ValueError):
    """Something by that name exists already, or changed since the caller last looked."""

    exit_code = 11


class BaseModelMismatchError(ConesError, ValueError):
    """A mask made for one base model met another."""

    exit_code = 12


class CorruptDataError(ConesError, ValueError):
    """Bytes that are damaged, hostile, or written in a format this version does not know."""

    exit_code = 13


class NewerFormatError(CorruptDataError):
    """Data of a newer version of this package: nothing is wrong with it, nothing may change it."""

    @classmethod
    def of(cls, what: str) -> "NewerFormatError":
        """The error for something that this version does not know."""
        return cls(
            f"this registry holds {what} that this version does not know: a newer version wrote "
            "it. Upgrade cones-registry; nothing is damaged"
        )


class StoreUnavailableError(ConesError, OSError):
    """The object store did not answer, or refused."""

    exit_code = 14


class MissingExtraError(ConesError, ImportError):
    """A part of the package was used whose optional dependencies are not installed."""

    exit_code = 15


class LimitExceededError(ConesError, ValueError):
    """A limit that protects the user (density, size, quota) would be passed."""

    exit_code = 16


class ClockError(LimitExceededError):
    """The clock of this machine is too far from the store's to change anything."""


EXIT_CODES: Final[dict[int, str]] = {
    0: "ok",
    1: "unexpected",
    2: "usage",
    10: "not found",
    11: "exists or conflict",
    12: "base model mismatch",
    13: "corrupt or unsupported data",
    14: "store unavailable",
    15: "missing extra",
    16: "limit exceeded",
}
"""Exit code of the `cones` command -> its meaning, as `cones --help` prints it."""
