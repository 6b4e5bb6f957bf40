"""Circuit breaker and time-outs, seen from clients and applications."""

from __future__ import annotations

import random

import pytest
import trio

from mesh_api.sidecar import Endpoint, TlsMode
from mesh_api.traffic import (
    Backoff,
    Breaker,
    Outliers,
    Retries,
    RetryOn,
    Route,
    Settings,
    Timeouts,
    WeightedTarget,
)
from tests.integration.http_peers import Message, Peer, application
from tests.integration.policy_mesh import (
    GET,
    POST,
    PolicyMesh,
    error,
    flag_of,
    mesh_test,
    ok,
    policy_mesh,
)
from tests.support.mesh import identity, wait_until


class Gate:
    """An application that answers when it may."""

    def __init__(self) -> None:
        self.waiting = 0
        self.go = trio.Event()

    async def handle(self, peer: Peer) -> None:
        while True:
            await peer.request()
            self.waiting += 1
            await self.go.wait()
            await peer.send(ok())

    def open(self) -> None:
        self.go.set()


async def asking(m: PolicyMesh, raw: bytes = GET) -> Peer:
    peer = await m.connect()
    await peer.send(raw)
    return peer


def limits(**breaker: int) -> Settings:
    return Settings(breaker=Breaker(**breaker))


@mesh_test
async def test_max_requests() -> None:
    gate = Gate()
    async with policy_mesh({"v1": gate.handle}, settings=limits(max_requests=2)) as m:
        peers = [await asking(m) for _ in range(2)]
        await wait_until(lambda: gate.waiting == 2)
        late = await asking(m)
        response = await late.response()
        assert (response.status, flag_of(response)) == (503, "UO")
        assert b"maxRequests (2)" in error(response)
        assert b'rule="shop/server"' in error(response)
        gate.open()
        assert [(await peer.response()).status for peer in peers] == [200, 200]
        await late.send(GET)
        assert (await late.response()).status == 200, "its connection goes on"
        (endpoint,) = m.cluster().endpoints
        assert (endpoint.failures, endpoint.strikes) == (0, None), "the endpoint is not to blame"
        assert m.client.metric("triomesh_breaker_overflows_total") == 1


@mesh_test
async def test_requests_wait_for_one_of_few_connections() -> None:
    gate = Gate()
    async with policy_mesh({"v1": gate.handle}, settings=limits(max_connections=1)) as m:
        peers = [await asking(m) for _ in range(5)]
        await wait_until(lambda: m.cluster().breaker.pending == 4)
        await wait_until(lambda: gate.waiting == 1)
        gate.open()
        assert [(await peer.response()).status for peer in peers] == [200] * 5
        assert len(m.servers["v1"].app.runtime.reactor.conns) <= 2, (
            "one from the client, one to the application"
        )


@mesh_test
async def test_who_waits_for_a_connection_is_served_in_order() -> None:
    seen: list[bytes] = []
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        while True:
            seen.append((await peer.request()).path)
            await go.wait()
            await peer.send(ok())

    async with policy_mesh({"v1": handle}, settings=limits(max_connections=1)) as m:
        peers = [await asking(m, b"GET /0 HTTP/1.1\r\nHost: s\r\n\r\n")]
        await wait_until(lambda: seen)
        for n in range(1, 6):
            peers.append(await asking(m, b"GET /%d HTTP/1.1\r\nHost: s\r\n\r\n" % n))
            await wait_until(lambda n=n: m.cluster().breaker.pending == n)
        go.set()
        assert [(await peer.response()).status for peer in peers] == [200] * 6
        assert seen == [b"/%d" % n for n in range(6)]


@mesh_test
async def test_a_connection_that_is_not_reused_gives_its_place_to_the_next() -> None:
    closing = ok(b"ok", b"Connection: close")
    async with policy_mesh({"v1": closing}, settings=limits(max_connections=1)) as m:
        peers = [await asking(m) for _ in range(5)]
        assert [(await peer.response()).status for peer in peers] == [200] * 5


@mesh_test
async def test_an_idle_connection_of_another_endpoint_makes_room() -> None:
    async with policy_mesh({"v1": ok(b"1"), "v2": ok(b"2")}, settings=limits(max_connections=1)) as m:
        got = await m.bodies(20)
        assert got.total() == 20
        assert set(got) == {b"1", b"2"}


