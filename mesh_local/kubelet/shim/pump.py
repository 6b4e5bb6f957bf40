"""A container's output as a log in the CRI form: `TIME STREAM TAG TEXT`; tag P marks a part of a line."""

import contextlib
import os
import sys
import time

# containerd's max_container_log_line_size.
LINE_BYTES = 16 * 1024
READ_BYTES = 64 * 1024


def timestamp(nanoseconds: int) -> bytes:
    """RFC 3339 in UTC with nine fraction digits."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest


class LogFile:
    """The log, and one older part that it is moved to when it has grown to `max_bytes`."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._max = max_bytes
        self._fd = self._open()
        self._size = 0
        self._failing = False

    def _open(self) -> int:
        return os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o640)

    def write(self, data: bytes) -> None:
        try:
            self._write(data)
            self._failing = False
        except OSError as exc:
            # A full disk costs lines of the log, not the container's life; it may not even take this message.
            if not self._failing:
                with contextlib.suppress(OSError):
                    os.write(sys.stderr.fileno(), f"cannot write the log: {exc.strerror}\n".encode())
            self._failing = True

    def _write(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._max:
            os.rename(self._path, self._path + ".1")
            os.close(self._fd)
            self._fd = self._open()
            self._size = 0
        self._size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class Stream:
    """One of the two outputs: cuts what is read into lines. Holds at most one part of a line."""

    def __init__(self, fd: int, name: bytes, log: LogFile) -> None:
        self.fd = fd
        self._name = name
        self._log = log
        self._rest = b""

    def read(self) -> bool:
        """Move what is there to the log; False at the end of the output."""
        data = os.read(self.fd, READ_BYTES)
        now = timestamp(time.time_ns())
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        out = [entry for line in lines for entry in self._entries(now, line)]
        while len(self._rest) >= LINE_BYTES:
            out.append(b"%s %s P %s\n" % (now, self._name, self._rest[:LINE_BYTES]))
            self._rest = self._rest[LINE_BYTES:]
        if not data and self._rest:
            out.append(b"%s %s P %s\n" % (now, self._name, self._rest))
            self._rest = b""
        if out:
            self._log.write(b"".join(out))
        return bool(data)

    def _entries(self, now: bytes, line: bytes) -> list[bytes]:
        parts = [line[at : at + LINE_BYTES] for at in range(0, len(line), LINE_BYTES)] or [b""]
        tags = [b"P"] * (len(parts) - 1) + [b"F"]
        return [
            b"%s %s %s %s\n" % (now, self._name, tag, part) for tag, part in zip(tags, parts, strict=True)
        ]
