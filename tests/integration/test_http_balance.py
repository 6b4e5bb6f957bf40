"""Weights, balancing and changes of the configuration, seen from the applications."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace as replace_data

import msgspec
import pytest
import trio

from certs.bundle import TrustBundle
from mesh_api.sidecar import Endpoint, Snapshot
from mesh_api.traffic import Algorithm, Retries, Route, Settings, Subset, Timeouts, WeightedTarget
from tests.integration.http_peers import (
    Fleet,
    Peer,
    answering,
    application,
    fleet,
    mesh,
    mesh_test,
    ok,
    plain,
)
from tests.support.mesh import TestCa, server_snapshot, wait_until


def changed(snapshot: Snapshot, **changes: object) -> Snapshot:
    """The snapshot with its one destination changed."""
    (dest,) = snapshot.destinations
    return msgspec.structs.replace(snapshot, destinations=(msgspec.structs.replace(dest, **changes),))


async def bodies(m: Fleet, n: int, clients: int = 4) -> Counter[bytes]:
    got: Counter[bytes] = Counter()

    async def one() -> None:
        client = await m.connect()
        for _ in range(n // clients):
            got[(await client.get()).body] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(one)
    return got


@mesh_test
async def test_weights_between_subsets() -> None:
    async with (
        application(answering(ok(b"v1"))) as v1,
        application(answering(ok(b"v2"))) as v2,
        fleet(
            plain(v1.addr, version="v1"),
            plain(v2.addr, version="v2"),
            subsets={"v1": Subset(labels={"version": "v1"}), "v2": Subset(labels={"version": "v2"})},
            routes=(
                Route(to=(WeightedTarget(subset="v1", weight=90), WeightedTarget(subset="v2", weight=10))),
            ),
        ) as m,
    ):
        m.client.app.runtime.rng.seed(1)
        got = await bodies(m, 1000)
        # Four standard deviations of a fair split.
        assert 62 <= got[b"v2"] <= 138, got
        assert got.total() == 1000
        snapshot = m.client.app.store.snapshot
        assert snapshot is not None
        m.client.app.on_snapshot(
            changed(
                snapshot,
                routes=(Route(to=(WeightedTarget(subset="v1", weight=0), WeightedTarget(subset="v2"))),),
            )
        )
        assert await bodies(m, 40) == {b"v2": 40}


@mesh_test
async def test_a_subset_without_endpoints_says_so() -> None:
    v2 = {"v2": Subset(labels={"version": "v2"})}
    async with (
        application(answering(ok())) as app,
        fleet(
            plain(app.addr, version="v1"), subsets=v2, routes=(Route(to=(WeightedTarget(subset="v2"),)),)
        ) as m,
    ):
        response = await (await m.connect()).get()
        assert b"the subset v2 has no endpoint" in (response.get(b"x-triomesh-error") or b"")


@mesh_test
async def test_round_robin_alternates() -> None:
    async with (
        application(answering(ok(b"a"))) as a,
        application(answering(ok(b"b"))) as b,
        fleet(plain(a.addr), plain(b.addr), settings=Settings(algorithm=Algorithm.ROUND_ROBIN)) as m,
    ):
        client = await m.connect()
        assert [(await client.get()).body for _ in range(20)] == [b"a", b"b"] * 10


@mesh_test
async def test_least_latency_prefers_the_faster() -> None:
    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            await trio.sleep(0.05)
            await peer.send(ok(b"slow"))

    async with (
        application(answering(ok(b"fast"))) as fast,
        application(slow) as other,
        fleet(plain(fast.addr), plain(other.addr), settings=Settings(algorithm=Algorithm.LEAST_LATENCY)) as m,
    ):
        got = await bodies(m, 200)
        assert got[b"fast"] > 180, got


@mesh_test
async def test_configuration_changes_under_load_close_nothing() -> None:
    async with (
        application(answering(ok(b"a"))) as a,
        application(answering(ok(b"b"))) as b,
        fleet(plain(a.addr), plain(b.addr)) as m,
    ):
        snapshot = m.client.app.store.snapshot
        assert snapshot is not None
        variants = [
            {"settings": Settings(timeouts=Timeouts(connect_s=2))},
            {"retries": Retries(attempts=3)},
            {"settings": Settings(algorithm=Algorithm.ROUND_ROBIN)},
            {"endpoints": (plain(b.addr, x="1"), plain(a.addr, x="2"))},
            {},
        ]
        stop = False
        count = 0

        async def load() -> None:
            nonlocal count
            client = await m.connect()
            while not stop:
                response = await client.get()
                assert response.status == 200
                assert response.get(b"connection") is None
                count += 1

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(load)
            for turn in range(40):
                enough = count + 10
                await wait_until(lambda n=enough: count > n)
                m.client.app.on_snapshot(changed(snapshot, **variants[turn % len(variants)]))
            stop = True
        # Upstream connections lived on as well.
        assert len(a.peers) <= 8
        assert len(b.peers) <= 8
        assert m.client.metric("triomesh_requests_total", code="200") == count


@mesh_test
async def test_an_endpoint_that_is_removed_loses_its_idle_connections() -> None:
    ends: list[str] = []

    async def handle(peer: Peer) -> None:
        while True:
            try:
                await peer.request()
            except EOFError:
                ends.append("clean")
                return
            await peer.send(ok(b"a"))

    async with application(handle) as a, application(answering(ok(b"b"))) as b, fleet(plain(a.addr)) as m:
        client = await m.connect()
        assert (await client.get()).body == b"a"
        snapshot = m.client.app.store.snapshot
        assert snapshot is not None
        m.client.app.on_snapshot(changed(snapshot, endpoints=(plain(b.addr),)))
        await wait_until(lambda: ends == ["clean"])
        assert (await client.get()).body == b"b"


@mesh_test
async def test_a_busy_connection_survives_its_endpoints_removal() -> None:
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.send(ok(b"a"))
        await peer.rest()

    async with application(handle) as a, fleet(plain(a.addr)) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\n\r\n")
        await wait_until(lambda: a.peers)
        snapshot = m.client.app.store.snapshot
        assert snapshot is not None
        m.client.app.on_snapshot(changed(snapshot, endpoints=()))
        go.set()
        assert (await client.response()).body == b"a"
        assert (await client.get()).status == 503


@pytest.mark.parametrize("synced", [False, True])
@mesh_test
async def test_a_destination_that_is_removed_is_not_called_outside_the_mesh(synced: bool) -> None:
    """Whatever the egress mode: what began in the mesh never goes on in plaintext."""
    async with application(answering(ok())) as app, fleet(plain(app.addr)) as m:
        client = await m.connect()
        assert (await client.get()).status == 200
        snapshot = m.client.app.store.snapshot
        assert snapshot is not None
        m.client.app.on_snapshot(msgspec.structs.replace(snapshot, destinations=(), synced=synced))
        response = await client.get()
        assert response.status == 503
        assert (response.get(b"x-triomesh-error") or b"").startswith(b"flag=NC; side=client")


def with_roots(ca: TestCa, *others: TestCa) -> TestCa:
    """The same CA, handing out the roots of the others too."""
    both = TestCa.__new__(TestCa)
    both.trust_domain = ca.trust_domain
    roots = [each.authority.root for each in (ca, *others)]
    both.authority = replace_data(ca.authority, bundle=TrustBundle.of(roots))
    return both


@mesh_test
async def test_certificates_and_roots_rotate_under_load() -> None:
    old = TestCa()
    new = TestCa()
    steps = [with_roots(old, new), with_roots(new, old), new]
    async with mesh(ok(), ca=old) as m:
        count = 0
        stop = False

        async def load() -> None:
            nonlocal count
            client = await m.connect()
            while not stop:
                assert (await client.get()).status == 200
                count += 1

        async def churn() -> None:
            """New handshakes all the time."""
            while not stop:
                for conn in list(m.client.app.runtime.reactor.conns.values()):
                    if conn.idle_in is not None:
                        conn.idle_in.drop_idle(conn)
                await trio.lowlevel.checkpoint()

        async def more(n: int) -> None:
            enough = count + n
            await wait_until(lambda: count > enough)

        def handshakes() -> float:
            return m.client.metric("triomesh_handshakes_total", result="ok")

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(load)
            nursery.start_soon(churn)
            await more(20)
            for ca in steps:
                before = handshakes()
                m.server.app.holder.swap(ca.credentials("server"))
                await more(10)
                m.client.app.holder.swap(ca.credentials("client"))
                await more(10)
                await wait_until(lambda n=before: handshakes() > n + 2)
            stop = True
        for side in (m.client, m.server):
            assert side.metric("triomesh_handshakes_total", result="failed") == 0
            total = side.metric("triomesh_requests_total")
            assert side.metric("triomesh_requests_total", code="200", flag="") == total == count


@mesh_test
async def test_a_peer_with_an_unknown_root_is_refused_before_the_request() -> None:
    async with mesh(ok()) as m:
        m.client.app.holder.swap(TestCa().credentials("client"))
        response = await (await m.connect()).get()
        assert response.status == 503
        assert (response.get(b"x-triomesh-error") or b"").startswith(b"flag=UF; side=client")
        assert not m.app.peers


@mesh_test
async def test_a_client_certificate_that_the_server_refuses() -> None:
    """In TLS 1.3 the alert comes after the client's handshake: still a connection that never came up."""
    ours, stranger = TestCa(), TestCa()
    async with mesh(ok(), ca=ours) as m:
        mixed = with_roots(stranger, ours)
        m.client.app.holder.swap(mixed.credentials("client"))
        client = await m.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nab")
        response = await client.response()
        assert response.status == 503
        assert (response.get(b"x-triomesh-error") or b"").startswith(b"flag=U")
        assert not m.app.peers


