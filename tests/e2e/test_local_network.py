"""The local cluster's pods: real namespaces, real packets, restarts and remains."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest
import trio
import trio.testing

from mesh_local.network import addressing, links, namespace
from mesh_local.network.namespace import HostDialer, NamespaceDialer, open_listener, run_inside
from mesh_local.network.node import NetworkOptions, NodeNetwork, remains
from mesh_local.network.types import NetworkError, PacketFaults
from tests.support.local_node import (
    NAME,
    OTHER,
    apply,
    cluster,
    failure,
    greeters,
    hear,
    hear_by,
    new_uid,
    nothing_stays,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@pytest.fixture(autouse=True)
def _nothing_stays():
    with nothing_stays():
        yield


def test_pods_reach_each_other_and_the_node(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            a, b = await network.attach(new_uid()), await network.attach(new_uid())
            assert (a.ips, b.ips) == (("10.244.0.2", "fd10:244::2"), ("10.244.0.3", "fd10:244::3"))
            async with greeters(80, b=b):
                for mine, other in zip(a.ips, b.ips, strict=True):
                    assert await hear(a.netns, other, 80) == f"b {mine}"
                for node, other in zip(network.node_ips, b.ips, strict=True):
                    assert await hear_by(network.dialer(), other, 80) == f"b {node}"

    trio.run(main)


@pytest.mark.parametrize(("families", "ips"), [("ipv4", ["10.244.0.2"]), ("ipv6", ["fd10:244::2"])])
def test_single_families(tmp_path, families, ips):
    async def main():
        async with cluster(tmp_path, families) as network:
            a, b = await network.attach(new_uid()), await network.attach(new_uid())
            assert list(a.ips) == ips
            async with greeters(80, a=a):
                assert await hear(b.netns, a.ips[0], 80) == f"a {b.ips[0]}"
            await apply(network)

    trio.run(main)


def has_netem():
    script = "ip link set lo up && tc qdisc add dev lo root netem delay 1ms"
    return subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True).returncode == 0


def test_packets_are_lost_as_told(tmp_path):
    async def reaches(client, server):
        with trio.move_on_after(0.4) as scope:
            assert await hear(client.netns, server.ips[0], 80)
            assert await hear(client.netns, server.ips[1], 80)
        return not scope.cancelled_caught

    async def main():
        async with cluster(tmp_path) as network:
            uid = new_uid()
            server, client = await network.attach(uid), await network.attach(new_uid())
            async with greeters(80, server=server, client=client):
                assert await reaches(client, server)
                await network.set_faults(uid, PacketFaults(loss_percent=100))
                assert not await reaches(client, server)
                await apply(network)  # the rules of Services are another matter
                again = NodeNetwork(NetworkOptions(NAME, tmp_path, "dual"))
                await again.up()
                assert not await reaches(client, server)
                await again.set_faults(uid, PacketFaults())
                assert await reaches(client, server)
                with pytest.raises(NetworkError, match="is not attached"):
                    await again.set_faults(new_uid(), PacketFaults(loss_percent=1))
                if not has_netem():
                    with pytest.raises(NetworkError, match="this kernel has no netem"):
                        await again.set_faults(uid, PacketFaults(delay_ms=1))
                else:
                    await again.set_faults(uid, PacketFaults(delay_ms=1))
                assert await reaches(client, server)

    trio.run(main)


def test_two_clusters_with_equal_addresses(tmp_path):
    (tmp_path / "b").mkdir()

    async def main():
        async with cluster(tmp_path) as one, cluster(tmp_path / "b", name=OTHER) as two:
            pods = [[await network.attach(new_uid()) for _ in range(2)] for network in (one, two)]
            assert [pod.ips for pod in pods[0]] == [pod.ips for pod in pods[1]]
            async with greeters(80, one=pods[0][0]), greeters(80, two=pods[1][0]):
                for name, (server, client) in zip(("one", "two"), pods, strict=True):
                    assert (await hear(client.netns, server.ips[1], 80)).startswith(name)

    trio.run(main)


def test_a_new_runtime_adopts_pods_and_removes_remains(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            uid, half, lost = new_uid(), new_uid(), new_uid()
            kept, client = await network.attach(uid), await network.attach(new_uid())
            # A kill in the middle of an attachment: no route to the pod yet.
            broken = await network.attach(half)
            link = addressing.link_name(half)
            run_inside(
                network.netns, lambda: subprocess.run(["ip", "route", "flush", "dev", link], check=True)
            )
            # A namespace without a record, one that is only a file, and a record without a namespace.
            namespace.create(f"tm-{NAME}-00000000")
            await trio.Path(namespace.path_of(f"tm-{NAME}-00000001")).touch()
            await network.attach(lost)
            namespace.delete(addressing.pod_name(NAME, lost))

            async with greeters(80, kept=kept):
                stream = await NamespaceDialer(client.netns).dial(kept.ips[0], 80)
                again = NodeNetwork(NetworkOptions(NAME, tmp_path, "dual"))
                await again.up()
                async with stream:
                    assert await stream.receive_some() == b"kept 10.244.0.3"
                assert await again.attach(uid) == kept
                assert len(remains(NAME)) == 3
                assert (await again.attach(half)).ips != broken.ips
                await again.up()
                assert await hear(client.netns, kept.ips[1], 80)
            with pytest.raises(NetworkError, match="take it down first"):
                await NodeNetwork(NetworkOptions(NAME, tmp_path, "ipv4")).up()

    trio.run(main)


def test_down_needs_no_up_and_cuts_off_what_still_runs(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            pod = await network.attach(new_uid())
            left = run_inside(pod.netns, lambda: subprocess.Popen(["sleep", "60"]))
            try:
                await NodeNetwork(NetworkOptions(NAME, tmp_path, "dual")).down()
                assert remains(NAME) == []
                inside = run_inside(f"/proc/{left.pid}/ns/net", socket.if_nameindex)
                assert [name for _, name in inside] == ["lo"]
            finally:
                left.kill()
                left.wait()
            assert list(tmp_path.iterdir()) == []
            await network.down()

    trio.run(main)


ATTACH_FOR_EVER = """
import sys, uuid
from pathlib import Path
import trio
from mesh_local.network.node import NetworkOptions, NodeNetwork

