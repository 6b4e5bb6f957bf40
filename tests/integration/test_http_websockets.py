"""WebSocket with a real client and server (the `websockets` library), with and without sidecars."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from mesh_api.sidecar import Protocol
from mesh_proxy.net.addr import Addr
from tests.integration.http_peers import each_path, mesh_test, settled
from tests.support.mesh import DIRECT, TWO, Sidecar, identity, path, wait_until

STEP_S = 10


class WebSockets:
    """A path to a server, and clients."""

    def __init__(self, addr: Addr, sidecars: tuple[Sidecar, ...]) -> None:
        self.sidecars = sidecars
        self._addr = addr

    async def use(self, client: Callable[[ClientConnection], object], **kwargs: object) -> object:
        """Run a client in a thread, to the end of its connection."""

        def run() -> object:
            sock = socket.socket()
            sock.connect(self._addr)
            with connect("ws://shop.example/live?a=1", sock=sock, max_size=None, **kwargs) as connection:
                return client(connection)

        with trio.fail_after(2 * STEP_S):
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True)

    async def records(self) -> list[dict[str, object]]:
        """What each sidecar has logged of a connection."""
        return [await side.log.wait_for(lambda line: "duration_ms" in line) for side in self.sidecars]


@asynccontextmanager
async def websockets(
    handler: Callable[[ServerConnection], None],
    hops: str,
    protocol: Protocol = Protocol.HTTP,
    **kwargs: object,
) -> AsyncIterator[WebSockets]:
    with serve(handler, "127.0.0.1", 0, max_size=None, **kwargs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            addr = Addr(*server.socket.getsockname()[:2])
            async with path(addr, hops, protocol=protocol) as (first, sidecars):
                yield WebSockets(first, sidecars)
                await settled(*sidecars)
        finally:
            server.shutdown()
            thread.join(STEP_S)


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@each_path
@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.AUTO])
@mesh_test
async def test_messages_of_every_size(protocol: Protocol, hops: str) -> None:
    messages = ["", "text, \u00e9\u4e2d", b"", b"\0" * 125, b"x" * 126, b"y" * 65_536, bytes(2 * 1024 * 1024)]

    def client(connection: ClientConnection) -> int:
        for message in messages:
            connection.send(message)
            assert connection.recv(STEP_S) == message
        return connection.response.status_code

    async with websockets(echo, hops, protocol) as m:
        assert await m.use(client, compression=None) == 101
        for record in await m.records():
            assert (record["status"], record.get("flag", "")) == (101, "")
            assert record["bytes_in"] > 2 * 1024 * 1024
            assert record["path"] == "/live?a=1"


@each_path
@mesh_test
async def test_pings_go_to_the_end_and_back(hops: str) -> None:
    def client(connection: ClientConnection) -> None:
        for data in (b"", b"payload", b"x" * 125):
            assert connection.ping(data).wait(STEP_S)

    async with websockets(echo, hops) as m:
        await m.use(client)


@each_path
@mesh_test
async def test_the_server_speaks_when_it_wants(hops: str) -> None:
    def handler(connection: ServerConnection) -> None:
        for i in range(200):
            connection.send(f"news {i}")
        assert connection.recv(STEP_S) == "thanks"

    def client(connection: ClientConnection) -> None:
        assert [connection.recv(STEP_S) for _ in range(200)] == [f"news {i}" for i in range(200)]
        connection.send("thanks")
        with pytest.raises(ConnectionClosedOK):
            connection.recv(STEP_S)

    async with websockets(handler, hops) as m:
        await m.use(client)


@each_path
@pytest.mark.parametrize("who", ["client", "server"])
@mesh_test
async def test_the_code_and_reason_of_a_close_arrive(who: str, hops: str) -> None:
    seen: list[tuple[int, str]] = []

    def wait_for_close(connection: ClientConnection | ServerConnection) -> None:
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(STEP_S)
        assert caught.value.rcvd is not None
        seen.append((caught.value.rcvd.code, caught.value.rcvd.reason))

    def close(connection: ClientConnection | ServerConnection) -> None:
        connection.close(4321, "because")

    async with websockets(wait_for_close if who == "client" else close, hops) as m:
        await m.use(close if who == "client" else wait_for_close)
        await wait_until(lambda: seen)
        assert seen == [(4321, "because")]


@each_path
@mesh_test
async def test_subprotocols_compression_and_headers_are_negotiated_end_to_end(hops: str) -> None:
    def handler(connection: ServerConnection) -> None:
        headers = connection.request.headers
        connection.send(f"{connection.subprotocol} {headers['Authorization']} {headers['Origin']}")
        connection.send(headers.get("x-forwarded-client-cert", ""))

    def client(connection: ClientConnection) -> tuple[object, ...]:
        assert "permessage-deflate" in connection.response.headers["Sec-WebSocket-Extensions"]
        return connection.subprotocol, connection.recv(STEP_S), connection.recv(STEP_S)

    async with websockets(handler, hops, subprotocols=["v2", "v1"]) as m:
        subprotocol, said, caller = await m.use(
            client,
            subprotocols=["v1"],
            origin="https://shop.example",
            additional_headers={"Authorization": "Bearer x", "x-forwarded-client-cert": "URI=spiffe://evil"},
        )
        assert subprotocol == "v1"
        assert said == "v1 Bearer x https://shop.example"
        proved = f"By={identity('server')};URI={identity('client')}"
        assert caller == {DIRECT: "URI=spiffe://evil", TWO: proved}.get(hops, "")


@each_path
@mesh_test
async def test_an_end_without_a_close_frame_reaches_the_other_side(hops: str) -> None:
    """The client ends its direction of TCP alone: the server learns it, and its last frames still arrive."""
    seen: list[object] = []

    def handler(connection: ServerConnection) -> None:
        assert connection.recv(STEP_S) == "last"
        with pytest.raises(ConnectionClosed) as caught:
            connection.recv(STEP_S)
        seen.append(caught.value.rcvd)

    def client(connection: ClientConnection) -> None:
        connection.send("last")
        connection.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionClosed):
            connection.recv(STEP_S)

    async with websockets(handler, hops) as m:
        await m.use(client)
        await wait_until(lambda: seen)
        assert seen == [None]


@each_path
@mesh_test
async def test_a_server_that_refuses(hops: str) -> None:
    def refuse(connection: ServerConnection, request: object) -> object:
        return connection.respond(403, "not you\n")

    async with websockets(echo, hops, process_request=refuse) as m:
        with pytest.raises(InvalidStatus) as caught:
            await m.use(lambda connection: None)
        assert caught.value.response.status_code == 403
        assert caught.value.response.body == b"not you\n"
        assert [record["status"] for record in await m.records()] == [403] * len(m.sidecars)


@each_path
@mesh_test
async def test_many_at_once(hops: str) -> None:
    def client(connection: ClientConnection) -> None:
        for i in range(20):
            connection.send(f"{i}" * 1000)
        for i in range(20):
            assert connection.recv(STEP_S) == f"{i}" * 1000

    async with websockets(echo, hops) as m, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(m.use, client)
