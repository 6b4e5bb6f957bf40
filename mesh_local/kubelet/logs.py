"""`pods/log`: the log of a container, from its files."""

import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from io import BufferedReader
from pathlib import Path
from typing import Protocol

import trio

from mesh_local.kubelet.follow import DirectoryWatch
from mesh_local.kubelet.runtime import Runtime
from mesh_local.machinery.errors import bad_request
from mesh_local.machinery.objects import Object, dig, name_of, parse_time, uid_of

CHUNK_BYTES = 64 * 1024
_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


class Options(Protocol):
    """PodLogOptions (core/v1), as the API server has decoded them."""

    @property
    def container(self) -> str: ...
    @property
    def follow(self) -> bool: ...
    @property
    def previous(self) -> bool: ...
    @property
    def timestamps(self) -> bool: ...
    @property
    def since_seconds(self) -> int | None: ...
    @property
    def since_time(self) -> str: ...
    @property
    def tail_lines(self) -> int | None: ...
    @property
    def limit_bytes(self) -> int | None: ...


class PodLogs:
    """The logs of the pods of one runtime (the API server's `LogSource`)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @asynccontextmanager
    async def open_log(self, pod: Object, options: Options) -> AsyncIterator[AsyncIterator[bytes]]:
        """Chunks of log; with `follow` until the container has ended. Raises ApiError when entered."""
        name = choose_container(pod, options.container)
        if not dig(pod, "spec", "nodeName"):
            async with aclosing(_spaced(iter(()))) as nothing:
                yield nothing
            return
        attempt = choose_attempt(pod, name, options.previous)
        directory = self._runtime.directory(uid_of(pod), name, attempt)
        if not directory.is_dir():
            raise bad_request(f'container "{name}" in pod "{name_of(pod)}" is not available')
        with DirectoryWatch(directory) if options.follow else nullcontext() as watch:
            reader = _Reader(options)
            source = _spaced(reader.read(directory)) if watch is None else reader.follow(directory, watch)
            async with aclosing(source), aclosing(_limited(source, options.limit_bytes)) as chunks:
                yield chunks


def choose_container(pod: Object, wanted: str) -> str:
    """The container that is meant. Raises ApiError (400)."""
    mains = [str(c["name"]) for c in dig(pod, "spec", "containers", default=[])]
    inits = [str(c["name"]) for c in dig(pod, "spec", "initContainers", default=[])]
    if wanted:
        if wanted not in mains + inits:
            raise bad_request(f"container {wanted} is not valid for pod {name_of(pod)}")
        return wanted
    if len(mains) == 1 and not inits:
        return mains[0]
    message = f"a container name must be specified for pod {name_of(pod)}, choose one of: [{' '.join(mains)}]"
    if inits:
        message += f" or one of the init containers: [{' '.join(inits)}]"
    raise bad_request(message)


def choose_attempt(pod: Object, name: str, previous: bool) -> int:
    """Which attempt of the container is meant. Raises ApiError (400)."""
    statuses = [s for key in _STATUSES for s in dig(pod, "status", key, default=[])]
    found = next((s for s in statuses if s["name"] == name), None)
    if found is None:
        raise bad_request(f'container "{name}" in pod "{name_of(pod)}" is not available')
    count = int(found.get("restartCount") or 0)
    waiting = dig(found, "state", "waiting")
    ended_before = bool(dig(found, "lastState", "terminated", "containerID"))
    if previous:
        if not ended_before:
            raise bad_request(f'previous terminated container "{name}" in pod "{name_of(pod)}" not found')
        return count if waiting else count - 1
    if waiting and not ended_before:
        reason = waiting.get("reason") or "ContainerCreating"
        raise bad_request(f'container "{name}" in pod "{name_of(pod)}" is waiting to start: {reason}')
    return count


async def _spaced(chunks: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same, giving others a turn after each chunk."""
    for chunk in chunks:
        yield chunk
        await trio.lowlevel.checkpoint()


async def _limited(chunks: AsyncIterator[bytes], limit: int | None) -> AsyncGenerator[bytes, None]:
    left = limit
    async for chunk in chunks:
        if left is None:
            yield chunk
            continue
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return


