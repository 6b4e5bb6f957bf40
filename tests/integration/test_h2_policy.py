"""Policies on HTTP/2 requests: the same as on HTTP/1.1, and what streams and gRPC add."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from mesh_api.traffic import (
    Abort,
    Algorithm,
    Breaker,
    Delay,
    Fault,
    HeaderEdits,
    Outliers,
    Respond,
    Retries,
    RetryOn,
    Route,
    Settings,
    Subset,
    Timeouts,
    WeightedTarget,
)
from mesh_proxy.pool.cluster import Cluster
from tests.integration.http2_mesh import Chain, chain
from tests.integration.http2_peers import (
    OK,
    Handler,
    Http2Application,
    Http2Peer,
    Http2Stream,
    echo,
    http2_application,
    http2_client,
)
from tests.integration.http_peers import closed_port, mesh_test, plain
from tests.integration.policy_mesh import PolicyMesh, policy_mesh
from tests.support.mesh import wait_until

pytestmark = pytest.mark.usefixtures("http2_engine")
NO_OUTLIERS = Outliers(consecutive_5xx=0, consecutive_local=0)
TURNS = Settings(algorithm=Algorithm.ROUND_ROBIN, outliers=NO_OUTLIERS)


def saying(text: bytes, status: int = 200) -> Handler:
    """Answers every request so."""

    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        await stream.respond([(b":status", b"%d" % status)], text)

    return handle


def resetting(code: int, times: int = 1 << 30) -> tuple[list[Http2Stream], Handler]:
    """Resets so many streams with this code, answers the others; the streams it was given."""
    seen: list[Http2Stream] = []

    async def handle(stream: Http2Stream) -> None:
        seen.append(stream)
        if len(seen) <= times:
            await stream.cancel(code)
        else:
            await echo(stream)

    return seen, handle


@asynccontextmanager
async def client_of(m: PolicyMesh) -> AsyncIterator[Http2Peer]:
    async with http2_client(m.client.outbound) as peer:
        yield peer


@asynccontextmanager
async def two_applications(first: Handler, second: Handler) -> AsyncIterator[Chain]:
    """One sidecar before both, which takes turns."""
    async with http2_application(first) as one, http2_application(second) as two:
        endpoints = (plain(one.addr), plain(two.addr))
        async with chain(one.addr, "one-sidecar", settings=TURNS, endpoints=endpoints) as c:
            yield c


def said(stream: Http2Stream) -> bytes:
    return stream.get(b"x-triomesh-error") or b""


# -- routes and balancing -----------------------------------------------------------------------------------


@mesh_test
async def test_each_request_is_balanced() -> None:
    names = {name: saying(name.encode()) for name in ("v1", "v2", "v3")}
    async with policy_mesh({}, http2=names, settings=TURNS) as m, client_of(m) as peer:
        got = Counter([bytes((await peer.ask()).body) for _ in range(30)])
        assert got == {b"v1": 10, b"v2": 10, b"v3": 10}


@mesh_test
async def test_split_edits_and_rewrites() -> None:
    async def show(stream: Http2Stream) -> None:
        await stream.whole()
        fields = {name.decode(): value.decode() for name, value in stream.fields}
        await stream.respond([*OK, (b"x-secret", b"1")], json.dumps(fields).encode())

    subsets = {name: Subset(labels={"version": name}) for name in ("v1", "v2")}
    targets = (WeightedTarget(subset="v1", weight=0), WeightedTarget(subset="v2", weight=1))
    routes = (
        Route(
            to=targets,
            request_headers=HeaderEdits(set={"x-set": "yes"}, remove=("x-gone",)),
            response_headers=HeaderEdits(remove=("x-secret",), add={"x-new": "2"}),
        ),
    )
    both = {"v1": saying(b"no"), "v2": show}
    async with policy_mesh({}, http2=both, subsets=subsets, routes=routes) as m, client_of(m) as peer:
        response = await peer.ask(b"/p", fields=[(b"x-gone", b"1"), (b"x-set", b"no")])
        seen = json.loads(bytes(response.body))
        assert (seen["x-set"], seen.get("x-gone"), seen[":path"]) == ("yes", None, "/p")
        assert (response.get(b"x-secret"), response.get(b"x-new")) == (None, b"2")


@mesh_test
async def test_answers_of_routes_and_faults() -> None:
    abort = Fault(abort=Abort(percent=100, status=418))
    for route, status in (
        (Route(respond=Respond(status=299, body="hi")), 299),
        (Route(to=(WeightedTarget(),), fault=abort), 418),
        (Route(to=(WeightedTarget(),), fault=Fault(delay=Delay(percent=100, fixed_s=0.01))), 200),
    ):
        async with policy_mesh({}, http2={"v1": echo}, routes=(route,)) as m, client_of(m) as peer:
            assert (await peer.ask()).status == status
            head = await peer.ask(b"/", method=b"HEAD")
            assert (head.status, bytes(head.body)) == (status, b"")


# -- retries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@mesh_test
async def test_a_refused_stream_is_tried_elsewhere(method: bytes) -> None:
    seen, handle = resetting(ErrorCodes.REFUSED_STREAM)
    two = {"v1": handle, "v2": saying(b"good")}
    async with policy_mesh({}, http2=two, settings=TURNS) as m, client_of(m) as peer:
        response = await peer.ask(b"/", method=method, body=b"x" * 1000 if method == b"POST" else b"")
        assert bytes(response.body) == b"good"
        assert len(seen) == 2  # its own sidecar has tried it once more
        assert (await m.record(attempts=2))["protocol"] == "HTTP/2"


@mesh_test
async def test_a_refused_stream_is_tried_at_the_only_endpoint() -> None:
    seen, handle = resetting(ErrorCodes.REFUSED_STREAM, times=1)
    async with http2_application(handle) as app, chain(app.addr, "one-sidecar") as c:
        response = await (await c.http2()).ask(b"/again", method=b"POST", body=b"data")
        assert bytes(response.body) == b"data"
        assert len(seen) == 2


@pytest.mark.parametrize(("method", "tried"), [(b"GET", True), (b"POST", False)])
@mesh_test
async def test_a_reset_before_the_response(method: bytes, tried: bool) -> None:
    seen, handle = resetting(ErrorCodes.INTERNAL_ERROR)
    async with two_applications(handle, saying(b"good")) as c:
        response = await (await c.http2()).ask(b"/", method=method)
        assert len(seen) == 1
        assert (bytes(response.body) == b"good") is tried
        assert tried or (response.status == 503 and said(response).startswith(b"flag=UC"))


@mesh_test
async def test_responses_are_retried_with_their_body_replayed() -> None:
    bodies: list[bytes] = []

    async def bad(stream: Http2Stream) -> None:
        await stream.whole()
        bodies.append(bytes(stream.body))
        await stream.respond([(b":status", b"503")], b"bad")

    retries = Retries(on=(RetryOn.GATEWAY_ERROR,), methods=("POST",))
    two = {"v1": bad, "v2": echo}
    async with policy_mesh({}, http2=two, settings=TURNS, retries=retries) as m, client_of(m) as peer:
        response = await peer.ask(b"/", method=b"POST", body=b"y" * 40_000)
        assert bytes(response.body) == b"y" * 40_000
        assert bodies == [b"y" * 40_000]
        streamed = await peer.start(b"/", b"POST", end=False)
        for _ in range(3):
            await streamed.send(b"piece")
        await streamed.send(b"last", True)
        assert bytes((await streamed.whole()).body) in (b"piece" * 3 + b"last", b"bad")


@mesh_test
async def test_a_connection_that_fails_is_tried_elsewhere() -> None:
    async with http2_application(saying(b"good")) as app:
        endpoints = (plain(closed_port()), plain(app.addr))
        async with chain(app.addr, "one-sidecar", settings=TURNS, endpoints=endpoints) as c:
            peer = await c.http2()
            for _ in range(4):
                assert bytes((await peer.ask()).body) == b"good"


# -- limits -------------------------------------------------------------------------------------------------


def limits(**breaker: int) -> Settings:
    return Settings(breaker=Breaker(**breaker), outliers=NO_OUTLIERS, timeouts=Timeouts(connect_s=0.3))


class Gate:
    """An application that answers when it may."""

    def __init__(self) -> None:
        self.waiting = 0
        self.go = trio.Event()

    async def handle(self, stream: Http2Stream) -> None:
        await stream.whole()
        self.waiting += 1
        await self.go.wait()
        await stream.respond(OK, b"go")


@asynccontextmanager
async def one_session(gate: Gate, few: int) -> AsyncIterator[tuple[Chain, Http2Application]]:
    """An application that takes few streams at once, and one sidecar that may have one connection."""
    settings = {SettingCodes.MAX_CONCURRENT_STREAMS: few}
    one = limits(max_connections=1)
    async with (
        http2_application(gate.handle, settings) as app,
        chain(app.addr, "one-sidecar", settings=one) as c,
    ):
        yield c, app


def the_cluster(c: Chain) -> Cluster:
    (service,) = c.sidecars[0].app.runtime.services.all()
    return service.clusters[""]


@mesh_test
async def test_max_requests_counts_streams() -> None:
    gate = Gate()
    settings = limits(max_requests=3)
    async with policy_mesh({}, http2={"v1": gate.handle}, settings=settings) as m, client_of(m) as peer:
        held = [await peer.start() for _ in range(3)]
        await wait_until(lambda: gate.waiting == 3)
        refused = await peer.ask()
        assert refused.status == 503
        assert b"maxRequests (3)" in said(refused)
        gate.go.set()
        for stream in held:
            assert bytes((await stream.whole()).body) == b"go"


@mesh_test
async def test_concurrent_first_requests_share_one_dial() -> None:
    gate = Gate()
    async with policy_mesh({}, http2={"v1": gate.handle}) as m, client_of(m) as peer:
        streams = [await peer.start() for _ in range(50)]
        await wait_until(lambda: gate.waiting == 50)
        assert m.cluster().breaker.connections == 1
        assert len(m.apps2["v1"].peers) == 1
        gate.go.set()
        for stream in streams:
            await stream.whole()


@mesh_test
async def test_another_session_when_one_is_full() -> None:
    gate = Gate()
    few = {SettingCodes.MAX_CONCURRENT_STREAMS: 4}
    async with http2_application(gate.handle, few) as app, chain(app.addr, "one-sidecar") as c:
        peer = await c.http2()
        first = await peer.start()
        await wait_until(lambda: gate.waiting == 1)
        more = [await peer.start() for _ in range(7)]
        await wait_until(lambda: gate.waiting == 8)
        assert len(app.peers) == 2
        gate.go.set()
        for stream in (first, *more):
            await stream.whole()


@mesh_test
async def test_max_connections_counts_sessions_and_requests_wait_for_streams() -> None:
    gate = Gate()
    async with one_session(gate, few=2) as (c, app):
        peer = await c.http2()
        first = await peer.start()
        await wait_until(lambda: gate.waiting == 1)
        second = await peer.start()
        await wait_until(lambda: gate.waiting == 2)
        refused = await peer.ask()
        assert refused.status == 503
        assert said(refused).startswith(b"flag=UO")
        third = await peer.start()
        await wait_until(lambda: the_cluster(c).breaker.pending == 1)
        gate.go.set()
        for stream in (first, second, third):
            assert bytes((await stream.whole()).body) == b"go"
        assert len(app.peers) == 1


@mesh_test
async def test_max_requests_per_connection() -> None:
    settings = limits(max_requests_per_connection=2)
    async with http2_application(echo) as app, chain(app.addr, "one-sidecar", settings=settings) as c:
        peer = await c.http2()
        for n in range(6):
            assert (await peer.ask(b"/%d" % n)).status == 200
        assert [len(one.streams) for one in app.peers] == [2, 2, 2]


@mesh_test
async def test_a_client_that_leaves_while_it_waits_for_a_session() -> None:
    gate = Gate()
    async with one_session(gate, few=1) as (c, _):
        peer = await c.http2()
        first = await peer.start(b"/first")
        await wait_until(lambda: gate.waiting == 1)
        waiting = await peer.start(b"/waits")
        await wait_until(lambda: the_cluster(c).breaker.pending == 1)
        await waiting.cancel()
        await wait_until(lambda: the_cluster(c).breaker.pending == 0)
        gate.go.set()
        await first.whole()
