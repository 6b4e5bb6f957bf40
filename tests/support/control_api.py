"""An API server over HTTPS with ServiceAccount tokens and RBAC, which can be stopped and started again."""

import random
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
import yaml

from mesh_control.kube.access import from_kubeconfig, in_cluster
from mesh_control.kube.client import Client
from mesh_local.apiserver.auth.authenticator import ClusterAuthenticator
from mesh_local.apiserver.auth.bootstrap import bootstrap_objects
from mesh_local.apiserver.auth.endpoints import endpoints
from mesh_local.apiserver.auth.pki import Pki, write_kubeconfig
from mesh_local.apiserver.auth.rbac import RbacAuthorizer
from mesh_local.apiserver.auth.tokens import Bound, TokenAuthority
from mesh_local.apiserver.face.app import App
from mesh_local.apiserver.face.server import Server, server_context
from mesh_local.apiserver.types import Attributes, Decision, User
from mesh_local.kinds.base import Kind
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.machinery.objects import Object
from tests.support.local_api import LocalApi, local_api

RBAC = "rbac.authorization.k8s.io"
CA_AUDIENCE = "triomesh-ca"


class _Later:
    """An authoriser that is set once the store is there, and that remembers what was asked."""

    def __init__(self) -> None:
        self.authorizer: RbacAuthorizer | None = None
        self.asked: list[tuple[str, str, str]] = []

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        assert self.authorizer is not None
        self.asked.append((user.name, attributes.verb, attributes.resource))
        return self.authorizer.authorize(user, attributes)


