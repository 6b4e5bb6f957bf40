"""Services and DNS of the local cluster's network: real rules, real resolvers."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections import Counter
from contextlib import asynccontextmanager

import dns.message
import pytest
import trio

from mesh_local.dns.objects import endpoint_slice
from mesh_local.dns.objects import service as dns_service
from mesh_local.dns.records import Zones, resolv_conf
from mesh_local.dns.server import ClusterNames, run_cluster_dns
from mesh_local.network.namespace import NamespaceDialer, open_udp
from mesh_local.network.service_proxy import ServiceProxy
from tests.support.local_net import Objects, end, service, slice_of
from tests.support.local_node import apply, cluster, failure, greeters, hear, hear_by, new_uid, nothing_stays

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

WEB_IPS = ("10.96.0.20", "fd10:96::20")


@pytest.fixture(autouse=True)
def _nothing_stays():
    with nothing_stays():
        yield


def web(*pods, **spec):
    """A Service with these pods as endpoints, in both families."""
    slices = [
        slice_of("web", *(end(pod.ips[i]) for pod in pods), version=version)
        for i, version in ((0, 4), (1, 6))
    ]
    return service("web", *WEB_IPS, **spec), slices


def test_services_are_balanced_and_keep_the_source(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            a, b, client = [await network.attach(new_uid()) for _ in range(3)]
            svc, slices = web(a, b)
            svc["spec"]["ports"][0]["nodePort"] = 30080
            await apply(network, svc, slices=slices)
            async with greeters(8080, a=a, b=b):
                for vip, source in zip(WEB_IPS, client.ips, strict=True):
                    heard = Counter([await hear(client.netns, vip, 80) for _ in range(40)])
                    assert set(heard) == {f"a {source}", f"b {source}"}
                for vip, node in zip(WEB_IPS, network.node_ips, strict=True):
                    assert (await hear_by(network.dialer(), vip, 80)).endswith(f" {node}")
                    assert await hear(client.netns, node, 30080)
                    assert await hear_by(network.dialer(), node, 30080)

    trio.run(main)


def test_a_pod_reaches_itself_through_its_service(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            a = await network.attach(new_uid())
            svc, slices = web(a)
            await apply(network, svc, slices=slices)
            async with greeters(8080, a=a):
                for vip, node in zip(WEB_IPS, network.node_ips, strict=True):
                    assert await hear(a.netns, vip, 80) == f"a {node}"

    trio.run(main)


def test_what_cannot_be_served_is_refused_at_once(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            client = await network.attach(new_uid())
            udp = service("udp", "10.96.0.30", "fd10:96::30", ports=[(53, "UDP", "")])
            await apply(network, web()[0], udp)
            for netns in (client.netns, network.netns):
                for ip in (*WEB_IPS, "10.96.9.9", "fd10:96::9"):
                    assert await failure(netns, ip, 80) == errno.ECONNREFUSED
                assert await failure(netns, "192.0.2.1", 80) == errno.ENETUNREACH
                assert await failure(netns, "10.244.200.200", 80) == errno.ENETUNREACH
            for source, vip in zip(client.ips, ("10.96.0.30", "fd10:96::30"), strict=True):
                sock = await open_udp(client.netns, source, 0)
                with sock:
                    await sock.connect((vip, 53))
                    for _ in range(200):
                        await sock.send(b"?")
                        with pytest.raises(ConnectionRefusedError):
                            await sock.recv(1)

    trio.run(main)


def test_affinity_holds_through_changes(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            a, b, client = [await network.attach(new_uid()) for _ in range(3)]
            svc, slices = web(a, b, sessionAffinity="ClientIP")
            await apply(network, svc, slices=slices)
            async with greeters(8080, a=a, b=b):
                for vip in WEB_IPS:
                    heard = {await hear(client.netns, vip, 80) for _ in range(12)}
                    await apply(network, svc, service("other", "10.96.0.40"), slices=slices)
                    heard |= {await hear(client.netns, vip, 80) for _ in range(12)}
                    assert len(heard) == 1

    trio.run(main)


def test_every_kind_of_rule_is_accepted(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            a = await network.attach(new_uid())
            ports = [(80, "TCP", "http"), (53, "UDP", "dns"), (9, "SCTP", "no")]
            svc = service(
                "all", *WEB_IPS, ports=ports, type="LoadBalancer", sessionAffinity="ClientIP",
                externalIPs=["192.0.2.1", "2001:db8::1"],
                loadBalancerSourceRanges=["10.244.0.0/16", "fd10::/16"],
            )  # fmt: skip
            svc["spec"]["ports"][0]["nodePort"] = 30080
            svc["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"ip": "2001:db8::2"}]}}
            targets = [(8080, "TCP", "http"), (5353, "UDP", "dns")]
            slices = [
                slice_of("all", end(ip), ports=targets, version=v)
                for ip, v in zip(a.ips, (4, 6), strict=True)
            ]
            await apply(network, svc, slices=slices)
            async with greeters(8080, a=a):
                for ip in ("192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"):
                    assert (await hear(a.netns, ip, 80)).startswith("a ")
            await apply(network, svc)

    trio.run(main)


def test_udp_clients_move_on_when_their_endpoint_is_gone(tmp_path):
    async def answer(name, sock):
        with sock:
            while True:
                _, peer = await sock.recvfrom(100)
                await sock.sendto(name, peer)

    async def main():
        async with cluster(tmp_path) as network:
            a, b, client = [await network.attach(new_uid()) for _ in range(3)]
            svc = service("udp", *WEB_IPS, ports=[(53, "UDP", "")])
            proxy = ServiceProxy(network, Objects(), Objects())

            async def serve_from(pod):
                slices = [
                    slice_of("udp", end(ip), ports=[(5353, "UDP", "")], version=v)
                    for ip, v in zip(pod.ips, (4, 6), strict=True)
                ]
                await proxy.apply([svc], slices)

            async with trio.open_nursery() as nursery:
                for name, pod in ((b"a", a), (b"b", b)):
                    for ip in pod.ips:
                        nursery.start_soon(answer, name, await open_udp(pod.netns, ip, 5353))
                for source, vip in zip(client.ips, WEB_IPS, strict=True):
                    with await open_udp(client.netns, source, 4000) as sock:
                        for name, pod in ((b"a", a), (b"b", b)):
                            await serve_from(pod)
                            await sock.sendto(b"?", (vip, 53))
                            reply, peer = await sock.recvfrom(100)
                            assert (reply, peer[0]) == (name, vip)
                nursery.cancel_scope.cancel()

    trio.run(main)


@asynccontextmanager
async def with_dns(network, *services, slices=()):
    """The cluster's DNS behind its Service, knowing these objects."""
    both = network.families
    service_source = Objects(dns_service(both), *services)
    slice_source = Objects(*(endpoint_slice(family) for family in both), *slices)
    names = ClusterNames(Zones.of_cluster("cluster.local", both), service_source, slice_source, Objects())
    async with trio.open_nursery() as nursery:
        await nursery.start(run_cluster_dns, network, names)
        await apply(network, *service_source.list(), slices=slice_source.list())
        yield
        nursery.cancel_scope.cancel()


