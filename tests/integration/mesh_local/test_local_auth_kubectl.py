"""Authentication, RBAC, webhooks and the proxy through the real server, asked by the real kubectl."""

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import yaml

from mesh_local.apiserver.admission.webhook_client import WebhookClient
from mesh_local.apiserver.admission.webhooks import MutatingWebhooks, ValidatingWebhooks, WebhookCaller
from mesh_local.apiserver.auth.authenticator import ClusterAuthenticator
from mesh_local.apiserver.auth.bootstrap import bootstrap_objects
from mesh_local.apiserver.auth.endpoints import endpoints
from mesh_local.apiserver.auth.escalation import EscalationCheck
from mesh_local.apiserver.auth.pki import Pki
from mesh_local.apiserver.auth.rbac import RbacAuthorizer
from mesh_local.apiserver.auth.tokens import TokenAuthority
from mesh_local.apiserver.proxy import ProxyEndpoint
from mesh_local.apiserver.registry import Registry
from mesh_local.apiserver.service_routes import ServiceResolver
from mesh_local.apiserver.types import Admission, AdmissionPlugin, Attributes, Decision, Reader, User
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.machinery.objects import Object
from tests.support.local_api import LocalApi, local_api
from tests.support.local_auth import DirectDialer, LoopbackDialer
from tests.support.local_http import Served, served
from tests.support.local_webhook import Asked, Authority, Reply, serving

RBAC = "rbac.authorization.k8s.io"


class Later:
    """An authoriser, reader and plugin chain that are set once the store is there."""

    def __init__(self) -> None:
        self.authorizer: RbacAuthorizer | None = None
        self.plugins: list[AdmissionPlugin] = []

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        assert self.authorizer is not None
        return self.authorizer.authorize(user, attributes)

    async def mutate(self, request: Admission) -> None:
        for plugin in self.plugins:
            await plugin.mutate(request)

    async def validate(self, request: Admission) -> None:
        for plugin in self.plugins:
            await plugin.validate(request)


