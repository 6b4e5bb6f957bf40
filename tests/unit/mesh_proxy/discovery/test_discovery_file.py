import os

import msgspec
import pytest
import trio
import trio.testing

from mesh_api.sidecar import Snapshot, Workload, encode_snapshot
from mesh_proxy.discovery.file import watch_file
from tests.support.mesh import run, wait_until

GOOD = Snapshot(workload=Workload(name="a", namespace="shop"))
OTHER = Snapshot(workload=Workload(name="b", namespace="shop"))


class Watched:
    def __init__(self, path):
        self.path = path
        self.snapshots = []
        self.errors = []

    def put(self, data):
        """Replace the file atomically."""
        temporary = self.path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(self.path)

    async def settle(self):
        """Two rounds of polling, so that what is there has been seen."""
        await trio.sleep(0.06)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    monkeypatch.setattr("mesh_proxy.discovery.file.POLL_S", 0.01)
    return Watched(tmp_path / "config.json")


def watching(watched, body):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                watch_file,
                str(watched.path),
                watched.snapshots.append,
                lambda path, expected: watched.errors.append((path, expected)),
            )
            await body()
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    ("data", "path", "expected"),
    [
        (b'{"workload":{"name":"a","namespace":"b"},"surprise":1}', "$", "surprise"),
        (b'{"workload":{"name":"a","namespace":"b","x":1}}', "$.workload", "unknown field `x`"),
        (b'{"workload":{"name":"a","namespace":7}}', "$.workload.namespace", "Expected `str`"),
        (b'{"workload":{"name":"","namespace":"b"}}', "$.workload.name", "length >= 1"),
        (b"{}", "$", "missing required field `workload`"),
        (b"not json", "$", "expected JSON"),
        (b"", "$", "expected JSON"),
        (b'{"workload":{"name":"\xff","namespace":"b"}}', "$", "expected JSON"),
        (b"[" * 100_000, "$", "array"),
        (
            b'{"workload":{"name":"a","namespace":"b"},"inbound":{"portMtls":{"%s":"STRICT"}}}'
            % (b"9" * 5000),
            "$.inbound.portMtls",
            "a port",
        ),
        (
            b'{"workload":{"name":"a","namespace":"b"},"destinations":[{"name":"d","namespace":"n","port":1,'
            b'"addresses":[],"routes":[{"to":[{"subset":"v9"}]}]}]}',
            "$.destinations[0].routes[0].to[0].subset",
            "v9",
        ),
    ],
)
def test_what_cannot_be_used(watched, data, path, expected):
    async def body():
        watched.put(encode_snapshot(GOOD))
        await wait_until(lambda: watched.snapshots)
        watched.put(data)
        await wait_until(lambda: watched.errors)
        await watched.settle()
        assert len(watched.errors) == 1, "told once"
        assert watched.errors[0][0].startswith(path)
        assert expected in watched.errors[0][1]
        assert watched.snapshots == [GOOD]
        watched.put(encode_snapshot(OTHER))
        await wait_until(lambda: len(watched.snapshots) == 2)
        assert watched.snapshots[1] == OTHER

    watching(watched, body)


def test_missing_then_there_then_gone(watched):
    async def body():
        await wait_until(lambda: watched.errors)
        assert str(watched.path) in watched.errors[0][1]
        await watched.settle()
        assert len(watched.errors) == 1
        watched.put(encode_snapshot(GOOD))
        await wait_until(lambda: watched.snapshots)
        watched.path.unlink()
        await watched.settle()
        assert watched.snapshots == [GOOD]
        watched.put(encode_snapshot(OTHER))
        await wait_until(lambda: len(watched.snapshots) == 2)

    watching(watched, body)


def test_same_content_is_delivered_once(watched):
    async def body():
        for _ in range(3):
            watched.put(encode_snapshot(GOOD))
            await watched.settle()
        assert watched.snapshots == [GOOD]

    watching(watched, body)


def test_good_again_after_bad(watched):
    async def body():
        for data, count in ((encode_snapshot(GOOD), 1), (b"?", 1), (encode_snapshot(GOOD), 2)):
            watched.put(data)
            await watched.settle()
            await wait_until(lambda count=count: len(watched.snapshots) == count)
        assert len(watched.errors) == 1

    watching(watched, body)


def test_symbolic_link_that_moves(watched, tmp_path):
    """A mounted ConfigMap changes by replacing the link to its directory."""

    async def body():
        for n, snapshot in enumerate((GOOD, OTHER)):
            directory = tmp_path / f"data{n}"
            directory.mkdir()
            (directory / "config.json").write_bytes(encode_snapshot(snapshot))
        os.symlink("data0", tmp_path / "..data")
        os.symlink("..data/config.json", watched.path)
        await wait_until(lambda: watched.snapshots)
        os.symlink("data1", tmp_path / "..next")
        os.replace(tmp_path / "..next", tmp_path / "..data")
        await wait_until(lambda: len(watched.snapshots) == 2)
        assert watched.snapshots == [GOOD, OTHER]
        assert not [error for error in watched.errors if "readable" not in error[1]]

    watching(watched, body)


def test_a_directory_is_no_file(watched):
    async def body():
        watched.path.mkdir()
        await wait_until(lambda: watched.errors)
        await watched.settle()
        assert "directory" in watched.errors[-1][1].lower()
        assert len(watched.errors) <= 2

    watching(watched, body)


def test_over_the_limit(watched, monkeypatch):
    monkeypatch.setattr("mesh_proxy.discovery.file.MAX_SNAPSHOT_BYTES", 10_000)
    monkeypatch.setattr("mesh_api.sidecar.MAX_SNAPSHOT_BYTES", 10_000)

    async def body():
        watched.put(msgspec.json.encode(GOOD) + b" " * 20_000)
        await wait_until(lambda: watched.errors)
        assert "at most 10000 bytes" in watched.errors[0][1]

    watching(watched, body)