@mesh_test
async def test_max_pending() -> None:
    gate = Gate()
    async with policy_mesh({"v1": gate.handle}, settings=limits(max_connections=1, max_pending=1)) as m:
        one = await asking(m)
        await wait_until(lambda: gate.waiting == 1)
        two = await asking(m)
        await wait_until(lambda: m.cluster().breaker.pending == 1)
        response = await m.ask()
        assert (response.status, flag_of(response)) == (503, "UO")
        assert b"maxPendingRequests (1)" in error(response)
        gate.open()
        assert [(await peer.response()).status for peer in (one, two)] == [200, 200]


@mesh_test
async def test_waiting_for_a_connection_ends_with_the_connect_timeout() -> None:
    gate = Gate()
    settings = Settings(breaker=Breaker(max_connections=1), timeouts=Timeouts(connect_s=0.5))
    async with policy_mesh({"v1": gate.handle}, settings=settings) as m:
        one = await asking(m)
        await wait_until(lambda: gate.waiting == 1)
        response = await m.ask()
        assert (response.status, flag_of(response)) == (503, "UO")
        assert b"maxConnections (1) is reached, and none became free within 0.5 s" in error(response)
        gate.open()
        assert (await one.response()).status == 200


@mesh_test
async def test_a_limit_that_is_lifted_lets_those_who_wait_go_on() -> None:
    gate = Gate()
    settings = Settings(breaker=Breaker(max_connections=1), timeouts=Timeouts(connect_s=20))
    async with policy_mesh({"v1": gate.handle}, settings=settings) as m:
        peers = [await asking(m) for _ in range(3)]
        await wait_until(lambda: m.cluster().breaker.pending == 2)
        m.change(settings=Settings(timeouts=Timeouts(connect_s=20)))
        await wait_until(lambda: gate.waiting == 3)
        gate.open()
        assert [(await peer.response()).status for peer in peers] == [200] * 3


