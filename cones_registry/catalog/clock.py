"""Stamps: ULIDs that are unique everywhere and later than everything their maker has seen.

A stamp names a log segment and orders what it says: of two statements about one fact the later
stamp holds, whatever order they arrive in. Making each stamp later than all seen before (a hybrid
logical clock) lets a machine whose clock is behind still overrule what it has read.
"""

import threading
import time
from typing import Final

from ulid import ULID

from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError

CLOCK_BOUND: Final = 600.0
"""Seconds by which the clock of a machine that changes something may differ from the store's."""

STAMP_LENGTH: Final = 26
_ALPHABET: Final = frozenset("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


class Clock:
    """Makes stamps; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0  # milliseconds since 1970

    def next(self) -> str:
        """A new stamp, later than all that this clock made or observed."""
        with self._lock:
            # One stamp a millisecond: the other 80 bits stay random, so no two makers meet.
            self._last = max(time.time_ns() // 1_000_000, self._last + 1)
            return _stamp(self._last)

    def observe(self, stamp: str) -> None:
        """Make every later stamp of this clock later than ``stamp``, however wrong it is.

        Were a stamp of the far future not followed, what it said could never be changed again.
        """
        seen = stamp_milliseconds(stamp)
        with self._lock:
            self._last = max(self._last, seen)


def _stamp(milliseconds: int) -> str:
    return str(ULID.from_bytes(milliseconds.to_bytes(6, "big") + ULID().bytes[6:]))


def parse_stamp(text: str) -> str:
    """Return `text` if it is a ULID in canonical form, else raise `CorruptDataError`."""
    if len(text) != STAMP_LENGTH or not _ALPHABET.issuperset(text) or text[0] > "7":
        raise CorruptDataError(f"{quote(text)} is not a ULID")
    return text


def stamp_milliseconds(stamp: str) -> int:
    """When a stamp was made, milliseconds since 1970, by its maker's clock."""
    return ULID.from_str(stamp).milliseconds
