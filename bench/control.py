"""`python -m bench.control`: the control plane's process as it is installed, in front of an API server.

Its memory with 1,000 Services of 5 pods each, and how many pods a second its webhook injects over HTTPS.
"""

from __future__ import annotations

import base64
import json
import random
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import h11
import msgspec
import trio

from bench.index import pod_object, service_object, slice_object
from bench.procs import BenchError, Proc, run_to_end, running
from manifests.injection import ENVIRONMENT_VARIABLE, as_environment
from manifests.names import CONTROL, HTTP_PORT, INJECTION_LABEL, INJECTOR, WEBHOOK_PORT
from manifests.render import render
from manifests.values import Values
from mesh_local.apiserver.api import Api
from mesh_local.apiserver.auth.authenticator import ClusterAuthenticator
from mesh_local.apiserver.auth.pki import Pki, write_kubeconfig
from mesh_local.apiserver.auth.tokens import TokenAuthority
from mesh_local.apiserver.client import LocalClient
from mesh_local.apiserver.core import Core
from mesh_local.apiserver.face.app import App
from mesh_local.apiserver.face.server import Server, server_context
from mesh_local.apiserver.registry import Registry
from mesh_local.apiserver.store import Store
from mesh_local.apiserver.types import Attributes, Decision, User
from mesh_local.kinds.builtin import BUILTIN

SYSTEM = Values().namespace
READY_S = 60.0
SETTLE_S = 3.0
_ADMIN = User("bench", groups=("system:masters",))
_WEBHOOKS = "mutatingwebhookconfigurations.admissionregistration.k8s.io"


class _Everything:
    """Nobody is refused: rights are not what is measured."""

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        return Decision(True)


@asynccontextmanager
async def api_server(directory: Path) -> AsyncIterator[tuple[LocalClient, Path]]:
    """An API server over HTTPS on loopback: a client that may do everything, and a kubeconfig."""
    pki = Pki(directory / "pki", datetime.now(UTC))
    pki.server(["127.0.0.1"])
    store = Store(directory / "state.db")
    try:

        def now() -> datetime:
            return datetime.now(UTC)

        core = Core(
            store=store,
            registry=Registry(BUILTIN),
            authorizer=_Everything(),
            plugins=(),
            now=now,
            rng=random.Random(1),
        )
        api = Api(core)
        tokens = TokenAuthority(pki.token_key(), store, now, random.Random(2))
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        key = directory / "pki"
        context = server_context(key / "apiserver.crt", key / "apiserver.key", pki.ca_path)
        server = Server(App(api, ClusterAuthenticator(tokens), address), context)
        admin = pki.client("admin", "admin", ["system:masters"])
        kubeconfig = directory / "kubeconfig"
        write_kubeconfig(
            kubeconfig, f"https://{address}", pki.ca.certificate, admin, cluster="bench", user="admin"
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, listeners, trio.Event())
            yield LocalClient(api, _ADMIN), kubeconfig
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def fill(client: LocalClient, services: int, each: int) -> None:
    """Make the namespaces, Services, pods with addresses, and EndpointSlices."""
    for namespace in (SYSTEM, *(f"ns-{n:02}" for n in range(20))):
        labels = {INJECTION_LABEL: "enabled"} if namespace == "ns-00" else {}
        await client.create("namespaces", {"metadata": {"name": namespace, "labels": labels}})
    for obj in render(Values()):
        if obj["kind"] == "CustomResourceDefinition":
            await client.create("customresourcedefinitions.apiextensions.k8s.io", obj)
        elif obj["kind"] == "MutatingWebhookConfiguration":
            await client.create(_WEBHOOKS, obj)
    for service in range(services):
        pods = [pod_object(service, number) for number in range(each)]
        for pod in pods:
            await client.create("pods", pod)
            name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
            await client.patch("pods", name, namespace, {"status": pod["status"]}, subresource="status")
        await client.create("services", service_object(service))
        await client.create("endpointslices.discovery.k8s.io", slice_object(service, pods))


@asynccontextmanager
async def control_plane(directory: Path, kubeconfig: Path) -> AsyncIterator[Proc]:
    """The process, ready. Raises BenchError."""
    env = {
        "KUBECONFIG": str(kubeconfig),
        "TRIOMESH_POD_NAME": "control-0",
        "TRIOMESH_POD_NAMESPACE": SYSTEM,
        ENVIRONMENT_VARIABLE: as_environment(Values()),
    }
    async with running(CONTROL, [sys.executable, "-m", "mesh_control"], directory, env) as process:
        deadline = trio.current_time() + READY_S
        while not await _ready():
            process.check()
            if trio.current_time() > deadline:
                raise BenchError(f"{CONTROL}: not ready within {READY_S:g} s: {process.tail()}")
            await trio.sleep(0.1)
        yield process


