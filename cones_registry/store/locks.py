"""A lock on a file, where the disk knows locks: who gets none is told so at once and goes on.

Some shared disks answer ``flock`` with "not implemented", "not supported" or "not allowed", which
is no sign that somebody else holds the lock. So what a lock guards must stay right without it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

_HELD: Final = frozenset((errno.EWOULDBLOCK, errno.EAGAIN))
_EVERY: Final = 0.02
"""Seconds between two looks at a lock that somebody holds."""


class FileLock:
    """An exclusive lock on `path`, for one thread at a time.

    Attributes:
        path: the file, made when it is not there; nothing is written into it.
        held: whether this object holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, seconds: float) -> bool:
        """Take the lock, waiting while others hold it; whether it is held now.

        It is not after `seconds`, or at once where the disk or the system knows no locks.
        """
        if fcntl is None:
            return False
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return False
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                if error.errno not in _HELD or time.monotonic() >= deadline:
                    os.close(descriptor)
                    return False
                time.sleep(_EVERY)
            else:
                self._descriptor = descriptor
                return True

    def release(self) -> None:
        """Let it go; not held is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)  # which ends the lock
