"""Requests that wait for an HTTP/2 session's stream: nobody is forgotten, nobody pays for another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes

from mesh_api.traffic import Breaker, Settings, Timeouts
from mesh_proxy.base.errors import PartnerGone, TransportError
from mesh_proxy.http2.client import STALLED_S, ClientSession
from mesh_proxy.http2.stream import ClientStream
from mesh_proxy.net.roles import Interruptible
from mesh_proxy.pool.cluster import Cluster
from tests.integration.http2_mesh import Chain, chain
from tests.integration.http2_peers import OK, Http2Application, Http2Peer, Http2Stream, http2_application
from tests.integration.http_peers import mesh_test
from tests.integration.test_h2_tunnels import TAKES, connect
from tests.support.http2 import fields
from tests.support.mesh import Sidecar, wait_until

pytestmark = pytest.mark.usefixtures("http2_engine")
LONG_S = 3600.0


class Client:
    """For whom is waited."""

    partner: Interruptible | None = None
    doom: TransportError | None = None


class Full:
    """One sidecar that may have one connection, to an application that takes one stream at a time."""

    def __init__(self, c: Chain, app: Http2Application) -> None:
        self.chain = c
        self.app = app
        self.go = trio.Event()

    async def handle(self, stream: Http2Stream) -> None:
        await stream.whole()
        await self.go.wait()
        await stream.respond(OK)

    @property
    def cluster(self) -> Cluster:
        (service,) = self.chain.sidecars[0].app.runtime.services.all()
        return service.clusters[""]

    async def open(self, client: Client) -> ClientStream:
        """A stream as a request gets it that found no room."""
        cluster = self.cluster
        return await cluster.open(cluster.endpoints[0], fields(), True, LONG_S, client)


@asynccontextmanager
async def full() -> AsyncIterator[Full]:
    settings = Settings(breaker=Breaker(max_connections=1), timeouts=Timeouts(connect_s=LONG_S))
    boxed: list[Full] = []

    async def handle(stream: Http2Stream) -> None:
        await boxed[0].handle(stream)

    async with (
        http2_application(handle, {SettingCodes.MAX_CONCURRENT_STREAMS: 1}) as app,
        chain(app.addr, "one-sidecar", settings=settings) as c,
    ):
        f = Full(c, app)
        boxed.append(f)
        await (await c.http2()).start(b"/first")
        await wait_until(lambda: app.requests)
        yield f
        f.go.set()


@mesh_test
async def test_a_dial_that_is_called_off_fails_nobody_who_came_meanwhile() -> None:
    got: list[ClientStream] = []
    async with full() as f, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def leave_and_come() -> None:
            with scope:
                await f.open(Client())
            got.append(await f.open(Client()))  # in the same turn of the loop

        nursery.start_soon(leave_and_come)
        await wait_until(lambda: f.cluster.connections.waiting)
        scope.cancel()
        await wait_until(lambda: scope.cancelled_caught)
        f.go.set()
        await wait_until(lambda: got)
        assert (await got[0].response())[0] == 200
        got[0].close()
        await wait_until(lambda: not f.cluster.connections.waiting)
        assert f.cluster.breaker.pending == 0
        assert len(f.app.peers) == 1


@mesh_test
async def test_nobody_waits_for_a_client_that_is_gone_already() -> None:
    """A request and its reset in one segment: a place in the queue for nothing, as often as one likes."""
    async with full() as f:
        peer = await f.chain.http2()
        for _ in range(5):
            stream_id = peer.conn.get_next_available_stream_id()
            head = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]
            peer.conn.send_headers(stream_id, head, end_stream=True)
            peer.conn.reset_stream(stream_id, 8)
        await peer.flush()
        await f.chain.sidecars[0].log.wait_for(lambda line: line.get("flag") == "DC")
        await wait_until(lambda: f.cluster.breaker.pending == 0)
        assert f.cluster.breaker.requests == 1
        gone = Client()
        gone.doom = PartnerGone("reset")
        with pytest.raises(PartnerGone), trio.fail_after(5):
            await f.open(gone)


@mesh_test
async def test_who_waits_for_a_stream_is_served_in_order() -> None:
    order: list[int] = []
    async with full() as f, trio.open_nursery() as nursery:

        async def one(index: int) -> None:
            stream = await f.open(Client())
            order.append(index)
            await stream.response()
            stream.close()

        for index in range(8):
            nursery.start_soon(one, index)
            await wait_until(lambda i=index: f.cluster.breaker.pending == i + 1)
        f.go.set()
        await wait_until(lambda: len(order) == 8)
    assert order == [*range(8)]


async def read_nothing_stalled(stream: Http2Stream) -> None:
    if stream.get(b":path") == b"/stalled":
        stream.hold = True
        await trio.sleep_forever()
    await stream.whole()
    await stream.respond(OK, b"%d" % len(stream.body))


async def stalled(peer: Http2Peer) -> None:
    with pytest.raises((EOFError, AssertionError)):
        await peer.ask(b"/stalled", b"POST", body=bytes(2_000_000))


@mesh_test
async def test_uploads_that_stall_do_not_stop_other_callers() -> None:
    """What an application does not read fills the session between the sidecars, for every caller of it."""
    async with http2_application(read_nothing_stalled) as app, chain(app.addr) as c:
        slow, other = await c.http2(), await c.http2()
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(stalled, slow)
            session = await stalled_session(c, 30)
            stream = await other.ask(b"/", b"POST", body=bytes(300_000))
            assert stream.body == b"300000"
            assert not session.going
            nursery.cancel_scope.cancel()
        slow.close()


@mesh_test
async def test_a_session_full_of_stalled_uploads_is_better_than_none() -> None:
    """An endpoint to which no other connection can be made is still asked."""
    async with http2_application(read_nothing_stalled) as app, chain(app.addr, "one-sidecar") as c:
        slow, other = await c.http2(), await c.http2()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(stalled, slow)
            await stalled_session(c, 6)
            app.refuse()
            assert (await other.ask()).status == 200
            nursery.cancel_scope.cancel()
        slow.close()


async def stalled_session(c: Chain, uploads: int) -> ClientSession:
    """The first sidecar's, once so many have waited on it for long."""
    clients = c.sidecars[0].app.runtime.http2.clients
    await wait_until(lambda: clients)
    (session,) = clients

    def waits() -> bool:
        since = [stream.stall_at for stream in session.blocked]
        return len(since) == uploads and max(since) < trio.current_time() - STALLED_S

    await wait_until(waits, 10)
    return session