async def main():
    network = NodeNetwork(NetworkOptions(sys.argv[1], Path(sys.argv[2]), "dual"))
    await network.up()
    while True:
        uids = [str(uuid.uuid4()) for _ in range(3)]
        for uid in uids:
            print((await network.attach(uid)).netns, flush=True)
        for uid in uids[1:]:
            await network.detach(uid)

trio.run(main)
"""


@pytest.mark.parametrize("attachments", [1, 2, 5])
def test_a_killed_runtime_can_be_followed_and_taken_down(tmp_path, attachments):
    command = [sys.executable, "-c", ATTACH_FOR_EVER, NAME, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as runtime:
        for _ in range(attachments):
            assert runtime.stdout.readline()
        runtime.kill()

    async def main():
        async with cluster(tmp_path) as network:
            pods = [await network.attach(new_uid()) for _ in range(2)]
            async with greeters(80, server=pods[0]):
                assert await hear(pods[1].netns, pods[0].ips[1], 80)

    trio.run(main)


def test_detach_frees_and_is_idempotent(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            uid = new_uid()
            first = await network.attach(uid)
            assert await network.attach(uid) == first
            await network.detach(uid)
            await network.detach(uid)
            assert not await trio.Path(first.netns).exists()
            assert await failure(network.netns, first.ips[0], 80) in (errno.ENETUNREACH, errno.EHOSTUNREACH)
            assert (await network.attach(uid)).ips != first.ips

    trio.run(main)


def test_a_failed_attachment_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise NetworkError("no more links")

    async def main():
        async with cluster(tmp_path) as network:
            with monkeypatch.context() as patched:
                patched.setattr(links, "configure_pod", broken)
                with pytest.raises(NetworkError, match="no more links"):
                    await network.attach(new_uid())
            assert remains(NAME) == [f"tm-{NAME}-node"]
            names = run_inside(network.netns, socket.if_nameindex)
            assert {name for _, name in names} == {"lo", "void0", "void1"}
            assert await network.attach(new_uid())

    trio.run(main)


def test_cancellation_does_not_tear_an_attachment(tmp_path):
    async def main():
        async with cluster(tmp_path) as network:
            uid = new_uid()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(network.attach, uid)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            pod = await network.attach(uid)
            async with greeters(80, pod=pod):
                assert await hear_by(network.dialer(), pod.ips[0], 80)
                with trio.move_on_after(0) as scope:
                    await NamespaceDialer(pod.netns).dial(pod.ips[0], 80)
                assert scope.cancelled_caught

    trio.run(main)


def test_namespaces_stay_in_their_threads(tmp_path):
    def here():
        return os.readlink("/proc/thread-self/ns/net")

    async def main():
        before = here()
        async with cluster(tmp_path) as network:
            inside = await namespace.in_namespace(network.netns, here)
            assert inside != before
            async with trio.open_nursery() as nursery:
                seen = []

                async def look():
                    seen.append(await trio.to_thread.run_sync(here))

                for _ in range(20):
                    nursery.start_soon(look)
            assert set(seen) == {here()} == {before}

    trio.run(main)


def test_errors_say_what_and_where(tmp_path):
    async def main():
        with pytest.raises(
            NetworkError, match="cannot enter network namespace /run/netns/tm-none: No such file"
        ):
            run_inside("/run/netns/tm-none", lambda: None)
        with pytest.raises(OSError, match="cannot enter"):
            await NamespaceDialer("/run/netns/tm-none").dial("10.0.0.1", 80)
        with pytest.raises(OSError, match="not an IP address: localhost"):
            await HostDialer().dial("localhost", 80)
        with pytest.raises(NetworkError, match="is not up"):
            await NodeNetwork(NetworkOptions(NAME, tmp_path)).attach(new_uid())
        async with cluster(tmp_path, "ipv4") as network:
            with pytest.raises(NetworkError, match=r"iptables-restore failed \(\d\): .*nonsense"):
                await network.restore({4: "nonsense\n"})
            with pytest.raises(OSError, match="Cannot assign"):
                await open_listener(network.netns, "10.244.0.99", 80)

    trio.run(main)