@pytest.mark.parametrize("side", ["client", "server"])
@mesh_test
async def test_draining(side: str) -> None:
    """Inbound asks its callers to close and serves on; outbound goes on as before."""
    async with mesh(ok()) as m:
        client = await m.connect()
        assert (await client.get()).get(b"connection") is None
        if side == "server":
            m.server.app.on_snapshot(server_snapshot(draining=True))
            direct = await m.connect(m.server.inbound)
            response = await direct.get()
            assert response.get(b"connection") == b"close"
            assert await direct.end() == "clean"
        else:
            snapshot = m.client.app.store.snapshot
            assert snapshot is not None
            m.client.app.on_snapshot(msgspec.structs.replace(snapshot, draining=True))
        before = m.client.metric("triomesh_handshakes_total", result="ok")
        for _ in range(3):
            response = await client.get()
            assert response.status == 200
            assert response.get(b"connection") is None
        opened = m.client.metric("triomesh_handshakes_total", result="ok") - before
        assert opened == (2 if side == "server" else 0)


@mesh_test
async def test_endpoint_weights() -> None:
    async with application(answering(ok(b"a"))) as a, application(answering(ok(b"b"))) as b:
        heavy: Endpoint = msgspec.structs.replace(plain(a.addr), weight=3)
        async with fleet(heavy, plain(b.addr), settings=Settings(algorithm=Algorithm.ROUND_ROBIN)) as m:
            client = await m.connect()
            got = Counter([(await client.get()).body for _ in range(40)])
            assert got == {b"a": 30, b"b": 10}
