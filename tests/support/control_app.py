"""A whole replica of the control plane in process, and an API server that enforces the rendered roles."""

import json
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import trio

from certs import workload
from certs.credentials import Credentials
from manifests import render
from manifests.injection import injector_values
from manifests.names import CONTROL, SYSTEM_NAMESPACE
from manifests.values import Values
from mesh_control.app import App
from mesh_control.settings import ROLES, RoleName, Settings
from mesh_local.apiserver.types import Attributes, Authorizer, Decision, User
from mesh_ops.log_writer import LogWriter
from tests.support.control_api import ControlApi, until
from tests.support.control_ca import DOMAIN, port_of, signer

ACCOUNT = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{CONTROL}"
_INSTALLED = {
    "CustomResourceDefinition": "customresourcedefinitions.apiextensions.k8s.io",
    "ServiceAccount": "serviceaccounts",
    "ClusterRole": "clusterroles.rbac.authorization.k8s.io",
    "ClusterRoleBinding": "clusterrolebindings.rbac.authorization.k8s.io",
    "Role": "roles.rbac.authorization.k8s.io",
    "RoleBinding": "rolebindings.rbac.authorization.k8s.io",
    "MutatingWebhookConfiguration": "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "ValidatingWebhookConfiguration": "validatingwebhookconfigurations.admissionregistration.k8s.io",
}


class Call(NamedTuple):
    """What RBAC was asked about the control plane."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


@dataclass
class Witness:
    """An authoriser that notes what our account asks."""

    authorizer: Authorizer
    calls: set[Call] = field(default_factory=set)
    refused: set[Call] = field(default_factory=set)

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        decision = self.authorizer.authorize(user, attributes)
        if user.name == ACCOUNT:
            a = attributes
            resource = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
            call = Call(a.verb, a.group, resource or a.path, a.namespace, a.name)
            (self.calls if decision.allowed else self.refused).add(call)
        return decision


@dataclass
class Replica:
    """A running replica, and ways to ask it."""

    api: ControlApi
    app: App
    ports: dict[int, int]
    """Real ports by the ones they stand for."""
    directory: Path
    ended: trio.Event = field(default_factory=trio.Event)

    async def page(self, path: str) -> tuple[int, str]:
        """A page of the plaintext port."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.ports[15014])
        async with stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head, body = (await _all(stream)).split("\r\n\r\n", 1)
        return int(head.split()[1]), body

    async def inject(self, namespace: str = "shop", **spec: Any) -> tuple[int, Any]:
        """Status and answer of the webhook for a pod, asked as the API server does."""
        pod = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "x"}], **spec}}
        asked = {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE"}
        review = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {**asked, "namespace": namespace, "object": pod},
        }
        body = json.dumps(review).encode()
        context = ssl.create_default_context(cadata=self.app.store.bundle_pem())
        stream = await trio.open_tcp_stream("127.0.0.1", self.ports[15017])
        name = f"triomesh-injector.{SYSTEM_NAMESPACE}.svc"
        tls = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
        headers = {
            "Host": name,
            "Content-Type": "application/json",
            "Content-Length": len(body),
            "Connection": "close",
        }
        lines = ["POST /inject HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items()), "", ""]
        await tls.send_all("\r\n".join(lines).encode() + body)
        answer, text = (await _all(tls)).split("\r\n\r\n", 1)
        await trio.aclose_forcefully(stream)
        status = int(answer.split()[1])
        return status, json.loads(text)["response"] if status == 200 else text

    async def certificate(self) -> Credentials:
        """What pod shop/web-1 gets of the CA."""
        token = await self.api.token("web", "shop", "web-1")
        return await workload.obtain(
            signer(self.ports[15012], self.directory, self.app.store.bundle_pem(), token=token), DOMAIN
        )


async def _all(stream: trio.abc.ReceiveStream) -> str:
    data = b""
    while got := await stream.receive_some(65536):
        data += got
    return data.decode()


async def prepare(api: ControlApi, values: Values) -> Witness:
    """Install what the control plane needs, with a labelled namespace `shop` and a pod in it."""
    witness = Witness(api.authorizer.authorizer)  # type: ignore[arg-type]
    api.authorizer.authorizer = witness  # type: ignore[assignment]
    for obj in render.render(values):
        if resource := _INSTALLED.get(obj["kind"]):
            await api.local.client.create(resource, obj, obj["metadata"].get("namespace", ""))
    await api.namespace("shop", triomesh_dev__injection="enabled")
    await api.account("web", "shop")
    await api.pod("web-1", "shop", "web")
    return witness


@asynccontextmanager
async def replica(
    api: ControlApi,
    directory: Path,
    name: str = "control-0",
    roles: tuple[RoleName, ...] = ROLES,
    **more: Any,
) -> AsyncIterator[Replica]:
    """Run one replica until the block ends; it is ready when this returns."""
    await api.pod(name, SYSTEM_NAMESPACE, CONTROL)
    token = directory / f"{name}.token"
    token.write_text(await api.token(CONTROL, SYSTEM_NAMESPACE, name, audience=api.api_audience))
    ports: dict[int, int] = {}

    async def listen(port: int) -> list[trio.SocketListener]:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        ports[port] = port_of(listeners[0])
        return listeners

    settings = Settings(SYSTEM_NAMESPACE, name, DOMAIN, injector_values(Values()), roles=roles, **more)
    with (directory / f"{name}.log").open("wb") as file:
        log = LogWriter(file.fileno())
        try:
            async with api.pod_client(token) as client, trio.open_nursery() as nursery:
                app = App(settings, client, log, random.Random(1), listen)
                found = Replica(api, app, ports, directory)

                async def run() -> None:
                    await found.app.run()
                    found.ended.set()

                nursery.start_soon(run)
                await until(lambda: 15014 in ports and not found.app.not_ready())
                yield found
                nursery.cancel_scope.cancel()
        finally:
            log.close(1.0)
