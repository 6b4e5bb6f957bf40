"""The kubelet: keeps the pods of one node as the API says."""

import logging
from collections.abc import Mapping
from pathlib import Path

import trio

from mesh_local.client import Client
from mesh_local.kubelet import mounts, node
from mesh_local.kubelet.fields import Node
from mesh_local.kubelet.host import Host
from mesh_local.kubelet.runtime import Runtime
from mesh_local.kubelet.types import KubeletOptions, Recorder, Sources
from mesh_local.kubelet.worker import PodWorker
from mesh_local.machinery.objects import Object, dig, is_deleting, meta, name_of, namespace_of, uid_of
from mesh_local.network.types import Dialer, NetworkError, PodNetwork

logger = logging.getLogger(__name__)

WORKER_RETRY_S = 5.0
SYNC_DEADLINE_S = 60.0


async def run_kubelet(
    options: KubeletOptions,
    client: Client,
    network: PodNetwork,
    dialer: Dialer,
    recorder: Recorder,
    sources: Sources,
    runtime: Runtime,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the node until cancelled. Containers outlive this: the next kubelet goes on with them.

    Args:
        recorder: with component `kubelet` and the node as host.
        sources: running informers.
        runtime: of `options.pods`; `logs.PodLogs` reads from the same.
        task_status: told when the node is registered and ready for pods.

    Raises:
        ApiError: the node cannot be registered.
        trio.TooSlowError: the sources do not get their first list.
    """
    with trio.fail_after(SYNC_DEADLINE_S):
        for source in (sources.pods, sources.config_maps, sources.secrets, sources.services):
            await source.synced.wait()
        registered = await node.register(client, options)
    identity = Node(options.node, options.node_ips, node.capacity(options))
    host = Host(options, client, runtime, network, dialer, recorder, sources, identity, mounts.host_mounts())
    async with trio.open_nursery() as nursery:
        pods = _Pods(host, nursery)
        await pods.remove_leftovers()
        pods.follow()
        nursery.start_soon(node.keep_alive, client, options, registered)
        task_status.started()


class _Pods:
    """The workers of the pods of this node."""

    def __init__(self, host: Host, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._workers: dict[str, PodWorker] = {}

    def follow(self) -> None:
        """Take over every change from now on, and what is there."""
        sources = self._host.sources
        sources.pods.on_change(self._pod_changed)
        for source in (sources.config_maps, sources.secrets):
            source.on_change(self._object_changed)

    def _is_ours(self, pod: Object) -> bool:
        return bool(dig(pod, "spec", "nodeName") == self._host.options.node)

    async def remove_leftovers(self) -> None:
        """Remove what a former kubelet left of pods that are not in the API any more."""
        wanted = {uid_of(pod) for pod in self._host.sources.pods.list() if self._is_ours(pod)}
        for uid in self._host.runtime.uids():
            if uid in wanted:
                continue
            logger.info("Removing what is left of pod %s", uid)
            await self._host.runtime.remove_pod(uid)
            try:
                await self._host.network.detach(uid)
            except NetworkError as exc:
                logger.error("The network of pod %s cannot be removed: %s", uid, exc)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            worker = self._workers.get(uid_of(old or {}))
            if worker is not None:
                worker.removed()
        elif self._is_ours(new):
            worker = self._workers.get(uid_of(new))
            if worker is None and not self._is_finished(new):
                worker = self._workers[uid_of(new)] = PodWorker(self._host, new)
                self._nursery.start_soon(self._run, worker, new)
            elif worker is not None:
                worker.update(new)

    def _is_finished(self, pod: Object) -> bool:
        """Whether the node has done its part, and only a finalizer keeps the pod in the API."""
        left = self._host.runtime.pod_directory(uid_of(pod)).exists()
        return is_deleting(pod) and meta(pod).get("deletionGracePeriodSeconds") == 0 and not left

    def _object_changed(self, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None and _content(old) == _content(new):
            return
        namespace = namespace_of(new or old or {})
        for worker in self._workers.values():
            if worker.namespace == namespace:
                worker.objects_changed()

    async def _run(self, worker: PodWorker, pod: Object) -> None:
        """Run a worker to its end; one that fails begins again, as after a restart of the kubelet."""
        uid = uid_of(pod)
        while True:
            try:
                await worker.run()
                del self._workers[uid]
                return
            except Exception:
                logger.exception("The worker of pod %s/%s failed", namespace_of(pod), name_of(pod))
            await trio.sleep(WORKER_RETRY_S)
            newest = self._host.sources.pods.get(name_of(pod), namespace_of(pod))
            if newest is None or uid_of(newest) != uid:
                worker.removed()
            else:
                worker = self._workers[uid] = PodWorker(self._host, newest)


def _content(obj: Object) -> Mapping[str, object]:
    return {key: obj.get(key) for key in ("data", "binaryData")}


async def purge(pods: Path) -> None:
    """End all containers below a directory and remove it, whichever runtime started them.

    Raises:
        OSError: something cannot be removed; all the rest is.
    """
    runtime = Runtime(pods)
    failed: list[OSError] = []

    async def remove(uid: str) -> None:
        try:
            await runtime.remove_pod(uid)
        except OSError as exc:
            failed.append(exc)

    async with trio.open_nursery() as nursery:
        for uid in runtime.uids():
            nursery.start_soon(remove, uid)
    if failed:
        raise failed[0]
    runtime.close()