@dataclass
class ControlApi:
    """A served cluster. `now` is the time that tokens are judged by; tests may move it."""

    local: LocalApi
    directory: Path
    pki: Pki
    tokens: TokenAuthority
    authenticator: ClusterAuthenticator
    authorizer: _Later
    nursery: trio.Nursery
    kubeconfig: Path
    port: int = 0
    ahead_s: float = 0.0
    http: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Subresources that are more than objects, such as `services/proxy`; in force from the next start."""
    server: Server | None = None
    _stop: trio.Event = field(default_factory=trio.Event)
    _stopped: trio.Event = field(default_factory=trio.Event)

    async def start(self) -> None:
        """Serve, on the same port as before."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        app = App(self.local.api, self.authenticator, f"127.0.0.1:{self.port}")
        for (resource, subresource), endpoint in self.http.items():
            app.register(resource, subresource, endpoint)
        pki = self.directory / "pki"
        context = server_context(pki / "apiserver.crt", pki / "apiserver.key", self.pki.ca_path)
        self.server = Server(app, context)
        self._stop, self._stopped = trio.Event(), trio.Event()

        async def run(*, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            assert self.server is not None
            await self.server.run(listeners, self._stop, task_status=task_status)
            self._stopped.set()

        await self.nursery.start(run)
        url = f"https://127.0.0.1:{self.port}"
        admin = self.pki.client("admin", "admin", ["system:masters"])
        write_kubeconfig(self.kubeconfig, url, self.pki.ca.certificate, admin, cluster="c", user="admin")

    async def stop(self) -> None:
        """Stop serving: connections end, then the port refuses."""
        self._stop.set()
        while not self._stopped.is_set():
            self.local.store.end_watches()  # clients begin new ones on connections that they still have
            await trio.sleep(0.02)

    def admin(self, **more: Any) -> Client:
        """A client that may do everything, by its certificate."""
        return Client(from_kubeconfig(str(self.kubeconfig)), **more)

    def user(self, token: str, name: str = "token") -> Client:
        """A client with a token in its kubeconfig."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return Client(from_kubeconfig(str(path)))

    def pod_client(self, token_file: Path, **more: Any) -> Client:
        """A client as a Pod's process has it, with the token in a file."""
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}
        return Client(in_cluster(str(token_file), str(self.pki.ca_path), environ), **more)

    async def namespace(self, name: str, **labels: str) -> Object:
        labels = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
        return await self.local.client.create("namespaces", {"metadata": {"name": name, "labels": labels}})

    async def account(self, name: str, namespace: str) -> Object:
        return await self.local.client.create("serviceaccounts", {"metadata": {"name": name}}, namespace)

    async def pod(
        self, name: str, namespace: str, account: str, *, ips: Sequence[str] = ("127.0.0.1",)
    ) -> Object:
        """A running Pod of a ServiceAccount."""
        spec = {"serviceAccountName": account, "containers": [{"name": "app", "image": "none"}]}
        made = await self.local.client.create("pods", {"metadata": {"name": name}, "spec": spec}, namespace)
        status = {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
        return (
            await self.local.client.patch("pods", name, namespace, {"status": status}, subresource="status")
            or made
        )

    async def token(
        self,
        account: str,
        namespace: str,
        pod: str = "",
        *,
        audience: str = CA_AUDIENCE,
        seconds: int = 3600,
    ) -> str:
        """A projected token; without a Pod it is bound to nothing. It may be short-lived."""
        client = self.local.client
        owner = await client.get("serviceaccounts", account, namespace)
        bound = None
        if pod:
            found = await client.get("pods", pod, namespace)
            bound = Bound("pod", pod, found["metadata"]["uid"])
        return self.tokens.issue(owner, [audience], seconds, bound)[0]

    @property
    def api_audience(self) -> str:
        return self.tokens.issuer

    async def allow(self, account: str, namespace: str, rules: Sequence[Object]) -> None:
        """Cluster-wide rights for one ServiceAccount."""
        name = f"{namespace}-{account}"
        client = self.local.client
        await client.create(f"clusterroles.{RBAC}", {"metadata": {"name": name}, "rules": list(rules)})
        ref = {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
        binding = {"metadata": {"name": name}, "roleRef": ref, "subjects": [subject]}
        await client.create(f"clusterrolebindings.{RBAC}", binding)


@asynccontextmanager
async def control_api(directory: Path, kinds: Sequence[Kind] = BUILTIN) -> AsyncIterator[ControlApi]:
    """A served cluster with the namespaces `default` and `triomesh-system`."""
    later = _Later()
    pki = Pki(directory / "pki", datetime.now(UTC))
    pki.server(["127.0.0.1"])
    async with local_api(directory, kinds=kinds, authorizer=later) as local, trio.open_nursery() as nursery:
        store = local.store
        later.authorizer = RbacAuthorizer(store, lambda: store.version)
        api: list[ControlApi] = []

        def now() -> datetime:
            ahead = api[0].ahead_s if api else 0.0
            return datetime.fromtimestamp(datetime.now(UTC).timestamp() + ahead, UTC)

        tokens = TokenAuthority(pki.token_key(), store, now, random.Random(2))
        authenticator = ClusterAuthenticator(tokens)
        for key, endpoint in endpoints(store, authenticator, later.authorizer).items():
            local.api.register(*key, endpoint)
        for obj in bootstrap_objects():
            await local.client.create(f"{obj['kind'].lower()}s.{RBAC}", obj)
        for name in ("default", "triomesh-system"):
            await local.client.create("namespaces", {"metadata": {"name": name}})
        kubeconfig = directory / "kubeconfig"
        found = ControlApi(local, directory, pki, tokens, authenticator, later, nursery, kubeconfig)
        api.append(found)
        await found.start()
        assert stat.S_ISREG(kubeconfig.stat().st_mode)
        yield found
        await found.stop()
        nursery.cancel_scope.cancel()


def run_api(
    directory: Path,
    test: Callable[[ControlApi], Awaitable[None]],
    seconds: float = 20,
    kinds: Sequence[Kind] = BUILTIN,
) -> None:
    """Run `test` with a served cluster."""

    async def main() -> None:
        with trio.fail_after(seconds):
            async with control_api(directory, kinds) as found:
                await test(found)

    trio.run(main)


async def until(condition: Callable[[], Any], seconds: float = 8) -> None:
    """Wait for a condition."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)
