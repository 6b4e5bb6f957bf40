"""A kubelet with real processes and namespaces against an API server in process."""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from mesh_local.apiserver.client import LocalClient
from mesh_local.controllers.informer import Informers
from mesh_local.kubelet.kubelet import purge, run_kubelet
from mesh_local.kubelet.lifecycle import Backoff
from mesh_local.kubelet.logs import PodLogs
from mesh_local.kubelet.runtime import Runtime
from mesh_local.kubelet.types import KubeletOptions, Sources
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, dig, name_of, new_uid, uid_of
from mesh_local.network.node import NetworkOptions, NodeNetwork
from tests.support.local_api import local_api

NODE = "node1"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OPTIONS = KubeletOptions(NODE, Path("/nonexistent"), "/netns", ("10.0.0.1",), ("10.96.0.10",))
DEADLINE_S = 25.0
RNG = random.Random(os.getpid())


@dataclass
class Events:
    """A recorder that keeps what it is told."""

    seen: list[tuple[str, str, str, str]] = field(default_factory=list)

    def event(self, obj: Object, type: str, reason: str, message: str, *, field_path: str = "") -> None:
        self.seen.append((name_of(obj), reason, message, field_path))

    def reasons(self, pod: str) -> list[str]:
        return [reason for name, reason, _, _ in self.seen if name == pod]

    def messages(self, pod: str, reason: str) -> list[str]:
        return [text for name, why, text, _ in self.seen if (name, why) == (pod, reason)]


@dataclass
class Answers:
    """A client whose TokenRequests are answered here: the API server of these tests has no keys."""

    inner: LocalClient
    tokens: int = 0
    life_s: float = 3600.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def create(
        self, resource: str, obj: Object, namespace: str = "", *, subresource: str = ""
    ) -> Object:
        if subresource != "token":
            return await self.inner.create(resource, obj, namespace, subresource=subresource)
        self.tokens += 1
        expires = datetime.fromtimestamp(datetime.now(UTC).timestamp() + self.life_s, UTC)
        audience = ",".join(obj["spec"]["audiences"])
        text = f"token-{self.tokens}-{audience}-{obj['spec']['boundObjectRef']['name']}"
        return {"status": {"token": text, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}}


@dataclass
class Logs:
    """LogOptions with everything left out by default."""

    container: str = ""
    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    since_seconds: int | None = None
    since_time: str = ""
    tail_lines: int | None = None
    limit_bytes: int | None = None


