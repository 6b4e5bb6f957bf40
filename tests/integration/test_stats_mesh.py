"""Traffic through whole sidecars: what they report, and what the control plane answers about it."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest
import trio

from mesh_api.discovery import Page
from mesh_api.sidecar import Endpoint, Protocol, TlsMode
from mesh_api.stats import Direction, Edge, EdgeKind, EdgeTable, Tapped, Top, WindowPart
from mesh_api.traffic import Retries, RetryOn, Route, Subset, WeightedTarget
from mesh_control.serve import discovery_stream as control_stream
from mesh_control.serve.admin import Call, Refused
from mesh_control.serve.admin_replicas import Gathered
from mesh_control.serve.stats_pages import StatsPages
from mesh_control.serve.subscriptions import PodRef
from mesh_proxy.discovery import stream as sidecar_stream
from tests.integration.http_peers import Peer, answering, mesh, mesh_test, ok, settled
from tests.integration.test_discovery_mesh import pair as streamed_pair
from tests.support.mesh import Sidecar, identity, wait_until

SERVICE = "server.shop:80"


def report(side: Sidecar) -> tuple[Edge, ...]:
    return side.app.runtime.stats.edges.report(5.0).edges


def only(side: Sidecar) -> Edge:
    """The one edge that is reported."""
    (edge,) = report(side)
    return edge


@mesh_test
async def test_requests_are_reported_by_both_sides() -> None:
    async with mesh(answering(lambda request: ok(b"x" * 100, b"a: b"))) as m:
        client = await m.connect()
        for _ in range(3):
            assert (await client.get(b"/p")).status == 200
        m.close_clients()
        await settled(m.client, m.server)
        out = only(m.client)
        assert (out.direction, out.kind, out.service) == (Direction.OUTBOUND, EdgeKind.HTTP, SERVICE)
        assert (out.namespace, out.workload, out.identity) == ("shop", "server-v1", identity("server"))
        assert (out.requests, out.failures, out.attempts, out.attempt_failures) == (3, 0, 3, 0)
        assert sum(out.latencies.values()) == 3
        assert out.received > 300 > out.sent > 0
        into = only(m.server)
        assert (into.direction, into.service, into.workload) == (Direction.INBOUND, "", "")
        assert (into.namespace, into.identity) == ("shop", identity("client"))
        assert (into.requests, into.failures) == (3, 0)
        assert report(m.client) == report(m.server) == ()


@mesh_test
async def test_effective_and_actual_success_differ_by_the_retries() -> None:
    answers = [
        b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
        ok(),
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
    ]

    def endpoints(addr):
        # Two addresses of one workload, so that the retry has somewhere to go.
        return tuple(
            Endpoint(addr.ip, addr.port, TlsMode.MESH, identity("server"), "server-v1", {}, weight)
            for weight in (1, 2)
        )

    async with mesh(answering(lambda _: answers.pop(0))) as m:
        spec = m.client.app.store.snapshot.destinations[0]
        m.client.app.on_snapshot(
            msgspec.structs.replace(
                m.client.app.store.snapshot,
                destinations=(
                    msgspec.structs.replace(
                        spec,
                        endpoints=endpoints(m.server.inbound),
                        routes=(
                            Route(
                                name="all",
                                to=(WeightedTarget("v1"),),
                                retries=Retries(attempts=1, on=(RetryOn.GATEWAY_ERROR,)),
                            ),
                        ),
                        subsets={"v1": Subset({})},
                    ),
                ),
            )
        )
        client = await m.connect()
        assert (await client.get()).status == 200
        assert (await client.get()).status == 500
        m.close_clients()
        await settled(m.client, m.server)
        edge = only(m.client)
        assert (edge.route, edge.subset, edge.workload) == ("all", "v1", "server-v1")
        assert (edge.requests, edge.failures) == (2, 1)
        assert (edge.attempts, edge.attempt_failures, edge.retries) == (3, 2, 1)
        metric = m.client.metric
        ends = {"destination": SERVICE, "destination_workload": "server-v1"}
        assert metric("triomesh_attempts_total", result="failed", **ends) == 2
        assert metric("triomesh_attempts_total", result="ok", **ends) == 1
        assert metric("triomesh_requests_total", code="500", **ends) == 1
        assert metric("triomesh_request_bytes_total", way="sent", **ends) > 0


@mesh_test
async def test_an_opaque_connection_is_reported_while_it_is_open() -> None:
    async def echo(peer: Peer) -> None:
        while data := await peer.stream.receive_some():
            await peer.send(data.upper())

    async with mesh(echo, protocol=Protocol.TCP) as m:
        client = await m.connect()
        await client.send(b"hello")
        assert await client.exactly(5) == b"HELLO"
        out, into = only(m.client), only(m.server)
        for edge in (out, into):
            assert (edge.kind, edge.opened, edge.open, edge.closed) == (EdgeKind.TCP, 1, 1, 0)
            assert (edge.sent, edge.received) == (5, 5)
        assert (out.service, out.workload, out.identity) == (SERVICE, "server-v1", identity("server"))
        assert into.identity == identity("client")
        again = only(m.client)
        assert (again.opened, again.open, again.sent) == (0, 1, 0)
        m.close_clients()
        await settled(m.client, m.server)
        end = only(m.client)
        assert (end.open, end.closed, end.broken) == (0, 1, 0)


class NoReplicas:
    """A fleet of one."""

    async def gather(self, call, kind, within_s=0.0):
        await trio.lowlevel.checkpoint()
        return Gathered(1, 1, [])


@asynccontextmanager
async def told(monkeypatch):
    """A pair of sidecars that report often, and the pages about them."""
    monkeypatch.setattr(sidecar_stream, "REPORT_S", 0.05)
    monkeypatch.setattr(control_stream, "REPORT_S", 0.01)
    async with streamed_pair() as m:
        pods = [
            SimpleNamespace(
                key=PodRef("shop", name),
                namespace="shop",
                workload=f"{name}-app",
                ips=(ip,),
                injected=True,
            )
            for name, ip in (("client", "127.0.0.1"), ("server", "127.0.0.8"))
        ]
        await wait_until(lambda: len(m.plane.server.sidecars) == 2)
        yield m, StatsPages(m.plane.server, NoReplicas(), lambda: pods)


def call(local: bool = False, **query: str) -> Call:
    return Call("GET", "/stats", {}, query, local)


def test_the_control_plane_answers_about_what_sidecars_report(monkeypatch: pytest.MonkeyPatch) -> None:
    @mesh_test
    async def main() -> None:
        async with told(monkeypatch) as (m, pages):
            peer = await m.connect()
            for _ in range(5):
                assert (await peer.get()).status == 200
            found: list[EdgeTable] = []

            async def both_know() -> bool:
                found[:] = [msgspec.json.decode(await pages._stats(call()), type=EdgeTable)]
                return sum(row.edge.requests for row in found[0].rows) == 10

            with trio.fail_after(10):
                while not await both_know():
                    await trio.sleep(0.02)
            (table,) = found
            assert (table.window_s, table.replicas, table.answered) == (60.0, 1, 1)
            rows = {row.edge.direction: row for row in table.rows}
            out, into = rows[Direction.OUTBOUND], rows[Direction.INBOUND]
            assert (out.namespace, out.edge.service, out.edge.workload) == ("shop", SERVICE, "server-v1")
            assert into.edge.identity == identity("client")
            assert out.pods >= 1
            assert out.span_s > 0
            part = msgspec.json.decode(await pages._stats(call(local=True)), type=WindowPart)
            assert len(part.edges) == 2
            with pytest.raises(Refused, match="window: expected 10 to 600 seconds, got 'x'"):
                await pages._stats(call(window="x"))

    main()


def test_live_requests_name_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    @mesh_test
    async def main() -> None:
        async with told(monkeypatch) as (m, pages):
            peer = await m.connect()
            assert (await peer.get()).status == 200
            found: list[bytes] = []
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    found.append(await pages._top(call(workload="server-app", seconds="1")))

                nursery.start_soon(watch)
                taps = m.server.app.runtime.taps
                await wait_until(lambda: taps.active is not None)
                assert m.client.app.runtime.taps.active is None
                for _ in range(3):
                    assert (await peer.get(b"/books?id=7")).status == 200
            top = msgspec.json.decode(found[0], type=Top)
            assert (top.sidecars, top.failed, top.watched) == (1, 0, ("server-app.shop",))
            (line,) = top.requests
            assert (line.method, line.path, line.count, line.failures) == ("GET", "/books", 3, 0)
            assert line.source == "client-app.shop"
            assert 0 < line.best_ms <= line.worst_ms
            with pytest.raises(Refused, match="did you mean server-app"):
                await pages._top(call(workload="servr-app", seconds="1"))

    main()


def test_a_sidecar_is_watched_from_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    @mesh_test
    async def main() -> None:
        async with told(monkeypatch) as (m, _):
            peer = await m.connect()
            found: list[Tapped] = []
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    body = await m.plane.server.ask(PodRef("shop", "client"), Page.TAP, {"seconds": "0.5"})
                    found.append(msgspec.json.decode(body, type=Tapped))

                nursery.start_soon(watch)
                await wait_until(lambda: m.client.app.runtime.taps.active is not None)
                assert (await peer.get(b"/x")).status == 200
            (line,) = found[0].requests
            assert (line.direction, line.destination) == (Direction.OUTBOUND, "server-v1.shop")

    main()