@pytest.mark.parametrize(
    "answer", [ok(b"a"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"]
)
@mesh_test
async def test_max_requests_per_connection(answer: bytes) -> None:
    """The sidecar closes a connection cleanly after so many; clients see nothing of it."""
    async with policy_mesh({"v1": answer}, settings=limits(max_requests_per_connection=3)) as m:
        peer = await m.connect()
        for _ in range(9):
            await peer.send(GET)
            response = await peer.response()
            assert (response.status, response.get(b"connection")) == (200, None)
        assert m.client.metric("triomesh_upstream_connections_opened_total") == 3
        assert m.servers["v1"].metric("triomesh_requests_total", code="200", flag="") == 9


# -- time-outs --------------------------------------------------------------------------------------------


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.rest()


@pytest.mark.parametrize(
    ("route_s", "destination_s", "status"), [(0.1, None, 504), (None, 0.1, 504), (0.1, 3600, 504)]
)
@mesh_test
async def test_request_timeout(route_s: float | None, destination_s: float | None, status: int) -> None:
    route = Route(to=(WeightedTarget(),), timeout_s=route_s)
    settings = Settings(timeouts=Timeouts(request_s=destination_s))
    async with policy_mesh({"v1": silent}, settings=settings, routes=(route,)) as m:
        response = await m.ask()
        assert (response.status, flag_of(response)) == (status, "UT")


@mesh_test
async def test_stream_idle_of_the_endpoint() -> None:
    settings = Settings(timeouts=Timeouts(stream_idle_s=0.1))
    async with policy_mesh({"v1": silent}, settings=settings, retries=Retries(attempts=0)) as m:
        response = await m.ask()
        assert (response.status, flag_of(response)) == (504, "UT")
        assert b"no response for 0.1 s (stream idle timeout)" in error(response)


@mesh_test
async def test_stream_idle_of_the_client() -> None:
    settings = Settings(timeouts=Timeouts(stream_idle_s=0.1))
    async with policy_mesh({"v1": ok()}, settings=settings) as m:
        response = await m.ask(POST[:-1])
        assert (response.status, flag_of(response)) == (408, "SI")
        assert response.get(b"connection") == b"close"
        (endpoint,) = m.cluster().endpoints
        assert endpoint.failures == 0


@mesh_test
async def test_stream_idle_within_a_response() -> None:
    async def half(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await peer.rest()

    settings = Settings(timeouts=Timeouts(stream_idle_s=0.2))
    async with policy_mesh({"v1": half}, settings=settings) as m:
        peer = await asking(m)
        await peer.head()
        assert await peer.exactly(2) == b"ab"
        assert await peer.end() == "reset"
        assert (await m.record(flag="UT"))["status"] == 200


@mesh_test
async def test_a_slow_stream_is_not_idle() -> None:
    async def drops(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n")
        for _ in range(12):
            await trio.sleep(0.1)
            await peer.send(b"a")

    settings = Settings(timeouts=Timeouts(stream_idle_s=0.8))
    async with policy_mesh({"v1": drops}, settings=settings) as m:
        assert (await m.ask()).body == b"a" * 12


@mesh_test
async def test_pool_idle() -> None:
    settings = Settings(timeouts=Timeouts(pool_idle_s=0.1))
    async with policy_mesh({"v1": ok()}, settings=settings) as m:
        assert (await m.ask()).status == 200
        await wait_until(lambda: m.cluster().breaker.connections == 0)
        assert m.client.metric("triomesh_requests_total", flag="") == 1


@mesh_test
async def test_connect_timeout() -> None:
    """Of a subset, which has settings of its own; it covers TCP and TLS together."""
    async with application(lambda peer: peer.rest()) as deaf:
        end = Endpoint(
            address=deaf.addr.ip, port=deaf.addr.port, tls=TlsMode.MESH, identity=identity("server")
        )
        settings = Settings(timeouts=Timeouts(connect_s=0.1))
        async with policy_mesh({"v1": ok()}, endpoints=(end,), settings=settings) as m:
            response = await m.ask()
            assert (response.status, flag_of(response)) == (503, "UF")
            assert b"no connection within 0.1 s" in error(response)


# -- whatever happens, everything is given back -----------------------------------------------------------


async def moody(peer: Peer) -> None:
    """Answers, errs, resets, hangs up, is silent or answers in part, as the request asks."""
    while True:
        request = await peer.request()
        mood = request.path.partition(b"?")[0]
        if mood == b"/reset":
            peer.reset()
            return
        if mood == b"/end":
            await peer.send_with_fin(b"")
            return
        if mood == b"/silent":
            await peer.rest()
            return
        if mood == b"/half":
            await peer.send_with_fin(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
            return
        if mood == b"/nonsense":
            await peer.send(b"nonsense\r\n\r\n")
            return
        await peer.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n" if mood == b"/503" else ok())


@pytest.mark.parametrize("seed", range(3))
@mesh_test
async def test_counters_return_to_zero_after_any_mix_of_outcomes(seed: int) -> None:
    rng = random.Random(seed)
    settings = Settings(
        breaker=Breaker(max_connections=3, max_pending=6, max_requests=10, max_requests_per_connection=4),
        timeouts=Timeouts(connect_s=0.2, request_s=0.3, stream_idle_s=0.2),
        outliers=Outliers(consecutive_5xx=3, base_ejection_s=0.05),
    )
    policy = Retries(
        attempts=2,
        on=(RetryOn.GATEWAY_ERROR, RetryOn.CONNECT_FAILURE),
        per_try_s=0.1,
        backoff=Backoff(base_s=0.01, max_s=0.05),
    )
    moods = [b"/", b"/", b"/503", b"/reset", b"/end", b"/silent", b"/half", b"/nonsense"]

    async def client(m: PolicyMesh) -> None:
        for _ in range(6):
            peer = await m.connect()
            body = rng.choice((b"", b"Content-Length: 2\r\n\r\nab", b"Content-Length: 2\r\n\r\na"))
            mood = rng.choice(moods)
            await peer.send(b"GET %s HTTP/1.1\r\nHost: s\r\n%s" % (mood, body or b"\r\n"))
            if rng.random() < 0.3:
                await trio.sleep(rng.random() * 0.1)
                peer.reset()
                continue
            try:
                response: Message = await peer.response()
                assert response.status in {200, 408, 502, 503, 504}
            except (EOFError, trio.BrokenResourceError):
                pass
            peer.close()

    async with policy_mesh({"v1": moody, "v2": moody}, settings=settings, retries=policy) as m:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(client, m)
        # What is left is idle; `policy_mesh` closes it and looks at every counter.
        await wait_until(lambda: m.cluster().breaker.requests == m.cluster().breaker.pending == 0)
