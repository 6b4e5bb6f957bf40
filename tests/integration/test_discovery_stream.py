"""Both ends of the discovery stream, with real TLS on loopback; the cluster is a source told by hand."""

import msgspec
import pytest
import trio

from mesh_api.sidecar import Destination, Inbound, MtlsMode, Pod, TlsMode
from mesh_api.traffic import Route, WeightedTarget
from mesh_control.serve.discovery import Limits
from mesh_proxy.discovery import demand
from mesh_proxy.discovery.contents import Absent
from mesh_proxy.net.addr import Addr
from tests.support.discovery import (
    FakeSource,
    control_plane,
    gone,
    limits,
    running,
    serving,
    streamed,
)
from tests.support.mesh import TestCa, identity, run, wait_until

WEB = Destination(name="web", namespace="shop", port=80, addresses=("10.96.0.1", "fd00::1"))
API = Destination(name="api", namespace="shop", port=80, addresses=("10.96.0.2",))
POD = Pod(name="p", namespace="shop", addresses=("10.1.0.1",), identity=identity("p"))
VIP, VIP6, API_VIP = Addr("10.96.0.1", 80), Addr("fd00::1", 80), Addr("10.96.0.2", 80)


def replace(content, **changes):
    return msgspec.structs.replace(content, **changes)


# -- asking and being told ---------------------------------------------------------------------------------


