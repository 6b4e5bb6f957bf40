import trio
import trio.testing

from mesh_api.keys import Family
from mesh_api.sidecar import (
    Destination,
    EgressMode,
    Inbound,
    MtlsMode,
    Pod,
    Protocol,
    Snapshot,
    TlsMode,
    Workload,
)
from mesh_proxy.discovery.contents import Absent
from mesh_proxy.discovery.store import ConfigStore
from mesh_proxy.net.addr import Addr

WORKLOAD = Workload(name="a", namespace="shop")
DESTINATION = Destination(name="d", namespace="shop", port=80, addresses=("10.0.0.1", "fd00::1"))
POD = Pod(name="p", namespace="shop", addresses=("10.1.0.1",), identity="spiffe://cluster.local/ns/shop/sa/p")
BARE = Pod(name="q", namespace="shop", addresses=("10.1.0.2",), identity="", tls=TlsMode.NONE)


def on_mock_clock(test):
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def store_of(**fields):
    store = ConfigStore()
    store.swap(Snapshot(workload=WORKLOAD, **fields))
    return store


def test_destinations_by_the_name_that_routes_give():
    async def main():
        v6 = Destination(name="d", namespace="shop", port=80, addresses=("fd00::2",), family=Family.IPV6)
        store = store_of(destinations=(DESTINATION, v6))
        assert store.destination_by_key("shop/d:80") is DESTINATION
        assert store.destination_by_key("shop/d:80/ipv6") is v6
        assert store.destination_by_key("shop/d:81") is None

    on_mock_clock(main)


def test_three_answers():
    async def main():
        store = ConfigStore()
        assert store.lookup(Addr("10.0.0.1", 80)) is Absent.NO_ANSWER
        store.swap(Snapshot(workload=WORKLOAD, destinations=(DESTINATION,), pods=(POD,)))
        assert store.lookup(Addr("10.0.0.1", 80)) is DESTINATION
        assert store.lookup(Addr("fd00::1", 80)) is DESTINATION
        assert store.lookup(Addr("10.0.0.1", 81)) is Absent.NOT_IN_MESH
        assert store.lookup(Addr("10.1.0.1", 9999)) is POD
        store.swap(Snapshot(workload=WORKLOAD, synced=False))
        assert store.lookup(Addr("10.0.0.1", 80)) is Absent.NO_ANSWER
        assert store.generation == 2

    on_mock_clock(main)


def test_before_any_configuration_everything_is_closed():
    async def main():
        store = ConfigStore()
        assert store.inbound_mtls(80) is MtlsMode.STRICT
        assert store.egress is EgressMode.REFUSE
        assert not store.is_mesh_pod("10.1.0.1")
        assert not store.access_log
        assert store.dump() is None

    on_mock_clock(main)


def test_ports_override_the_mode():
    async def main():
        store = store_of(
            inbound=Inbound(port_mtls={"80": MtlsMode.DISABLE}, protocols={"81": Protocol.TCP}),
        )
        assert store.inbound_mtls(80) is MtlsMode.DISABLE
        assert store.inbound_mtls(81) is MtlsMode.PERMISSIVE
        assert store.inbound_protocol(81) is Protocol.TCP
        assert store.inbound_protocol(80) is Protocol.AUTO

    on_mock_clock(main)


def test_only_pods_with_a_sidecar_are_of_the_mesh():
    async def main():
        store = store_of(pods=(POD, BARE))
        assert store.is_mesh_pod("10.1.0.1")
        assert not store.is_mesh_pod("10.1.0.2")

    on_mock_clock(main)


def test_resolve_waits_exactly_as_long_as_asked():
    async def main():
        store = ConfigStore()
        started = trio.current_time()
        assert await store.resolve(Addr("10.0.0.1", 80), 2.0) is Absent.NO_ANSWER
        assert trio.current_time() - started == 2.0

    on_mock_clock(main)


def test_resolve_takes_the_first_answer():
    async def main():
        store = ConfigStore()
        started = trio.current_time()

        async def news():
            await trio.sleep(0.5)
            store.swap(Snapshot(workload=WORKLOAD, synced=False))
            await trio.sleep(0.5)
            store.swap(Snapshot(workload=WORKLOAD, destinations=(DESTINATION,), synced=False))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(news)
            assert await store.resolve(Addr("10.0.0.1", 80), 2.0) is DESTINATION
            assert trio.current_time() - started == 1.0

    on_mock_clock(main)


def test_wait_changed():
    async def main():
        store = ConfigStore()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.wait_changed, 0)
            await trio.testing.wait_all_tasks_blocked()
            store.swap(Snapshot(workload=WORKLOAD))
        await store.wait_changed(0)

    on_mock_clock(main)
