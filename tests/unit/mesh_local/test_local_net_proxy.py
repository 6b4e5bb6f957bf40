"""When the service proxy changes rules, and when it does not."""

from __future__ import annotations

import trio
import trio.testing

from mesh_local.network.addressing import IPV4
from mesh_local.network.service_proxy import ServiceProxy
from mesh_local.network.types import NetworkError
from tests.support.local_net import Objects, end, service, slice_of


class Node:
    """Records what it is asked for; fails as often as told."""

    families = (IPV4,)

    def __init__(self, failures=0):
        self.restored = []
        self.forgotten = []
        self.failures = failures

    async def restore(self, texts):
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise NetworkError("iptables-restore failed (1): busy")
        self.restored.append(texts[4])

    async def forget_udp(self, but):
        await trio.lowlevel.checkpoint()
        self.forgotten.append(set(but))


def run(scenario, *args, **kwargs):
    """Run the proxy beside `scenario(node, services, slices)`, on a clock that jumps when all wait."""
    node = Node(*args, **kwargs)
    services, slices = Objects(service("a", "10.96.0.1", ports=[(53, "UDP", "")])), Objects()

    async def main():
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ServiceProxy(node, services, slices).run)
                await scenario(node, services, slices)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return node


async def settle():
    await trio.sleep(60)


def test_changes_are_coalesced_and_the_same_is_not_applied_twice():
    async def scenario(node, services, slices):
        await settle()
        assert len(node.restored) == 1
        for last in range(2, 12):
            slices.put(slice_of("a", end(f"10.244.0.{last}"), ports=[(53, "UDP", "")]))
        await settle()
        assert len(node.restored) == 2
        assert "--to-destination 10.244.0.11:53" in node.restored[1]
        services.put(*services.list())
        await settle()

    node = run(scenario)
    assert len(node.restored) == 2


def test_udp_entries_of_gone_endpoints_are_forgotten():
    async def scenario(node, services, slices):
        await settle()
        slices.put(slice_of("a", end("10.244.0.2"), ports=[(53, "UDP", "")]))
        await settle()
        assert node.forgotten == [set()]  # at first, whatever another runtime left; nothing went now
        slices.put()
        await settle()

    assert run(scenario).forgotten == [set(), set()]


def test_a_failure_is_logged_and_tried_again(caplog):
    async def scenario(node, services, slices):
        await settle()

    node = run(scenario, failures=2)
    assert len(node.restored) == 1
    assert caplog.text.count("iptables-restore failed (1): busy") == 2


def test_nothing_is_applied_before_the_copies_are_complete():
    async def main():
        node, slices = Node(), Objects(synced=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ServiceProxy(node, Objects(), slices).run)
            await settle()
            assert node.restored == []
            slices.synced.set()
            await settle()
            assert len(node.restored) == 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_sctp_is_logged_once(caplog):
    async def scenario(node, services, slices):
        services.put(service("a", "10.96.0.1", ports=[(1, "SCTP", "s")]))
        await settle()
        slices.put(slice_of("b", end("10.244.0.2")))
        await settle()
        services.put(*services.list(), service("b", "10.96.0.2"))
        await settle()

    assert len(run(scenario).restored) == 2
    assert caplog.text.count("SCTP is not supported") == 1
