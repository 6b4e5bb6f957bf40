"""Configuration from a file: the same message that a control plane streams, re-read when the file changes.

A file that cannot be used changes nothing: the reason is logged once per content, and the last good snapshot
stays in force.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from mesh_api.sidecar import MAX_SNAPSHOT_BYTES, ConfigError, Snapshot, decode_snapshot

POLL_S = 0.25

OnError = Callable[[str, str], None]
"""Called with the path inside the message (JSON path) and what was expected there."""


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_SNAPSHOT_BYTES + 1)


async def watch_file(path: str, on_snapshot: Callable[[Snapshot], None], on_error: OnError) -> None:
    """Deliver each usable content of `path` until cancelled; a symbolic link's target counts."""
    seen: tuple[int, int, int, int] | None = None
    last = b""
    missing_told = False
    while True:
        stamp = await trio.to_thread.run_sync(_stamp, path)
        if stamp is None:
            if not missing_told and not last:
                on_error("$", f"expected a readable file at {path}")
                missing_told = True
        elif stamp != seen:
            seen = stamp
            try:
                data = await trio.to_thread.run_sync(_read, path)
            except OSError as exc:
                on_error("$", f"expected a readable file at {path}: {exc.strerror}")
            else:
                if data != last:
                    last = data
                    _deliver(data, on_snapshot, on_error)
        await trio.sleep(POLL_S)


def _deliver(data: bytes, on_snapshot: Callable[[Snapshot], None], on_error: OnError) -> None:
    try:
        snapshot = decode_snapshot(data)
    except ConfigError as exc:
        on_error(exc.path, exc.expected)
    else:
        on_snapshot(snapshot)
