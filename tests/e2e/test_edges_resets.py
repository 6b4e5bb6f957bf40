"""Resets through real redirects: mTLS between two sidecars, and plaintext to one."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from examples.two_pods.netns import wait_for
from examples.two_pods.scene import Pod, Scene
from mesh_api.sidecar import Protocol
from tests.support.netns import App, read_all

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

BLOB = os.urandom(60_000)
"""Fits every socket on the way, so that a reset destroys nothing in the application's own."""
callers = pytest.mark.parametrize("caller", ["client", "outsider"], ids=["mtls", "plaintext"])


@pytest.fixture(scope="module", params=[(4,), (6,)], ids=["ipv4", "ipv6"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Scene([Pod("client"), Pod("server"), Pod("outsider", meshed=False)], request.param) as scene:
        scene.service("raw", 91, [scene["server"]], 9091, Protocol.TCP)
        scene.start()
        yield scene


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_to_reset(sock: socket.socket) -> bytes:
    """Everything that comes before a reset; an end without one is an error."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        return data
    raise AssertionError(f"a clean end after {len(data)} bytes")


def flagged(pod: Pod, flag: str) -> float:
    return pod.metric("triomesh_tcp_connections_closed_total", flag=flag)


@callers
def test_the_application_resets_after_its_answer(scene: Scene, caller: str) -> None:
    def handle(conn: socket.socket) -> None:
        conn.recv(100)
        conn.sendall(BLOB)
        conn.recv(100)  # the client has the answer on its way
        reset(conn)

    server = scene["server"]
    before = flagged(server, "UC")
    with App(server, 9091, handle), scene[caller].connect(scene.services["raw", 91].ip, 91) as sock:
        sock.sendall(b"\0ask")  # no HTTP: nothing more is waited for
        assert sock.recv(1000, socket.MSG_PEEK) == BLOB[:1000]
        sock.sendall(b"seen")
        assert read_to_reset(sock) == BLOB
    wait_for(lambda: flagged(server, "UC") == before + 1, "the connection to be counted")


@callers
def test_the_client_resets_after_its_words(scene: Scene, caller: str) -> None:
    found: list[bytes] = []

    def handle(conn: socket.socket) -> None:
        conn.sendall(b"come")
        found.append(read_to_reset(conn))

    server = scene["server"]
    before = flagged(server, "DC")
    with App(server, 9091, handle) as app:
        sock = scene[caller].connect(scene.services["raw", 91].ip, 91)
        assert sock.recv(4) == b"come"
        sock.sendall(BLOB)
        reset(sock)
        wait_for(lambda: found, "the application to learn of it")
        assert not app.errors
    assert found == [BLOB]
    wait_for(lambda: flagged(server, "DC") == before + 1, "the connection to be counted")


@callers
def test_a_clean_end_stays_one(scene: Scene, caller: str) -> None:
    def handle(conn: socket.socket) -> None:
        conn.sendall(read_all(conn)[::-1])

    with App(scene["server"], 9091, handle), scene[caller].connect(scene.services["raw", 91].ip, 91) as sock:
        sock.sendall(BLOB)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == BLOB[::-1]
