"""The form of logs, and which of them is read."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh_local.kubelet.logs import PodLogs, _complete, last_lines
from mesh_local.kubelet.runtime import Runtime
from mesh_local.kubelet.shim.pump import LINE_BYTES, LogFile, Stream
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object
from tests.support.local_kubelet import Logs


def pumped(tmp_path: Path, *pieces: bytes, max_bytes: int = 1 << 20) -> list[tuple[bytes, bytes, bytes]]:
    read, write = os.pipe()
    log = LogFile(str(tmp_path / "log"), max_bytes)
    stream = Stream(read, b"stdout", log)
    for piece in pieces:
        os.write(write, piece)
        assert stream.read()
    os.close(write)
    assert not stream.read()
    os.close(read)
    lines = (tmp_path / "log").read_bytes().splitlines()
    return [(name, tag, text) for _, name, tag, text in (line.split(b" ", 3) for line in lines)]


def test_lines_are_whole_whatever_the_pieces(tmp_path: Path) -> None:
    assert pumped(tmp_path, b"on", b"e\ntwo\n\nthr", b"ee") == [
        (b"stdout", b"F", b"one"),
        (b"stdout", b"F", b"two"),
        (b"stdout", b"F", b""),
        (b"stdout", b"P", b"three"),
    ]


def test_long_lines_are_cut(tmp_path: Path) -> None:
    found = pumped(tmp_path, b"x" * (LINE_BYTES + 10), b"\n")
    assert [(tag, len(text)) for _, tag, text in found] == [(b"P", LINE_BYTES), (b"F", 10)]


def test_a_full_log_is_moved_aside(tmp_path: Path) -> None:
    pumped(tmp_path, *[b"%d\n" % n for n in range(20)], max_bytes=200)
    sizes = [(tmp_path / name).stat().st_size for name in ("log", "log.1")]
    assert all(0 < size <= 200 for size in sizes)
    assert last_lines(tmp_path / "log", 2) == b"18\n19\n"


LOG = b"""2026-01-01T00:00:00.000000001Z stdout F one
2026-01-01T00:00:01.000000000Z stderr P tw
2026-01-01T00:00:01.000000000Z stderr F o
2099-01-01T00:00:02.000000000Z stdout F three
"""


def pod(*states: Object, inits: tuple[str, ...] = ()) -> Object:
    names = "abc"[: len(states)]
    return {
        "metadata": {"name": "talk", "namespace": "t", "uid": "u"},
        "spec": {
            "nodeName": "n",
            "containers": [{"name": name} for name in names],
            "initContainers": [{"name": name} for name in inits],
        },
        "status": {"containerStatuses": [{"name": n, **s} for n, s in zip(names, states, strict=True)]},
    }


RUNNING: Object = {"state": {"running": {}}, "restartCount": 1}


def read(tmp_path: Path, obj: Object, **options: Any) -> str:
    runtime = Runtime(tmp_path / "pods")
    for attempt, text in ((0, b"2026-01-01T00:00:00.000000001Z stdout F before\n"), (1, LOG)):
        directory = runtime.directory("u", "a", attempt)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "log").write_bytes(text)

    async def main() -> str:
        async with PodLogs(runtime).open_log(obj, Logs(**options)) as chunks:
            return b"".join([chunk async for chunk in chunks]).decode()

    return trio.run(main)


def test_what_is_shown(tmp_path: Path) -> None:
    one = pod(RUNNING)
    assert read(tmp_path, one) == "one\ntwo\nthree\n"
    assert read(tmp_path, one, tail_lines=1) == "three\n"
    assert read(tmp_path, one, tail_lines=0) == ""
    assert read(tmp_path, one, limit_bytes=5) == "one\nt"
    assert read(tmp_path, one, since_seconds=3600) == "three\n"
    assert read(tmp_path, one, since_time="2026-01-01T00:00:01Z") == "two\nthree\n"
    assert read(tmp_path, one, timestamps=True, tail_lines=3).splitlines()[0] == (
        "2026-01-01T00:00:01.000000000Z two"
    )
    older = tmp_path / "pods/u/containers/a/1/log.1"
    older.write_bytes(b"2026-01-01T00:00:00.000000000Z stdout F zero\n")
    assert read(tmp_path, one) == "zero\none\ntwo\nthree\n"


def test_a_full_disk_costs_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    log = LogFile(str(tmp_path / "log"), 1000)
    with open("/dev/full", "w", buffering=1) as no_room:
        monkeypatch.setattr("sys.stderr", no_room)
        log.write(b"a\n")
        log.write(b"b\n")


def test_a_carriage_return_ends_no_line(tmp_path: Path) -> None:
    entry = b"2026-01-01T00:00:01.000000000Z stdout F 10%\r20% of it\x0c\x1c\n"
    directory = Runtime(tmp_path / "pods").directory("u", "a", 1)
    directory.mkdir(parents=True)
    (directory / "exit.json").touch()
    (directory / "log.1").write_bytes(entry)
    assert read(tmp_path, pod(RUNNING), follow=True).startswith("10%\r20% of it\x0c\x1c\none\n")
    (directory / "log").write_bytes(entry)
    lines, rest = [entry], b"2026-"
    assert _complete(entry + rest) == (rest, lines)


def test_which_attempt_is_shown(tmp_path: Path) -> None:
    before = {"lastState": {"terminated": {"containerID": "x"}}}
    assert read(tmp_path, pod({**RUNNING, **before}), previous=True) == "before\n"
    waiting = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1, **before}
    assert read(tmp_path, pod(waiting), previous=True) == read(tmp_path, pod(waiting)) == "one\ntwo\nthree\n"
    unscheduled = pod(RUNNING)
    del unscheduled["spec"]["nodeName"]
    assert read(tmp_path, unscheduled) == ""


@pytest.mark.parametrize(
    ("obj", "options", "message"),
    [
        (
            pod(RUNNING, RUNNING),
            {},
            "a container name must be specified for pod talk, choose one of: [a b]",
        ),
        (
            pod(RUNNING, inits=("i",)),
            {},
            "a container name must be specified for pod talk, choose one of: [a] or one of the init"
            " containers: [i]",
        ),
        (pod(RUNNING), {"container": "nope"}, "container nope is not valid for pod talk"),
        (
            pod(RUNNING),
            {"previous": True},
            'previous terminated container "a" in pod "talk" not found',
        ),
        (
            pod({"state": {"waiting": {"reason": "ErrImageNeverPull"}}}),
            {},
            'container "a" in pod "talk" is waiting to start: ErrImageNeverPull',
        ),
    ],
)
def test_refusals(tmp_path: Path, obj: Object, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as found:
        read(tmp_path, obj, **options)
    assert (found.value.code, found.value.message) == (400, message)
