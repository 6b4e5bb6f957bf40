"""Destinations that routes of others lead to: they come along, stay while the route does, and go with it."""

import msgspec

from mesh_api.sidecar import Destination
from mesh_api.traffic import Route, WeightedTarget
from mesh_proxy.discovery import demand
from mesh_proxy.discovery.contents import Absent
from mesh_proxy.net.addr import Addr
from tests.support.discovery import FakeSource, control_plane, gone, serving, streamed
from tests.support.mesh import TestCa, run, wait_until

API = Destination(name="api", namespace="shop", port=80, addresses=("10.96.0.2",))
TO_API = (Route(to=(WeightedTarget(destination="shop/api:80"),)),)
WEB = Destination(name="web", namespace="shop", port=80, addresses=("10.96.0.1",), routes=TO_API)
VIP = Addr("10.96.0.1", 80)


def test_they_come_with_the_route_and_change_on_their_own():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put({**serving(WEB), **serving(API)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            assert await store.resolve(VIP, 2) == WEB
            assert store.destination_by_key("shop/api:80") == API, "in the same update"
            changed = msgspec.structs.replace(API, protocol=API.protocol.HTTP)
            source.put(serving(changed))
            await wait_until(lambda: store.destination_by_key("shop/api:80") == changed)
            source.put(serving(msgspec.structs.replace(WEB, routes=())))
            await wait_until(lambda: store.destination_by_key("shop/api:80") is None)
            source.put(serving(WEB))
            await wait_until(lambda: store.destination_by_key("shop/api:80") == changed)
            source.put(gone(serving(API)))
            await wait_until(lambda: store.destination_by_key("shop/api:80") is None)
            assert store.lookup(VIP) == WEB
            source.put(serving(API))
            await wait_until(lambda: store.destination_by_key("shop/api:80") == API)

    run(main)


def test_a_new_stream_brings_the_difference_only():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put({**serving(WEB), **serving(API)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            await store.resolve(VIP, 2)
            plane.kill()
            await wait_until(lambda: side.app.stream.problem)
            async with control_plane(ca, source, port=plane.address.port) as next_one:
                await wait_until(lambda: not side.app.stream.problem)
                changed = msgspec.structs.replace(API, protocol=API.protocol.HTTP)
                await next_one.settled()
                assert next_one.server.stats.resources == 0, "it has everything"
                source.put(serving(changed))
                await wait_until(lambda: store.destination_by_key("shop/api:80") == changed)
                assert next_one.server.stats.resources == 1

    run(main)


def test_they_are_dropped_with_the_address(monkeypatch):
    monkeypatch.setattr(demand, "MAX_KNOWN", 1)

    async def main():
        ca, source = TestCa(), FakeSource()
        other = Destination(name="other", namespace="shop", port=80, addresses=("10.96.0.3",))
        source.put({**serving(WEB), **serving(API), **serving(other)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            await store.resolve(VIP, 2)
            await store.resolve(Addr("10.96.0.3", 80), 2)
            await wait_until(lambda: store.dump().destinations == (other,))
            await plane.settled()
            session = next(iter(plane.server._streams.values())).session
            await wait_until(lambda: "destination/shop/api:80" not in plane.server.subscriptions._sessions)
            assert "destination/shop/api:80" not in session.told
            assert store.lookup(VIP) is Absent.NO_ANSWER

    run(main)