def test_asked_told_changed_deleted():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put({**serving(WEB), **running(POD, 8080)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            assert await store.resolve(VIP, 2) == WEB
            assert await store.resolve(VIP6, 2) == WEB
            assert await store.resolve(Addr("10.1.0.1", 8080), 2) == POD
            assert await store.resolve(Addr("93.184.215.14", 443), 2) is Absent.NOT_IN_MESH
            assert store.is_mesh_pod("10.1.0.1")
            before = store.generation
            changed = replace(WEB, protocol=API.protocol.HTTP)
            source.put(serving(changed))
            await wait_until(lambda: store.lookup(VIP) == changed)
            assert store.lookup(VIP6) == changed
            assert store.generation == before + 1
            source.put(gone(serving(WEB)))
            await wait_until(lambda: store.lookup(VIP) is Absent.NOT_IN_MESH)
            source.put(gone(running(POD, 8080)))
            await wait_until(lambda: store.lookup(Addr("10.1.0.1", 8080)) is Absent.NOT_IN_MESH)
            assert store.dump().destinations == ()

    run(main)


def test_ready_with_the_first_own_configuration_only():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.synced = trio.Event()
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            app = side.app
            assert any("no configuration" in reason for reason in app.not_ready())
            assert app.store.inbound_mtls(80) is MtlsMode.STRICT
            source.synced.set()
            await wait_until(lambda: not app.not_ready())
            assert app.store.inbound_mtls(80) is MtlsMode.PERMISSIVE
            source.put(
                {"workload": replace(source.config, inbound=Inbound(mtls=MtlsMode.STRICT), draining=True)}
            )
            await wait_until(lambda: app.store.inbound_mtls(80) is MtlsMode.STRICT)
            assert app.runtime.draining
            status = app.stream.status()
            assert status["connected_to"] == str(plane.address)
            assert status["problem"] is None

    run(main)


def test_callers_are_asked_about():
    async def main():
        ca, source = TestCa(), FakeSource()
        bare = Pod(name="q", namespace="shop", addresses=("10.1.0.2",), identity="", tls=TlsMode.NONE)
        source.put({**running(POD), **running(bare)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            assert await store.resolve_peer("10.1.0.1", 2)
            assert not await store.resolve_peer("10.1.0.2", 2)
            with trio.fail_after(1):
                assert not await store.resolve_peer("10.1.0.3", 2)
            source.put(gone(running(POD)))
            await wait_until(lambda: not store.is_mesh_pod("10.1.0.1"))

    run(main)


def test_late_news_beat_the_answer_that_nobody_owns_it():
    """The watch is 50 ms late: the address is never taken for one outside the mesh."""

    async def main():
        ca, source = TestCa(), FakeSource()
        answers = []
        async with control_plane(ca, source, limits=Limits()) as plane, streamed(ca, plane) as side:
            store = side.app.store
            await wait_until(lambda: store.snapshot)

            async def dial():
                answers.append(await store.resolve(VIP, 2))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                await trio.sleep(0.05)
                source.put(serving(WEB))
            assert answers == [WEB]

    run(main)


def test_while_a_watch_is_down_nobody_is_not_said():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        source.is_current = False
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            assert await store.resolve(VIP, 2) == WEB
            assert await store.resolve(API_VIP, 0.3) is Absent.NO_ANSWER
            source.is_current = True
            assert await store.resolve(API_VIP, 2) is Absent.NOT_IN_MESH

    run(main)


def test_an_address_that_moves_to_another_identity():
    async def main():
        ca, source = TestCa(), FakeSource()
        addr = Addr("10.1.0.1", 8080)
        source.put(running(POD, 8080))
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            assert await store.resolve(addr, 2) == POD
            successor = replace(POD, name="q", identity=identity("q"))
            source.put(running(successor, 8080))
            await wait_until(lambda: store.lookup(addr) == successor)

    run(main)


# -- refusing ----------------------------------------------------------------------------------------------


def test_a_refused_update_keeps_the_last_good_and_spoils_nothing_else():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put({**serving(WEB), **serving(API)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            assert await store.resolve(VIP, 2) == WEB
            assert await store.resolve(API_VIP, 2) == API
            bad = replace(WEB, routes=(Route(to=(WeightedTarget(subset="v9"),)),))
            good = replace(API, protocol=API.protocol.HTTP)
            source.put({**serving(bad), **serving(good)})
            await wait_until(lambda: store.lookup(API_VIP) == good)
            await plane.settled()
            assert store.lookup(VIP) == WEB
            assert plane.server.stats.nacks == 2, "together, and then alone"
            line = await side.log.wait_for(lambda line: line["event"] == "configuration refused")
            assert line["path"] == "destination/shop/web:80.routes[0].to[0].subset"
            assert "v9" in line["expected"]
            assert side.metric("triomesh_config_updates_total", result="rejected") == 2
            mended = replace(WEB, protocol=API.protocol.TCP)
            source.put(serving(mended))
            await wait_until(lambda: store.lookup(VIP) == mended)

    run(main)


@pytest.mark.parametrize(
    ("key", "content", "expected"),
    [
        ("destination/shop/web:80", API, "the destination of this key"),
        (
            "pod/10.1.0.1",
            replace(POD, identity="spiffe://other.example/ns/shop/sa/p"),
            "spiffe://cluster.local/",
        ),
        ("pod/10.1.0.1", replace(POD, addresses=("10.1.0.9",)), "the address of this key"),
    ],
)
def test_contents_that_are_refused(key, content, expected):
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put({**serving(WEB), **running(POD, 8080)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            await store.resolve(VIP, 2)
            await store.resolve(Addr("10.1.0.1", 8080), 2)
            source.put({key: content})
            line = await side.log.wait_for(lambda line: line["event"] == "configuration refused")
            assert line["path"].startswith(key)
            assert expected in line["expected"]
            assert store.lookup(VIP) == WEB
            assert store.lookup(Addr("10.1.0.1", 8080)) == POD

    run(main)


def test_own_configuration_of_another_trust_domain_is_refused():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.config = replace(source.config, trust_domain="other.example")
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            await side.log.wait_for(lambda line: line.get("path") == "workload.trustDomain")
            assert any("no configuration" in reason for reason in side.app.not_ready())

    run(main)


# -- bounds ------------------------------------------------------------------------------------------------


def test_a_scanning_client_grows_nobody(monkeypatch):
    monkeypatch.setattr(demand, "MAX_UNKNOWN", 50)
    monkeypatch.setattr(demand, "NEW_BURST", 10_000.0)

    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        async with (
            control_plane(ca, source, limits=limits(settle_s=0.01)) as plane,
            streamed(ca, plane) as side,
        ):
            store = side.app.store
            assert await store.resolve(VIP, 2) == WEB
            async with trio.open_nursery() as nursery:
                for n in range(1000):
                    nursery.start_soon(store.resolve, Addr(f"192.0.{n >> 8}.{n & 255}", 80), 1.0)
            await plane.settled()
            session = next(iter(plane.server._streams.values())).session
            await wait_until(lambda: len(session.asked) <= 52)
            assert store.lookup(VIP) == WEB, "what is in the mesh is not pushed out"
            assert len(store._contents.answers) <= 51
            assert not store._waiting
            assert len(plane.server.subscriptions) <= 54

    run(main)


def test_cancelled_waits_leave_nothing():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.is_current = False
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(store.resolve, VIP, 5)
                    nursery.start_soon(store.resolve_peer, "10.1.0.1", 5)
                await wait_until(lambda: VIP in store._waiting)
                nursery.cancel_scope.cancel()
            assert not store._waiting

    run(main)


def test_a_cancelled_sidecar_closes_its_stream():
    async def main():
        ca = TestCa()
        async with control_plane(ca) as plane:
            async with streamed(ca, plane) as side:
                await wait_until(lambda: not side.app.not_ready())
                assert plane.server.stats.connected == 1
            await wait_until(lambda: plane.server.stats.connected == 0)
            assert plane.server._open == 0
            assert len(plane.server.subscriptions) == 0

    run(main)