async def _ready() -> bool:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", HTTP_PORT) as stream:
            await stream.send_all(b"GET /healthz/ready HTTP/1.1\r\nHost: bench\r\n\r\n")
            return b" 200 " in await stream.receive_some(64)
    except OSError:
        return False


async def webhook_context(client: LocalClient) -> ssl.SSLContext:
    """What the API server trusts: the bundle in the webhook's configuration, once it is there."""
    with trio.fail_after(READY_S):
        while True:
            found = (await client.get(_WEBHOOKS, INJECTOR))["webhooks"][0]["clientConfig"].get("caBundle")
            if found:
                return ssl.create_default_context(cadata=base64.b64decode(found).decode())
            await trio.sleep(0.1)


@dataclass
class Injections:
    """What several connections have asked."""

    waits: list[float]
    until: float
    """On trio's clock."""

    async def ask(self, context: ssl.SSLContext, body: bytes) -> None:
        """Ask again and again on one connection, as the API server does."""
        name = f"{INJECTOR}.{SYSTEM}.svc"
        tcp = await trio.open_tcp_stream("127.0.0.1", WEBHOOK_PORT)
        tcp.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        stream = trio.SSLStream(tcp, context, server_hostname=name)
        head = f"POST /inject HTTP/1.1\r\nHost: {name}\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        http = h11.Connection(h11.CLIENT)
        while trio.current_time() < self.until:
            began = trio.current_time()
            await stream.send_all(request)
            http.send(h11.Request(method="POST", target="/inject", headers=[("Host", name)]))
            http.send(h11.EndOfMessage())
            answer = await _answer(stream, http)
            self.waits.append(trio.current_time() - began)
            if not answer.get("patch"):
                raise BenchError(f"expected a patch, got {answer}")
            http.start_next_cycle()
        await trio.aclose_forcefully(tcp)


async def _answer(stream: trio.abc.ReceiveStream, http: h11.Connection) -> dict[str, Any]:
    data = bytearray()
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Data):
            data += event.data
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise BenchError(f"the webhook answered {event.status_code}")
    found: dict[str, Any] = msgspec.json.decode(bytes(data))["response"]
    return found


def _review() -> bytes:
    pod = pod_object(0, 0)
    pod["metadata"] = {"generateName": "app-", "labels": pod["metadata"]["labels"]}
    pod["spec"] = {"containers": pod["spec"]["containers"]}
    del pod["status"]
    asked = {"uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "ns-00"}
    review = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {**asked, "operation": "CREATE", "object": pod},
    }
    return json.dumps(review).encode()


async def injections(context: ssl.SSLContext, connections: int, seconds: float) -> list[float]:
    """Seconds that each answer took, sorted."""
    found = Injections([], trio.current_time() + seconds)
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(found.ask, context, _review())
    return sorted(found.waits)


async def measure(services: int, each: int, seconds: float) -> None:
    """Print the figures. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="triomesh-bench-") as name:
        directory = Path(name)
        async with api_server(directory) as (client, kubeconfig):
            await fill(client, services, each)
            began = trio.current_time()
            async with control_plane(directory, kubeconfig) as process:
                ready_s = trio.current_time() - began
                await trio.sleep(SETTLE_S)
                click.echo(
                    f"{services} Services, {services * each} endpoints: ready after {ready_s:.1f} s, "
                    f"{process.rss_mb():.1f} MB"
                )
                context = await webhook_context(client)
                for connections in (1, 8):
                    cpu = process.cpu_s()
                    waits = await injections(context, connections, seconds)
                    cpu = (process.cpu_s() - cpu) / len(waits)
                    click.echo(
                        f"{connections} connections: {len(waits) / seconds:.0f} injections/s, "
                        f"p50 {waits[len(waits) // 2] * 1000:.2f} ms, p99 "
                        f"{waits[len(waits) * 99 // 100] * 1000:.2f} ms, {cpu * 1000:.2f} ms of CPU each"
                    )
                click.echo(f"afterwards {process.rss_mb():.1f} MB")


@click.command()
@click.option("--services", type=click.IntRange(1, 5000), default=1000, show_default=True)
@click.option(
    "--endpoints", type=click.IntRange(1, 250), default=5, show_default=True, help="Of each Service."
)
@click.option("--seconds", type=click.FloatRange(0.5, 60), default=5.0, show_default=True)
def main(services: int, endpoints: int, seconds: float) -> None:
    """Measure memory and injections of the control plane's process; it listens on its usual ports."""
    run_to_end(measure, services, endpoints, seconds)


if __name__ == "__main__":
    main()
