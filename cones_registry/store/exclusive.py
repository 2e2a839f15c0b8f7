"""A rename that never replaces: the system calls for it, which Python does not have."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Final

_AT_FDCWD: Final = -100  # Linux: paths are relative to the working folder
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCL: Final = 4  # macOS


def rename_to_new(source: str, target: str) -> None:
    """Rename `source` to `target` if nothing is there, in one step.

    Raises:
        FileExistsError: something is there.
        OSError: EINVAL, ENOSYS or ENOTSUP where the system or the disk cannot do this; else what
            a rename raises.
    """
    call = _system_call()
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source)
    ctypes.set_errno(0)
    if call(os.fsencode(source), os.fsencode(target)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


@functools.cache
def _system_call() -> Callable[[bytes, bytes], int] | None:
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda source, target: int(library.renamex_np(source, target, _RENAME_EXCL))
    if hasattr(library, "renameat2"):
        return lambda source, target: int(
            library.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE)
        )
    return None
