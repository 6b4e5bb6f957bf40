"""What kube-proxy gives to callers of a Service: from a cluster's objects to requests by real sidecars."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from mesh_control.compile import address, destination
from mesh_proxy.net.addr import Addr
from mesh_proxy.policy.outcome import Flag
from tests.integration.http_peers import Handler, Peer
from tests.integration.policy_mesh import PolicyMesh, error, flag_of, mesh_test, ok, policy_mesh
from tests.support.control_objects import (
    Cluster,
    endpoint,
    node,
    pod,
    service,
    slice_of,
    traffic_policy,
)
from tests.support.mesh import TRUST_DOMAIN, VIP

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
BOTH: dict[str, Handler | bytes] = {"v1": ok(b"v1"), "v2": ok(b"v2")}
NODES = {"v1": "n1", "v2": "n2"}


def naming(name: bytes) -> Handler:
    """Answers two bytes with its name."""

    async def handle(peer: Peer) -> None:
        await peer.exactly(2)
        await peer.send(name)
        await peer.rest()

    return handle


class Seen:
    """A Service whose endpoints are the mesh's workloads, each in a slice of its own: their ports differ."""

    def __init__(self, mesh: PolicyMesh, protocol: str = "http", **spec: Any) -> None:
        self._mesh = mesh
        self.cluster = Cluster(TRUST_DOMAIN)
        self.cluster.put("Node", node("n1", zone="z1"), node("n2", zone="z2"), node("n3", zone="z3"))
        self.cluster.put("Pod", pod("server", "127.0.0.1", account="server"))
        ports = [{"name": "web", "port": VIP.port, "appProtocol": protocol, "targetPort": "web"}]
        self.cluster.put("Service", service("server", VIP.ip, ports=ports, **spec))
        self.policy()
        for name in BOTH:
            self.endpoint(name)

    def policy(self, **spec: Any) -> None:
        """Say how the Service is called; in turns in any case, so that nobody is left out by chance."""
        self.cluster.put(
            "TrafficPolicy",
            traffic_policy("p", "server", loadBalancer={"algorithm": "round-robin"}, **spec),
        )

    def endpoint(self, name: str, **more: Any) -> None:
        """Say something else about a workload's endpoint."""
        addr: Addr = self._mesh.servers[name].inbound
        made = endpoint(addr.ip, nodeName=NODES[name], **more)
        piece = slice_of("server", made, name=name, port=addr.port, port_name="web")
        self.cluster.put("EndpointSlice", piece)

    def tell(self, from_node: str = "n1") -> None:
        """Tell the client's sidecar what a control plane would tell it on a node."""
        answer = address(self.cluster.index, VIP.ip, VIP.port, from_node)
        assert answer is not None
        found = destination(self.cluster.index, answer.destination)
        app = self._mesh.client.app
        assert found is not None
        assert app.store.snapshot is not None
        app.on_snapshot(msgspec.structs.replace(app.store.snapshot, destinations=(found,)))


async def bodies(mesh: PolicyMesh, n: int = 8) -> set[bytes]:
    """Who answers on `n` connections, two requests on each."""
    return {body for _ in range(n) for body in await mesh.bodies(2)}


@mesh_test
async def test_internal_traffic_policy_local() -> None:
    async with policy_mesh(BOTH) as m:
        seen = Seen(m, internalTrafficPolicy="Local")
        for from_node, who in (("n1", b"v1"), ("n2", b"v2")):
            seen.tell(from_node)
            assert await bodies(m) == {who}
        seen.tell("n3")
        response = await m.ask()
        assert (response.status, flag_of(response)) == (503, Flag.UH)
        assert b"no endpoint on this node (internalTrafficPolicy Local)" in error(response)


@mesh_test
async def test_traffic_stays_in_the_zone_while_it_can() -> None:
    async with policy_mesh(BOTH) as m:
        seen = Seen(m, trafficDistribution="PreferSameZone")
        for name, zone in (("v1", "z1"), ("v2", "z2")):
            seen.endpoint(name, hints={"forZones": [{"name": zone}]})
        for from_node, who in (("n1", {b"v1"}), ("n2", {b"v2"}), ("n3", {b"v1", b"v2"})):
            seen.tell(from_node)
            assert await bodies(m) == who
        seen.endpoint("v1", ready=False)
        seen.tell("n1")
        assert await bodies(m) == {b"v2"}, "none is ready in the zone: all count"


@mesh_test
async def test_an_endpoint_that_terminates_serves_when_there_is_no_other() -> None:
    async with policy_mesh(BOTH) as m:
        seen = Seen(m)
        seen.endpoint("v1", ready=False, serving=True, terminating=True)
        seen.tell()
        assert await bodies(m) == {b"v2"}
        seen.endpoint("v2", ready=False, serving=False, terminating=True)
        seen.tell()
        assert await bodies(m) == {b"v1"}
        seen.endpoint("v1", ready=False, serving=False, terminating=True)
        seen.tell()
        assert flag_of(await m.ask()) == Flag.UH


@mesh_test
async def test_session_affinity_is_kept_over_connections_and_changes() -> None:
    async with policy_mesh(BOTH) as m:
        seen = Seen(m, sessionAffinity="ClientIP")
        seen.tell()
        (first,) = await bodies(m)
        held, other = first.decode(), "v2" if first == b"v1" else "v1"
        seen.endpoint(other, ready=False)
        seen.tell()
        seen.endpoint(other)
        seen.tell()
        assert await bodies(m) == {first}, "others come and go"
        seen.endpoint(held, ready=False)
        seen.tell()
        assert await bodies(m) == {other.encode()}
        seen.endpoint(held)
        seen.tell()
        assert await bodies(m) == {other.encode()}, "what was chosen instead is kept"


@mesh_test
async def test_session_affinity_of_opaque_connections() -> None:
    async with policy_mesh({name: naming(name.encode()) for name in BOTH}) as m:
        Seen(m, protocol="tcp", sessionAffinity="ClientIP").tell()
        told = set()
        for _ in range(8):
            peer = await m.connect()
            await peer.send(b"ab")
            told.add(await peer.exactly(2))
            peer.close()
        assert len(told) == 1, told


@mesh_test
async def test_an_endpoint_that_fails_keeps_its_clients_until_it_is_ejected() -> None:
    failing: set[bytes] = set()
    asked: Counter[bytes] = Counter()

    def answers(name: bytes) -> Handler:
        async def handle(peer: Peer) -> None:
            while True:
                await peer.request()
                asked[name] += 1
                await peer.send(UNAVAILABLE if name in failing else ok(name))

        return handle

    async with policy_mesh({name: answers(name.encode()) for name in BOTH}) as m:
        seen = Seen(m, sessionAffinity="ClientIP")
        seen.policy(outliers={"consecutive5xx": 3}, retries={"retryOn": ["gateway-error"]})
        seen.tell()
        (first,) = await bodies(m)
        failing.add(first)
        asked.clear()
        (other,) = await bodies(m)
        assert asked == {first: 3, other: 16}, "tried elsewhere each time, and left when it was ejected"
        failing.clear()
        assert await bodies(m) == {other}