@mesh_test
async def test_no_stream_at_all_for_a_while() -> None:
    """MAX_CONCURRENT_STREAMS of 0, and back (RFC 9113, 6.5.2)."""
    codes = SettingCodes.MAX_CONCURRENT_STREAMS
    async with full() as f, trio.open_nursery() as nursery:
        (peer,) = f.app.peers
        peer.conn.update_settings({codes: 0})
        await peer.flush()
        (session,) = f.cluster.endpoints[0].sessions.up
        await wait_until(lambda: session.engine.peer_max_streams == 0)
        f.go.set()
        got: list[ClientStream] = []

        async def one() -> None:
            got.append(await f.open(Client()))

        for _ in range(3):
            nursery.start_soon(one)
        await wait_until(lambda: f.cluster.breaker.pending == 3 and not session.streams)
        peer.conn.update_settings({codes: 1})
        await peer.flush()
        await wait_until(lambda: len(got) == 3)
        for stream in got:
            stream.close()
        assert len(f.app.peers) == 1


async def silent(stream: Http2Stream) -> None:
    await trio.sleep_forever()


async def half(stream: Http2Stream) -> None:
    await stream.respond(OK, b"half", end=False)
    await trio.sleep_forever()


async def deaf(stream: Http2Stream) -> None:
    stream.hold = True
    await half(stream)


async def send_without_end(peer: Http2Peer) -> None:
    with pytest.raises(EOFError):
        await (await peer.start(method=b"POST", end=False)).send(bytes(20_000_000))


STOPS = {
    "for a response": (silent, lambda peer: peer.start()),
    "for the rest of the response": (half, lambda peer: peer.start()),
    "for the rest of the request": (silent, lambda peer: peer.start(method=b"POST", body=b"x", end=False)),
    "for an application that reads nothing": (deaf, send_without_end),
    "in a tunnel": (half, connect),
}


@pytest.mark.parametrize("wait", STOPS)
@mesh_test
async def test_sidecars_that_stop_give_everything_back(wait: str) -> None:
    handler, start = STOPS[wait]
    async with http2_application(handler, TAKES) as app, chain(app.addr) as c:
        peer = await c.http2()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, peer)
            await wait_until(lambda: app.requests)
            await trio.testing.wait_all_tasks_blocked(0.02)
            clusters = [each for side in c.sidecars for each in clusters_of(side)]
            assert [each.breaker.requests for each in clusters] == [1, 1]
            for side in c.sidecars:
                side.app.stop.set()  # a drain lasts 0.2 s
            await wait_until(lambda: not any(side.app.runtime.connections for side in c.sidecars))
        for each in clusters:
            breaker = each.breaker
            await wait_until(lambda b=breaker: (b.requests, b.pending, b.connections) == (0, 0, 0))
            assert [endpoint.inflight for endpoint in each.endpoints] == [0]
        for side in c.sidecars:
            runtime = side.app.runtime
            assert not runtime.reactor.conns
            assert runtime.http2.budget.used == 0
            assert not runtime.http2.clients
            assert not runtime.http2.servers


def clusters_of(side: Sidecar) -> list[Cluster]:
    return [each for service in side.app.runtime.services.all() for each in service.clusters.values()]