def test_dns_over_udp_and_tcp(tmp_path):
    query = dns.message.make_query("web.shop.svc.cluster.local.", "AAAA")
    framed = len(query.to_wire()).to_bytes(2) + query.to_wire()

    async def main():
        async with cluster(tmp_path) as network:
            client = await network.attach(new_uid())
            async with with_dns(network, service("web", *WEB_IPS)):
                for source, server in zip(client.ips, network.dns_ips, strict=True):
                    with await open_udp(client.netns, source, 0) as sock:
                        await sock.connect((server, 53))
                        await sock.send(query.to_wire())
                        over_udp = dns.message.from_wire(await sock.recv(4096))
                    async with await NamespaceDialer(client.netns).dial(server, 53) as stream:
                        await stream.send_all(framed)
                        data = b""
                        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                            data += await stream.receive_some()
                    over_tcp = dns.message.from_wire(data[2:])
                    assert str(over_udp.answer[0][0]) == str(over_tcp.answer[0][0]) == "fd10:96::20"

    trio.run(main)


RESOLVE = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = sorted({entry[4][0] for entry in socket.getaddrinfo(name, 80)})
    except socket.gaierror as error:
        found[name] = error.errno
print(json.dumps(found))
"""


@pytest.mark.parametrize("families", ["ipv4", "ipv6", "dual"])
def test_the_system_resolver_is_content(tmp_path, families):
    count = {"ipv4": slice(0, 1), "ipv6": slice(1, 2), "dual": slice(0, 2)}[families]

    async def main():
        async with cluster(tmp_path, families) as network:
            client = await network.attach(new_uid())
            conf = tmp_path / "resolv.conf"
            conf.write_text(resolv_conf("shop", network.dns_ips, "cluster.local"))
            many = [end(f"10.244.1.{i}") for i in range(1, 101)]
            headless = slice_of("many", *many)
            async with with_dns(
                network, service("web", *WEB_IPS[count]), service("many", "None"), slices=[headless]
            ):
                script = 'mount --make-rprivate / && mount --bind "$0" /etc/resolv.conf && exec "$@"'
                asked = ["web", "web.shop", "web.shop.svc.cluster.local.", "many", "nobody", "example.com"]
                inside = [
                    "nsenter",
                    f"--net={client.netns}",
                    "unshare",
                    "--mount",
                    "sh",
                    "-c",
                    script,
                    str(conf),
                ]
                command = [*inside, sys.executable, "-c", RESOLVE, *asked]
                done = await trio.run_process(command, capture_stdout=True)
                found = json.loads(done.stdout)
                assert found["web"] == found["web.shop"] == found["web.shop.svc.cluster.local."]
                assert found["web"] == sorted(WEB_IPS[count])
                assert len(found["many"]) == 100
                assert found["nobody"] == socket.EAI_NONAME
                assert found["example.com"] == socket.EAI_AGAIN

    trio.run(main)