class NodeUnderTest:
    """One node: its API, and what tests do with it."""

    def __init__(
        self, client: LocalClient, network: NodeNetwork, options: KubeletOptions, nursery: trio.Nursery
    ) -> None:
        self.client = client
        self.network = network
        self.options = options
        self.events = Events()
        self.answers = Answers(client)
        self.runtime = Runtime(options.pods)
        self.logs = PodLogs(self.runtime)
        self._nursery = nursery
        self._kubelet: trio.CancelScope | None = None

    async def start_kubelet(self) -> None:
        self._kubelet = await self._nursery.start(self._run)

    async def background(self, task: Any) -> None:
        await self._nursery.start(task)

    def stop_kubelet(self) -> None:
        """As if the runtime were killed: containers stay."""
        assert self._kubelet is not None
        self._kubelet.cancel()

    async def _run(self, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            informers = Informers(self.client, RNG)
            sources = Sources(*(informers.of(kind) for kind in ("pods", "configmaps", "secrets", "services")))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(informers.run)
                await nursery.start(
                    run_kubelet,
                    self.options,
                    self.answers,
                    self.network,
                    self.network.dialer(),
                    self.events,
                    sources,
                    self.runtime,
                )
                task_status.started(scope)

    async def create(self, name: str, *containers: Object, **spec: Any) -> Object:
        """Create a pod on this node."""
        body = {
            "metadata": {"name": name, "namespace": "t"},
            "spec": {"containers": list(containers), "nodeName": NODE, **spec},
        }
        return await self.client.create("pods", body, "t")

    async def get(self, name: str) -> Object | None:
        try:
            return await self.client.get("pods", name, "t")
        except ApiError as exc:
            if exc.code == 404:
                return None
            raise

    async def until(self, name: str, check: Any, what: str = "") -> Any:
        """Wait until `check(pod)` is true; the pod as it is then."""
        pod: Object | None = None
        with trio.move_on_after(DEADLINE_S):
            while True:
                pod = await self.get(name)
                if check(pod):
                    return pod
                await trio.sleep(0.02)
        raise AssertionError(
            f"not within {DEADLINE_S:.0f} s: {what}; {dig(pod, 'status')} {self.events.seen}"
        )

    async def ready(self, name: str) -> Object:
        found: Object = await self.until(name, is_ready, "ready")
        return found

    async def phase(self, name: str, wanted: str) -> Object:
        found: Object = await self.until(name, lambda p: dig(p, "status", "phase") == wanted, wanted)
        return found

    async def gone(self, name: str) -> None:
        await self.until(name, lambda p: p is None, "gone")

    async def inside(self, name: str, script: str, container: str = "c") -> str:
        """What a shell script in the pod's running container prints."""
        uid = uid_of(await self.client.get("pods", name, "t"))
        running = self.runtime.load(uid, container, self.runtime.attempts(uid, container)[-1])
        assert running is not None
        return (await self.runtime.exec_sync(running, ["sh", "-c", script]))[1]

    async def log(self, name: str, **options: Any) -> str:
        pod = await self.client.get("pods", name, "t")
        async with self.logs.open_log(pod, Logs(**options)) as chunks:
            return b"".join([chunk async for chunk in chunks]).decode()

    async def log_has(self, name: str, text: str, **options: Any) -> str:
        with trio.move_on_after(DEADLINE_S):
            while True:
                try:
                    found = await self.log(name, **options)
                except ApiError:
                    found = ""
                if text in found:
                    return found
                await trio.sleep(0.02)
        raise AssertionError(f"{text!r} is not in the log: {found!r}")


def is_ready(pod: Object | None) -> bool:
    conditions = dig(pod, "status", "conditions", default=[])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def container(script: str, name: str = "c", **more: Any) -> Object:
    """A container that runs a shell script."""
    return {"name": name, "image": "none", "command": ["sh", "-c", script], **more}


Body = Callable[[NodeUnderTest], Awaitable[None]]

# A shell that ends at once on SIGTERM, as few do.
OBEDIENT = 'trap "exit 0" TERM; while true; do sleep 0.05; done'


def state_of(pod: Object | None, name: str = "c") -> Object:
    """The status of one container."""
    for key in ("containerStatuses", "initContainerStatuses"):
        for found in dig(pod, "status", key, default=[]):
            if found["name"] == name:
                return dict(found)
    return {}


@asynccontextmanager
async def node(
    directory: Path,
    *,
    backoff: Backoff | None = None,
    prefix: Path | None = None,
    hidden: tuple[Path, ...] = (),
) -> AsyncIterator[NodeUnderTest]:
    """A namespace `t`, a node with its network, and a running kubelet; at the end nothing is left of them."""
    network = NodeNetwork(NetworkOptions(f"k{new_uid(RNG)[:6]}", directory, "ipv4"))
    options = KubeletOptions(
        node=NODE,
        pods=directory / "pods",
        netns=network.netns,
        node_ips=network.node_ips,
        dns_ips=network.dns_ips,
        prefix=prefix,
        hidden=hidden,
        backoff=backoff or Backoff(),
    )
    async with local_api(directory) as api:
        for name in ("t", "kube-node-lease"):
            await api.client.create("namespaces", {"metadata": {"name": name}})
        try:
            with trio.fail_after(30):
                await network.up()
            async with trio.open_nursery() as nursery:
                made = NodeUnderTest(api.client, network, options, nursery)
                await made.start_kubelet()
                yield made
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await purge(options.pods)
                await network.down()


def processes(text: str) -> Sequence[int]:
    """Running processes whose command line has `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def with_node(tmp_path: Path, body: Body, **options: Any) -> None:
    """Run `body(node)`; at the end no process and no mount of the node is left."""

    async def main() -> None:
        async with node(tmp_path, **options) as made:
            await body(made)

    trio.run(main)
    assert not processes(str(tmp_path))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not (tmp_path / "pods").exists()
