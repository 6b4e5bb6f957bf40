"""Waits for changes in a directory (inotify(7)), so that following a log needs no polling."""

import ctypes
import os
from pathlib import Path
from types import TracebackType

import trio

_IN_MODIFY = 0x2
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE_SELF = 0x400
_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """What happens in one directory from when this is entered. Raises OSError when entered."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> "DirectoryWatch":
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE_SELF
        try:
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(self._directory), mask))
        except OSError:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    async def wait(self) -> None:
        """Return when something has changed since the last call."""
        await trio.lowlevel.wait_readable(self._fd)
        os.read(self._fd, 64 * 1024)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "inotify")
    return result
