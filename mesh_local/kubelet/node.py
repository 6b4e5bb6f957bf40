"""The node's own objects: its Node, and the Lease that says it is alive."""

import logging
import os
import platform
from datetime import UTC, datetime

import trio

from mesh_local.client import Client
from mesh_local.kubelet.types import KubeletOptions
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, owner_reference, rfc3339, rfc3339_micro

logger = logging.getLogger(__name__)

KUBELET_VERSION = "v1.36.0"
LEASE_NAMESPACE = "kube-node-lease"
LEASE_S = 40
RENEW_S = 10.0
STATUS_S = 300.0
WRITE_DEADLINE_S = 10.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Type, status, reason and message of the conditions of a healthy node.
_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)


def architecture() -> str:
    """As Go and Kubernetes call it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def capacity(options: KubeletOptions) -> dict[str, str]:
    """What the host has."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    disk = os.statvfs(options.pods)
    return {
        "cpu": str(os.cpu_count() or 1),
        "ephemeral-storage": f"{disk.f_blocks * disk.f_frsize // 1024}Ki",
        "memory": f"{pages * page // 1024}Ki",
        "pods": str(options.max_pods),
    }


def node_object(options: KubeletOptions) -> Object:
    """The Node as it registers."""
    labels = {
        "beta.kubernetes.io/arch": architecture(),
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture(),
        "kubernetes.io/hostname": options.node,
        "kubernetes.io/os": "linux",
    }
    metadata = {"name": options.node, "labels": labels}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}}


def node_status(options: KubeletOptions, old: Object, now: datetime) -> Object:
    """The Node's status; conditions that stay keep the time of their last change."""
    known = {c["type"]: c for c in old.get("conditions") or ()}
    conditions = []
    for type_, value, reason, message in _CONDITIONS:
        before = known.get(type_, {})
        changed = before.get("lastTransitionTime") if before.get("status") == value else None
        conditions.append(
            {
                "type": type_,
                "status": value,
                "lastHeartbeatTime": rfc3339(now),
                "lastTransitionTime": changed or rfc3339(now),
                "reason": reason,
                "message": message,
            }
        )
    addresses = [{"type": "InternalIP", "address": ip} for ip in options.node_ips]
    system = platform.uname()
    return {
        "addresses": [*addresses, {"type": "Hostname", "address": options.node}],
        "allocatable": capacity(options),
        "capacity": capacity(options),
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "nodeInfo": {
            "architecture": architecture(),
            "bootID": "",
            "containerRuntimeVersion": "triomesh://0.1.0",
            "kernelVersion": system.release,
            "kubeProxyVersion": "",
            "kubeletVersion": KUBELET_VERSION,
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": system.system,
            "systemUUID": "",
        },
    }


async def register(client: Client, options: KubeletOptions) -> Object:
    """Make the Node, or bring the labels of the present one up to date; write its status. Raises ApiError."""
    wanted = node_object(options)
    try:
        node = await client.create("nodes", wanted)
    except ApiError as exc:
        if exc.reason != "AlreadyExists":
            raise
        labels = {"metadata": {"labels": wanted["metadata"]["labels"]}}
        node = await client.patch("nodes", options.node, "", labels)
    return await write_status(client, options, node)


async def write_status(client: Client, options: KubeletOptions, node: Object) -> Object:
    """Raises ApiError."""
    status = node_status(options, node.get("status") or {}, datetime.now(UTC))
    return await client.patch("nodes", options.node, "", {"status": status}, subresource="status")


async def keep_alive(client: Client, options: KubeletOptions, node: Object) -> None:
    """Renew the node's Lease every 10 s, and its status every 5 min, until cancelled."""
    status_at = trio.current_time() + STATUS_S
    while True:
        try:
            with trio.fail_after(WRITE_DEADLINE_S):
                await _renew(client, options, node)
                if trio.current_time() >= status_at:
                    node = await write_status(client, options, await client.get("nodes", options.node))
                    status_at = trio.current_time() + STATUS_S
        except (ApiError, trio.TooSlowError) as exc:
            logger.warning("The Lease of node %s is not renewed: %s", options.node, exc)
        await trio.sleep(RENEW_S)


async def _renew(client: Client, options: KubeletOptions, node: Object) -> None:
    now = rfc3339_micro(datetime.now(UTC))
    lease = "leases.coordination.k8s.io"
    try:
        await client.patch(lease, options.node, LEASE_NAMESPACE, {"spec": {"renewTime": now}})
    except ApiError as exc:
        if exc.code != 404:
            raise
        owner = owner_reference({"apiVersion": "v1", "kind": "Node"} | node, controller=False, block=False)
        for name in ("controller", "blockOwnerDeletion"):
            del owner[name]
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": options.node, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
            "spec": {
                "holderIdentity": options.node,
                "leaseDurationSeconds": LEASE_S,
                "renewTime": now,
            },
        }
        await client.create(lease, body, LEASE_NAMESPACE)
