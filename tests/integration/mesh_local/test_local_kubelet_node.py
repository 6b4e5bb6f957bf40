"""The node's own objects, against an API server in process."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import trio

from mesh_local.client import Client
from mesh_local.kubelet import node
from mesh_local.kubelet.types import KubeletOptions
from mesh_local.machinery.objects import Object, condition
from tests.support.local_api import local_api
from tests.support.local_kubelet import MOMENT

LEASES = "leases.coordination.k8s.io"


def with_client(tmp_path: Path, body: Any) -> None:
    options = KubeletOptions("node1", tmp_path, "/netns", ("10.0.0.1", "fd00::1"))

    async def main() -> None:
        async with local_api(tmp_path) as api:
            await api.client.create("namespaces", {"metadata": {"name": node.LEASE_NAMESPACE}})
            await body(api.client, options)

    trio.run(main)


def test_a_node_registers_once_and_keeps_what_others_wrote(tmp_path: Path) -> None:
    async def body(client: Client, options: KubeletOptions) -> None:
        first = await node.register(client, options)
        ready = condition(first, "Ready")
        assert ready is not None
        assert (ready["status"], ready["reason"]) == ("True", "KubeletReady")
        assert first["metadata"]["labels"]["kubernetes.io/hostname"] == "node1"
        assert [a["address"] for a in first["status"]["addresses"]] == ["10.0.0.1", "fd00::1", "node1"]
        assert first["status"]["capacity"]["pods"] == "110"
        await client.patch("nodes", "node1", "", {"metadata": {"labels": {"zone": "a"}}})
        again = await node.register(client, options)
        assert again["metadata"]["labels"]["zone"] == "a"
        assert again["metadata"]["uid"] == first["metadata"]["uid"]

    with_client(tmp_path, body)


def test_conditions_that_stay_keep_the_time_of_their_change(tmp_path: Path) -> None:
    options = KubeletOptions("node1", tmp_path, "/netns", ("10.0.0.1",))
    first = node.node_status(options, {}, MOMENT)
    first["conditions"][3]["status"] = "Unknown"
    later = node.node_status(options, first, MOMENT + timedelta(seconds=10))
    changes = [c["lastTransitionTime"] for c in later["conditions"]]
    assert changes == ["2026-01-02T03:04:05Z"] * 3 + ["2026-01-02T03:04:15Z"]
    assert {c["lastHeartbeatTime"] for c in later["conditions"]} == {"2026-01-02T03:04:15Z"}


def test_the_lease_is_made_and_renewed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(node, "RENEW_S", 0.01)

    async def lease(client: Client) -> Object:
        with trio.fail_after(10):
            while not (found := (await client.list(LEASES, node.LEASE_NAMESPACE)).items):
                await trio.sleep(0.01)
            return found[0]

    async def body(client: Client, options: KubeletOptions) -> None:
        registered = await node.register(client, options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.keep_alive, client, options, registered)
            first = await lease(client)
            assert first["spec"]["holderIdentity"] == "node1"
            assert first["metadata"]["ownerReferences"][0]["uid"] == registered["metadata"]["uid"]
            with trio.fail_after(10):
                while (await lease(client))["spec"]["renewTime"] == first["spec"]["renewTime"]:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    with_client(tmp_path, body)