def _files(directory: Path) -> list[Path]:
    """The parts of the log that are kept, oldest first."""
    return [path for path in (directory / "log.1", directory / "log") if path.exists()]


def entries(path: Path) -> Iterator[bytes]:
    """The complete entries of one part of a log, each with its newline."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


class _Reader:
    """Turns entries of a log into what the caller asked for."""

    def __init__(self, options: Options) -> None:
        self._tail = options.tail_lines
        self._timestamps = options.timestamps
        self._since = _since(options)
        self._whole = True  # the last entry ended its line

    def text(self, entry: bytes) -> bytes:
        """What is shown of an entry; nothing for one that is too old."""
        moment, _, tag, content = entry.split(b" ", 3)
        if self._since and moment < self._since:
            return b""
        shown = content if tag == b"F" else content[:-1]
        head = moment + b" " if self._timestamps and self._whole else b""
        self._whole = tag == b"F"
        return head + shown

    def present(self, files: list[Path]) -> Iterator[bytes]:
        """What is there, as far as asked for."""
        found = (entry for path in files for entry in entries(path))
        chosen = found if self._tail is None else iter(deque(found, maxlen=self._tail))
        return (self.text(entry) for entry in chosen)

    def read(self, directory: Path) -> Iterator[bytes]:
        """What there is of the log."""
        return _chunked(self.present(_files(directory)))

    async def follow(self, directory: Path, watch: DirectoryWatch) -> AsyncGenerator[bytes, None]:
        """What there is of the log, and what is added until the container has ended."""
        files = _files(directory)
        with _open(directory / "log") as current:
            older = [path for path in files if path.name != "log"]
            # What the current part holds by now is read through the same descriptor that is then followed.
            head = [entry for path in older for entry in entries(path)]
            rest, lines = _complete(current.read())
            head += lines
            if self._tail is not None:
                head = head[len(head) - self._tail :] if self._tail < len(head) else head
                head = head if self._tail else []
            for chunk in _chunked(self.text(entry) for entry in head):
                yield chunk
            async with aclosing(self._new(directory, watch, current, rest)) as new:
                async for chunk in new:
                    yield chunk

    async def _new(
        self, directory: Path, watch: DirectoryWatch, opened: BufferedReader, rest: bytes
    ) -> AsyncGenerator[bytes, None]:
        file, own = opened, False
        try:
            while True:
                ended = _has_ended(directory)
                data = file.read()
                if data:
                    rest, lines = _complete(rest + data)
                    text = b"".join(self.text(entry) for entry in lines)
                    if text:
                        yield text
                    continue
                if _replaced(file, directory / "log"):
                    if own:
                        file.close()
                    file, own = _open(directory / "log"), True
                    continue
                if ended:
                    return
                await watch.wait()
        finally:
            if own:
                file.close()


def _open(path: Path) -> BufferedReader:
    return path.open("rb")


def _has_ended(directory: Path) -> bool:
    return (directory / "exit.json").exists() or not directory.is_dir()


def _replaced(file: BufferedReader, path: Path) -> bool:
    """Whether the log has been moved aside and begun anew."""
    try:
        return os.fstat(file.fileno()).st_ino != path.stat().st_ino
    except FileNotFoundError:
        return False


def _complete(data: bytes) -> tuple[bytes, list[bytes]]:
    """An unfinished entry, and the finished ones before it."""
    # Not splitlines: a carriage return ends no entry.
    *lines, rest = data.split(b"\n")
    return rest, [line + b"\n" for line in lines]


def _chunked(parts: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


def _since(options: Options) -> bytes:
    """The first moment shown, in the form of the log; b'' for all."""
    if options.since_seconds is not None:
        moment = datetime.now(UTC) - timedelta(seconds=options.since_seconds)
    elif options.since_time:
        moment = parse_time(options.since_time)
    else:
        return b""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z".encode()


def last_lines(path: Path, count: int) -> bytes:
    """The text of the last entries of a log."""
    try:
        found = deque(entries(path), maxlen=count)
    except OSError:
        return b""
    return b"".join(entry.split(b" ", 3)[3] for entry in found)
