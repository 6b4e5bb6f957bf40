"""Every controller against an in-process API server, with a kubelet that only writes status."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import trio

from mesh_local.apiserver.admission.lifecycle import NamespaceLifecycle
from mesh_local.apiserver.auth.bootstrap import SCHEDULER, bootstrap_objects, controller_user
from mesh_local.apiserver.auth.rbac import RbacAuthorizer
from mesh_local.apiserver.client import LocalClient
from mesh_local.apiserver.store import Store
from mesh_local.controllers.run import run_controllers
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import (
    Object,
    annotations_of,
    dig,
    is_deleting,
    meta,
    name_of,
    namespace_of,
    rfc3339,
)
from tests.support.local_api import LocalApi, local_api

NODE = "node1"
ROOT_CA = "-----BEGIN CERTIFICATE-----\nroot\n-----END CERTIFICATE-----\n"
# On a pod: the exit code with which its container ends; without it, it runs on.
EXIT = "test/exit"
# On a pod: it never becomes ready.
UNREADY = "test/unready"
START_S = 0.3
DEADLINE_S = 300.0


@dataclass
class Cluster:
    """What `cluster` starts; time is that of trio's clock."""

    api: LocalApi
    client: LocalClient
    now: Callable[[], datetime]

    async def until(self, check: Callable[[], object], what: str = "") -> object:
        """Wait until `check`, an async function, returns something true."""
        with trio.move_on_after(DEADLINE_S):
            while True:
                found = await check()  # type: ignore[misc]
                if found:
                    return found
                await trio.sleep(0.1)
        raise AssertionError(f"not within {DEADLINE_S} s: {what}")

    async def get(self, resource: str, name: str, namespace: str = "t") -> Object | None:
        try:
            return await self.client.get(resource, name, namespace)
        except ApiError as exc:
            if exc.code == 404:
                return None
            raise

    async def events(self, reason: str, namespace: str = "t") -> list[str]:
        found = (await self.client.list("events", namespace)).items
        return [e["message"] for e in found if e["reason"] == reason]

    async def list(self, resource: str, namespace: str = "t", labels: str = "") -> Sequence[Object]:
        return (await self.client.list(resource, namespace, labels=labels)).items


class _Reader:
    """The store, which is opened after what reads it is made."""

    store: Store

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None:
        return self.store.get(resource, name, namespace)

    def list(self, resource: str, namespace: str = "") -> Sequence[Object]:
        return self.store.list(resource, namespace)


@asynccontextmanager
async def cluster(directory: Path, *, node: Object | None = None) -> AsyncIterator[Cluster]:
    """A namespace `t`, one node, all controllers and the fake kubelet."""
    base, t0 = datetime.now(UTC), trio.current_time()

    def now() -> datetime:
        return base + timedelta(seconds=trio.current_time() - t0)

    reader = _Reader()
    authorizer = RbacAuthorizer(reader, lambda: reader.store.version)
    plugins = (NamespaceLifecycle(reader),)
    async with local_api(directory, authorizer=authorizer, plugins=plugins) as api:
        reader.store = api.store
        for obj in bootstrap_objects():
            await api.client.create(f"{obj['kind'].lower()}s.rbac.authorization.k8s.io", obj)
        await api.client.create("namespaces", {"metadata": {"name": "t"}})
        await _register(api.client, node or {})
        async with trio.open_nursery() as nursery:
            await nursery.start(_controllers, api, now)
            nursery.start_soon(_kubelet, api.client, now)
            made = Cluster(api, api.client, now)
            await made.until(lambda: made.get("serviceaccounts", "default"), "the account")
            yield made
            nursery.cancel_scope.cancel()


async def _register(client: LocalClient, node: Object) -> None:
    spec = node.get("spec") or {}
    labels = dig(node, "metadata", "labels", default={"kubernetes.io/hostname": NODE})
    created = await client.create("nodes", {"metadata": {"name": NODE, "labels": labels}, "spec": spec})
    allocatable = dig(node, "status", "allocatable", default={"cpu": "4", "memory": "8Gi", "pods": "110"})
    status = {"allocatable": allocatable, "capacity": allocatable}
    await client.update("nodes", {**created, "status": status}, subresource="status")


async def _controllers(
    api: LocalApi, now: Callable[[], datetime], task_status: trio.TaskStatus[None]
) -> None:
    def client_for(name: str) -> LocalClient:
        user = SCHEDULER if name == "kube-scheduler" else controller_user(name)
        return LocalClient(api.api, user)

    await run_controllers(
        client_for,
        now=now,
        rng=random.Random(7),
        root_ca_pem=ROOT_CA,
        kinds=lambda: api.api.core.registry.kinds,
        host="vm",
        task_status=task_status,
    )


async def _kubelet(client: LocalClient, now: Callable[[], datetime]) -> None:
    addresses = count(1)
    started: set[str] = set()
    ending: set[str] = set()
    async with trio.open_nursery() as nursery, client.watch("pods") as events:
        async for event in events:
            pod = event.object
            uid = meta(pod)["uid"]
            if event.type == "DELETED" or not dig(pod, "spec", "nodeName"):
                continue
            if is_deleting(pod) and uid not in ending:
                ending.add(uid)
                nursery.start_soon(_end, client, pod)
            elif not is_deleting(pod) and uid not in started:
                started.add(uid)
                nursery.start_soon(_start, client, pod, f"10.0.0.{next(addresses)}", now)


async def _start(client: LocalClient, pod: Object, ip: str, now: Callable[[], datetime]) -> None:
    await trio.sleep(START_S)
    status: Object = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}
    await _status(client, pod, status, ready=False, now=now)
    await trio.sleep(START_S)
    code = annotations_of(pod).get(EXIT)
    if code is None:
        if UNREADY not in annotations_of(pod):
            await _status(client, pod, status, ready=True, now=now)
        return
    ended = {"exitCode": int(code), "finishedAt": rfc3339(now()), "startedAt": rfc3339(now())}
    name = pod["spec"]["containers"][0]["name"]
    status |= {
        "phase": "Failed" if int(code) else "Succeeded",
        "containerStatuses": [
            {
                "name": name,
                "image": "x",
                "imageID": "x",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": ended},
            }
        ],
    }
    await _status(client, pod, status, ready=False, now=now)


async def _status(
    client: LocalClient, pod: Object, status: Object, *, ready: bool, now: Callable[[], datetime]
) -> None:
    said = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "lastProbeTime": None,
        "lastTransitionTime": rfc3339(now()),
    }
    patch = {"status": {**status, "conditions": [said]}}
    try:
        await client.patch(
            "pods", name_of(pod), namespace_of(pod), patch, type="strategic", subresource="status"
        )
    except ApiError as exc:
        if exc.code != 404:
            raise


async def _end(client: LocalClient, pod: Object) -> None:
    await trio.sleep(float(meta(pod).get("deletionGracePeriodSeconds") or 0))
    try:
        await client.delete("pods", name_of(pod), namespace_of(pod), grace_s=0)
    except ApiError as exc:
        if exc.code not in (404, 409):
            raise


def deployment(name: str = "web", *, replicas: int = 2, image: str = "x:1", **spec: object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "t"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "c", "image": image}]},
            },
            **spec,
        },
    }