@dataclass
class World:
    local: LocalApi
    server: Served
    directory: Path

    async def kubectl(self, *arguments: str, check: bool = True, stdin: str = "") -> str:
        return await self.server.kubectl(*arguments, check=check, stdin=stdin)

    async def account(self, name: str = "bot") -> Path:
        """A kubeconfig that holds a token of a new ServiceAccount."""
        await self.kubectl("create", "serviceaccount", name)
        token = (await self.kubectl("create", "token", name, "--duration=10m")).strip()
        return self.kubeconfig(token)

    def kubeconfig(self, token: str) -> Path:
        config = yaml.safe_load(self.server.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path = self.directory / "token.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path


def authenticator_of(reader: Reader, pki: Pki) -> ClusterAuthenticator:
    return ClusterAuthenticator(
        TokenAuthority(pki.token_key(), reader, lambda: datetime.now(UTC), random.Random(2))
    )


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    """A server with everything that is tested here, and the objects of a new cluster."""
    later = Later()
    async with local_api(directory, authorizer=later, plugins=[later]) as local:
        store = local.store
        later.authorizer = RbacAuthorizer(store, lambda: store.version)
        services = ServiceResolver(store, LoopbackDialer(), random.Random(3))
        registry = Registry(BUILTIN)
        caller = WebhookCaller(
            store, WebhookClient(services, DirectDialer()), lambda: registry.kinds, random.Random(4)
        )
        later.plugins = [
            MutatingWebhooks(caller),
            ValidatingWebhooks(caller),
            EscalationCheck(later.authorizer),
        ]
        authenticator = authenticator_of(store, Pki(directory / "pki", datetime.now(UTC)))
        for key, endpoint in endpoints(store, authenticator, later.authorizer).items():
            local.api.register(*key, endpoint)
        for obj in bootstrap_objects():
            await local.client.create(f"{obj['kind'].lower()}s.{RBAC}", obj)
        await local.client.create("namespaces", {"metadata": {"name": "default"}})
        proxy = ProxyEndpoint(store, services)
        http = {("services", "proxy"): proxy, ("pods", "proxy"): proxy}
        async with served(local, directory, authenticator=authenticator, http=http) as server:
            yield World(local, server, directory)


def run(directory: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with world(directory) as found:
            await test(found)

    trio.run(main)


def test_who_am_i(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        shown = await world.kubectl("auth", "whoami", "-o", "json")
        info = json.loads(shown)["status"]["userInfo"]
        assert (info["username"], info["groups"]) == ("admin", ["system:masters", "system:authenticated"])
        (credential,) = info["extra"]["authentication.kubernetes.io/credential-id"]
        assert credential.startswith("X509SHA256=")
        config = await world.account()
        shown = await world.kubectl("--kubeconfig", str(config), "auth", "whoami")
        assert "system:serviceaccount:default:bot" in shown
        bad = world.kubeconfig("bad.token.here")
        path = "/api/v1/namespaces/default/pods"
        refused = await world.kubectl("--kubeconfig", str(bad), "get", "--raw", path, check=False)
        assert refused == "error: You must be logged in to the server (Unauthorized)\n"

    run(tmp_path, test)


def test_roles_are_enforced(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        config = ("--kubeconfig", str(await world.account()))
        denied = await world.kubectl(*config, "get", "configmaps", check=False)
        assert denied == (
            "Error from server (Forbidden): configmaps is forbidden: "
            'User "system:serviceaccount:default:bot" cannot list resource "configmaps" in API group "" '
            'in the namespace "default"\n'
        )
        await world.kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
        await world.kubectl("create", "rolebinding", "rb", "--role=reader", "--serviceaccount=default:bot")
        assert await world.kubectl(*config, "auth", "can-i", "list", "configmaps") == "yes\n"
        assert await world.kubectl(*config, "get", "configmaps", "-o", "name") == ""
        denied = await world.kubectl(*config, "create", "configmap", "c", check=False)
        assert 'cannot create resource "configmaps"' in denied
        listed = await world.kubectl(*config, "auth", "can-i", "--list")
        assert "selfsubjectaccessreviews.authorization.k8s.io" in listed
        shown = await world.kubectl("get", "rolebindings", "-o", "wide")
        assert "Role/reader" in shown
        assert "default/bot" in shown
        impersonated = await world.kubectl("--as=alice", "get", "configmaps", check=False)
        assert 'User "alice" cannot list resource "configmaps"' in impersonated

    run(tmp_path, test)


def test_nobody_grants_more_than_they_hold(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        config = ("--kubeconfig", str(await world.account()))
        await world.kubectl(
            "create", "rolebinding", "a", "--clusterrole=admin", "--serviceaccount=default:bot"
        )
        await world.kubectl(*config, "create", "role", "mine", "--verb=get", "--resource=pods")
        refused = await world.kubectl(
            *config, "create", "role", "more", "--verb=get", "--resource=nodes", check=False
        )
        assert "is attempting to grant RBAC permissions not currently held:" in refused
        assert '{APIGroups:[""], Resources:["nodes"], Verbs:["get"]}' in refused
        refused = await world.kubectl(
            *config, "create", "rolebinding", "b", "--clusterrole=cluster-admin", "--user=x", check=False
        )
        assert 'rolebindings.rbac.authorization.k8s.io "b" is forbidden' in refused
        immutable = await world.kubectl(
            "patch", "rolebinding", "a", "--type=merge", "-p", '{"roleRef":{"name":"view"}}', check=False
        )
        assert "cannot change roleRef" in immutable

    run(tmp_path, test)


def configuration(kind: str, port: int, bundle: str) -> Object:
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["configmaps", "serviceaccounts/token"],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{kind}WebhookConfiguration",
        "metadata": {"name": "hooks"},
        "webhooks": [
            {
                "name": "h0.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {"url": f"https://127.0.0.1:{port}/x", "caBundle": bundle},
                "rules": [rule],
            }
        ],
    }


@pytest.mark.parametrize("kind", ["Mutating", "Validating"])
def test_a_webhook_denies(tmp_path: Path, kind: str) -> None:
    async def deny(asked: Asked) -> Reply:
        status = {"code": 403, "message": "no widgets today"}
        response = {"uid": asked.review["uid"], "allowed": False, "status": status, "warnings": ["careful"]}
        body = {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}
        return Reply(body=json.dumps(body).encode())

    authority = Authority(tmp_path / "hook")

    async def test(world: World) -> None:
        async with serving(deny, authority.tls("127.0.0.1")) as hook:
            manifest = json.dumps(configuration(kind, hook.port, authority.bundle))
            await world.kubectl("create", "-f", "-", stdin=manifest)
            refused = await world.kubectl("create", "configmap", "c", check=False)
            assert refused.endswith(
                'error: failed to create configmap: admission webhook "h0.example.com" denied the request: '
                "no widgets today\n"
            )
            assert hook.asked[0].review["object"]["metadata"]["name"] == "c"
            shown = await world.kubectl("get", f"{kind.lower()}webhookconfigurations")
            assert shown.split()[:4] == ["NAME", "WEBHOOKS", "AGE", "hooks"]

    run(tmp_path, test)


def test_the_proxy_of_a_service(tmp_path: Path) -> None:
    async def hello(asked: Asked) -> Reply:
        return Reply(body=f"{asked.method} {asked.target}\n".encode(), content_type="text/plain")

    async def test(world: World) -> None:
        base = "/api/v1/namespaces/default/services/web/proxy"
        absent = await world.kubectl("get", "--raw", f"{base}/x", check=False)
        assert 'services "web" not found' in absent
        spec = {"ports": [{"port": 80}], "clusterIP": "10.96.0.7", "selector": {"a": "b"}}
        await world.local.client.create(
            "services", {"metadata": {"name": "web", "namespace": "default"}, "spec": spec}
        )
        idle = await world.kubectl("get", "--raw", f"{base}/x", check=False)
        assert idle == 'Error from server (ServiceUnavailable): no endpoints available for service "web"\n'
        metadata = {"name": "web-0", "namespace": "default"}
        containers = [{"name": "c", "image": "i"}]
        pod = await world.local.client.create(
            "pods", {"metadata": metadata, "spec": {"containers": containers}}
        )
        status = {"podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}]}
        await world.local.client.update("pods", {**pod, "status": status}, subresource="status")
        target = {"kind": "Pod", "namespace": "default", "name": "web-0"}
        async with serving(hello, None) as backend:
            labels = {"kubernetes.io/service-name": "web"}
            await world.local.client.create(
                "endpointslices.discovery.k8s.io",
                {
                    "metadata": {"name": "web-1", "namespace": "default", "labels": labels},
                    "addressType": "IPv4",
                    "endpoints": [{"addresses": ["10.1.0.5"], "targetRef": target}],
                    "ports": [{"name": "", "port": backend.port}],
                },
            )
            assert await world.kubectl("get", "--raw", f"{base}/a%20b?c=d") == "GET /a%20b?c=d\n"
        config = ("--kubeconfig", str(await world.account()))
        refused = await world.kubectl(*config, "get", "--raw", f"{base}/x", check=False)
        assert 'cannot get resource "services/proxy" in API group ""' in refused

    run(tmp_path, test)
