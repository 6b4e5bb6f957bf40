"""The admin port end to end: meshctl, the API server's proxy, RBAC, two replicas, and a whole sidecar."""

import functools
import json
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import trio
import yaml
from click.testing import CliRunner, Result

from manifests.values import Values
from mesh_api import admin
from mesh_api.version import VERSION
from mesh_control.index.objects import Pod
from mesh_control.serve.admin import AdminServer, Call, Refused
from mesh_control.serve.admin_auth import AdminAuthenticator
from mesh_control.serve.admin_replicas import Fleet, others
from mesh_control.serve.admin_sidecars import unknown
from mesh_control.serve.subscriptions import PodRef
from mesh_control.settings import ADMIN_PORT, DISCOVERY_PORT
from mesh_local.apiserver.proxy import ProxyEndpoint
from mesh_local.apiserver.service_routes import ServiceResolver
from mesh_proxy.settings import HostPort
from meshctl.kube import connect
from meshctl.main import cli
from tests.support.control_api import ControlApi, run_api, until
from tests.support.control_app import Replica, prepare, replica
from tests.support.control_ca import CONTROL, kept_credentials
from tests.support.control_objects import pod as pod_object
from tests.support.control_objects import read
from tests.support.mesh import Sidecar, TestCa, sidecar

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kubernetes")

SYSTEM = "triomesh-system"
PAGES = f"/api/v1/namespaces/{SYSTEM}/services/https:triomesh-control:admin/proxy/admin/v1"
WEB = PodRef("shop", "web-1")


class Node:
    """The node's network, in which the control plane's Service leads to one replica or none."""

    def __init__(self) -> None:
        self.behind: Replica | None = None

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        if self.behind is None:
            raise ConnectionRefusedError(111, "connection refused")
        return await trio.open_tcp_stream("127.0.0.1", self.behind.ports[port])


@dataclass
class World:
    api: ControlApi
    node: Node
    replicas: tuple[Replica, ...]
    directory: Path

    async def meshctl(self, *arguments: str, kubeconfig: Path | None = None) -> Result:
        environment = {"KUBECONFIG": str(kubeconfig or self.api.kubeconfig)}
        invoke = functools.partial(
            CliRunner().invoke, cli, list(arguments), prog_name="meshctl", env=environment
        )
        done: Result = await trio.to_thread.run_sync(invoke)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    async def kubeconfig(self, account: str, *roles: str) -> Path:
        """Of a new ServiceAccount with these ClusterRoles in the control plane's namespace."""
        await self.api.account(account, "default")
        for role in roles:
            binding = {
                "metadata": {"name": f"{account}-{role}"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "default"}],
            }
            await self.api.local.client.create("rolebindings.rbac.authorization.k8s.io", binding, SYSTEM)
        token = await self.api.token(account, "default", audience=self.api.api_audience)
        config = yaml.safe_load(self.api.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        path = self.directory / f"{account}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    async def get(self, page: str, token: str, method: str = "GET") -> tuple[int, Any]:
        """A page, through the API server, with any token."""

        def send() -> tuple[int, Any]:
            kube = connect(str(self.api.kubeconfig), None)
            path, _, query = f"{PAGES}{page}".partition("?")
            answer = kube.send(method, path, dict(parse_qsl(query)), headers={admin.TOKEN_HEADER: token})
            return answer.status, json.loads(answer.body)

        return await trio.to_thread.run_sync(send)

    async def token(self, account: str, audience: str = admin.ADMIN_AUDIENCE) -> str:
        return await self.api.token(account, SYSTEM, audience=audience)

    def fleet(self, number: int) -> Fleet:
        return role(self.replicas[number]).fleet


def role(found: Replica) -> Any:
    return found.app.roles["discovery"]


@asynccontextmanager
async def meshed(found: Replica, **settings: Any) -> AsyncIterator[Sidecar]:
    """The sidecar of pod shop/web-1, connected to a replica."""
    async with sidecar(
        await found.certificate(),
        control=HostPort("127.0.0.1", found.ports[DISCOVERY_PORT]),
        control_identity=str(CONTROL),
        pod_name="web-1",
        pod_namespace="shop",
        **settings,
    ) as side:
        await until(lambda: not side.app.not_ready())
        yield side


def with_world(
    tmp_path: Path, test: Callable[[World], Awaitable[None]], names: tuple[str, ...] = ("control-0",)
) -> None:
    """Replicas of the control plane behind its Service; meshctl may use the API server from a thread."""

    async def main(api: ControlApi) -> None:
        await prepare(api, Values())
        await served(api)
        node = Node()
        await api.stop()
        proxy = ProxyEndpoint(api.local.store, ServiceResolver(api.local.store, node, random.Random(1)))
        api.http["services", "proxy"] = proxy
        await api.start()
        async with AsyncExitStack() as stack:
            found = [await stack.enter_async_context(replica(api, tmp_path, name)) for name in names]
            for one in found:  # in a cluster every replica has the same port, on an address of its own
                (other,) = [each for each in found if each is not one] or [one]
                role(one).fleet._port = other.ports[ADMIN_PORT]
                await until(lambda one=one: len(role(one)._others()) == len(found) - 1)
            node.behind = found[0]
            await test(World(api, node, tuple(found), tmp_path))

    run_api(tmp_path, main, 60)


async def served(api: ControlApi) -> None:
    """The Service and its endpoint, as controllers would make them."""
    client = api.local.client
    await api.account("default", SYSTEM)
    await api.pod("front", SYSTEM, "default", ips=("10.244.0.9",))
    ports = [{"name": "admin", "port": ADMIN_PORT}]
    await client.create(
        "services", {"metadata": {"name": "triomesh-control"}, "spec": {"ports": ports}}, SYSTEM
    )
    piece = {
        "metadata": {"name": "c-1", "labels": {"kubernetes.io/service-name": "triomesh-control"}},
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.244.0.9"],
                "targetRef": {"kind": "Pod", "namespace": SYSTEM, "name": "front"},
                "conditions": {"ready": True},
            }
        ],
        "ports": ports,
    }
    await client.create("endpointslices.discovery.k8s.io", piece, SYSTEM)


INSTALLED = {
    "metadata": {"name": "triomesh-control", "labels": {"triomesh.dev/install": "triomesh"}},
    "spec": {
        "selector": {"matchLabels": {"app": "c"}},
        "template": {
            "metadata": {"labels": {"app": "c"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        },
    },
}


def test_sidecars_by_meshctl_through_either_replica(tmp_path: Path) -> None:
    """The sidecar is connected to one replica, the Service leads to the other."""

    async def test(world: World) -> None:
        await world.api.local.client.create("deployments.apps", INSTALLED, SYSTEM)
        near, far = world.replicas
        async with meshed(far) as side:
            assert WEB in role(far).server.sidecars
            assert not role(near).server.sidecars
            done = await world.meshctl("proxy-status", "-o", "json")
            assert done.exit_code == 0, done.output
            listed = json.loads(done.stdout)
            assert (listed["replicas"], listed["answered"]) == (2, 2)
            (state,) = listed["sidecars"]
            assert (state["namespace"], state["pod"], state["replica"]) == (*WEB, "control-1")
            assert state["state"] == "synced"
            roots = near.app.store.authority().bundle.fingerprints
            assert tuple(state["rootSha256"]) == roots
            done = await world.meshctl("proxy-config", "shop/web-1", "-o", "yaml")
            assert done.exit_code == 0, done.output
            config = yaml.safe_load(done.stdout)
            assert (config["namespace"], config["pod"]) == WEB
            assert config["http2"] == state["http2"] != ""
            done = await world.meshctl("proxy-config", "shop/web-1", "http2")
            assert done.output.splitlines()[-1].strip() == state["http2"]
            assert {one["purpose"] for one in config["listeners"]} == set(side.app.ports)
            text = (await world.meshctl("proxy-config", "web-1", "certs", "-n", "shop")).output
            assert "spiffe://cluster.local/ns/shop/sa/web" in text
            done = await world.meshctl("proxy-config", "shop/web-1", "log", "--level", "warning")
            assert done.output == "log level of shop/web-1: warning\n"
            assert side.app.log.level == "warning"
            await version_and_mistakes(world)
        world.fleet(0)._port = 9  # nobody answers there
        done = await world.meshctl("proxy-status")
        assert done.exit_code == 1
        assert "only 1 of 2 replicas of the control plane answered" in done.stderr
        done = await world.meshctl("proxy-config", "shop/web-1")
        assert "it may be connected to a replica that did not answer: control-1" in done.stderr

    with_world(tmp_path, test, ("control-0", "control-1"))


async def version_and_mistakes(world: World) -> None:
    done = await world.meshctl("version")
    assert f"control plane: {VERSION} (image i" in done.output, done.output
    done = await world.meshctl("proxy-config", "shop/web-9")
    assert (done.exit_code, done.stderr) == (2, "error: there is no pod shop/web-9\n")
    viewer = await world.kubeconfig("viewer", admin.VIEWER)
    assert (await world.meshctl("proxy-status", kubeconfig=viewer)).exit_code == 0
    done = await world.meshctl("proxy-config", "shop/web-1", "log", "--level", "info", kubeconfig=viewer)
    assert done.exit_code == 2
    assert 'cannot create resource "serviceaccounts/token"' in done.stderr
    assert "ClusterRole triomesh-operator, bound in triomesh-system, allows it" in done.stderr
    operator = await world.kubeconfig("operator", admin.OPERATOR)
    done = await world.meshctl("proxy-config", "shop/web-1", "log", "--level", "warning", kubeconfig=operator)
    assert done.exit_code == 0, done.output
    nobody = await world.kubeconfig("nobody")
    done = await world.meshctl("proxy-status", kubeconfig=nobody)
    assert done.exit_code == 2
    assert 'cannot create resource "serviceaccounts/token"' in done.stderr


def test_the_control_plane_is_down(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.api.local.client.create("deployments.apps", INSTALLED, SYSTEM)
        world.node.behind = None
        done = await world.meshctl("proxy-status")
        assert done.exit_code == 2
        assert "error: the control plane does not answer; the API server says: " in done.stderr
        done = await world.meshctl("version")
        assert done.exit_code == 0
        assert "did not answer" in done.output

    with_world(tmp_path, test)


def test_tokens(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        auth = role(world.replicas[0]).admin.authenticator
        viewer, operator = await world.token(admin.VIEWER), await world.token(admin.OPERATOR)
        assert (await world.get("/version", viewer))[0] == 200
        assert (await world.get("/version", viewer))[0] == 200
        assert auth.reviews == 1, "remembered"
        status, said = await world.get("/sidecars/shop/web-1/log?level=info", viewer, "PUT")
        assert (status, said["error"]) == (
            403,
            "expected a token of ServiceAccount triomesh-operator: triomesh-viewer may only read",
        )
        status, said = await world.get("/sidecars/shop/web-1/log?level=info", operator, "PUT")
        assert (status, said["error"]) == (
            404,
            "pod shop/web-1 has no sidecar",
        )
        status, said = await world.get("/sidecars/shop/web-1/log?level=loud", operator, "PUT")
        assert (status, said["error"]) == (
            400,
            "level: expected one of debug, info, warning, error, got 'loud'",
        )
        assert (await world.get("/nothing", viewer))[0] == 404
        assert (await world.get("/version", operator, "PUT"))[0] == 405
        bad = {
            "": "expected a token in the header x-triomesh-token",
            "nonsense": "the API server does not accept it",
            await world.token(admin.VIEWER, "triomesh-ca"): "the API server does not accept it",
            await world.token("triomesh-control"): "expected one of system:serviceaccount:",
            await world.api.token(
                "web", "shop", audience=admin.ADMIN_AUDIENCE
            ): ", got system:serviceaccount",
        }
        for token, reason in bad.items():
            status, said = await world.get("/version", token)
            assert status == 401
            assert reason in said["error"]
        reviews = auth.reviews
        assert (await world.get("/version", "nonsense"))[0] == 401
        assert auth.reviews == reviews, "refusals are remembered, too"

    with_world(tmp_path, test)


def test_certificates_of_callers(tmp_path: Path) -> None:
    """Only the control plane's own identity stands for a token, and only a certificate of the mesh."""

    async def test(world: World) -> None:
        (found,) = world.replicas
        port = found.ports[ADMIN_PORT]
        control = role(found).admin.client_context()
        assert await asked(port, control) == 200
        sidecars = (await found.certificate()).client["triomesh-tcp"]
        assert await asked(port, sidecars) == 401
        stranger = kept_credentials(TestCa().authority, CONTROL).client["triomesh-tcp"]
        stranger.verify_mode = ssl.CERT_NONE
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await asked(port, stranger)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        assert await asked(port, old) == 401
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(trio.BrokenResourceError):
            await asked(port, old)

    with_world(tmp_path, test)


async def asked(port: int, context: ssl.SSLContext) -> int:
    """The status of the version page, asked without a token."""
    stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, https_compatible=True)
    try:
        await stream.send_all(b"GET /admin/v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while got := await stream.receive_some(65536):
            data += got
        assert data
        return int(data.split()[1])
    finally:
        await trio.aclose_forcefully(stream)


def test_another_who_answers_for_a_replica_is_not_believed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (found,) = world.replicas
        web = await found.certificate()
        fake = AdminServer(AdminAuthenticator(SYSTEM, None), lambda: web, str(CONTROL))
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        one = pod("control-9", ip="127.0.0.1")
        fleet = Fleet(
            lambda: [one],
            role(found).admin.client_context,
            str(CONTROL),
            listeners[0].socket.getsockname()[1],
        )
        call = Call("GET", "/version", {}, {}, False)
        async with trio.open_nursery() as nursery:
            await nursery.start(fake.run, listeners)
            assert await fleet.gather(call, admin.ControlVersion) == (2, 1, [])
            with pytest.raises(Refused, match=r"the peer is spiffe://cluster\.local/ns/shop/sa/web"):
                await fleet.forward(call)
            nursery.cancel_scope.cancel()

    with_world(tmp_path, test)


@asynccontextmanager
async def alone() -> AsyncIterator[tuple[AdminServer, Fleet, int]]:
    """The server without a control plane around it, and a client that is another replica."""
    own = kept_credentials(TestCa().authority, CONTROL)
    server = AdminServer(AdminAuthenticator(SYSTEM, None), lambda: own, str(CONTROL))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    fleet = Fleet(lambda: [pod("c-2", ip="127.0.0.1")], server.client_context, str(CONTROL), port)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, listeners)
        yield server, fleet, port
        nursery.cancel_scope.cancel()


def test_large_answers_defects_and_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_control.serve.admin.HANDSHAKE_S", 0.1)

    async def main() -> None:
        async def page(call: Call) -> bytes:
            await trio.lowlevel.checkpoint()
            assert call.local
            return b"x" * 3_000_000 if call.parts["which"] == "large" else call.query["nothing"].encode()

        async with alone() as (server, fleet, port):
            server.pages.add("GET", "/page/{which}", page)
            assert await fleet.forward(Call("GET", "/page/large", {}, {}, False)) == b"x" * 3_000_000
            with pytest.raises(Refused, match="a defect of the control plane"):
                await fleet.forward(Call("GET", "/page/broken", {}, {}, False))
            assert await fleet.forward(Call("GET", "/page/", {}, {}, False)) is None
            assert server.requests == {200: 1, 500: 1, 404: 1}
            async with await trio.open_tcp_stream("127.0.0.1", port) as silent:
                with trio.fail_after(5):
                    assert await silent.receive_some(1) == b""

    trio.run(main)


def test_a_replica_that_does_not_answer_in_time() -> None:
    async def main() -> None:
        async def slow(call: Call) -> bytes:
            await trio.sleep_forever()
            raise AssertionError

        async with alone() as (server, fleet, _port):
            server.pages.add("GET", "/slow", slow)
            call = Call("GET", "/slow", {}, {}, False)
            assert await fleet.gather(call, admin.ControlVersion, 0.3) == (2, 1, [])
            with pytest.raises(Refused, match="c-2: no answer within"):
                await fleet.forward(call, 0.3)

    trio.run(main)


def pod(name: str, ip: str = "10.0.0.1", **given: Any) -> Pod:
    labels = {"app.kubernetes.io/component": "control"}
    known = {"namespace": SYSTEM, "account": "triomesh-control", "labels": labels, "sidecar": False, **given}
    found = read("Pod", pod_object(name, *([ip] if ip else []), **known))
    assert isinstance(found, Pod)
    return found


def test_which_pods_are_replicas() -> None:
    good = pod("c-2", labels={"app.kubernetes.io/component": "control", "pod-template-hash": "2"})
    pods = [
        pod("c-1"),
        good,
        pod("c-3", phase="Pending"),
        pod("c-4", deletionTimestamp="2030-01-01T00:00:00Z"),
        pod("c-5", ip=""),
        pod("c-6", account="default"),
        pod("c-7", namespace="shop"),
        pod("c-8", labels={"app.kubernetes.io/component": "ca"}),
    ]
    assert others(pods, (SYSTEM, "c-1")) == [good]
    assert others(pods, (SYSTEM, "c-0")) == []


@pytest.mark.parametrize(
    ("asked_for", "said"),
    [
        (PodRef("shop", "web"), "there is no pod shop/web; did you mean shop/web-64-x?"),
        (PodRef("shop", "wbe-64-x"), "there is no pod shop/wbe-64-x; did you mean shop/web-64-x?"),
        (PodRef("default", "web-64-x"), "there is no pod default/web-64-x; did you mean shop/web-64-x?"),
        (PodRef("shop", "bare"), "pod shop/bare has no sidecar"),
        (
            PodRef("shop", "web-64-x"),
            "the sidecar of pod shop/web-64-x is not connected to the control plane",
        ),
        (PodRef("q", "zzz"), "there is no pod q/zzz"),
    ],
)
def test_what_is_said_of_a_wrong_name(asked_for: PodRef, said: str) -> None:
    pods = [pod("web-64-x", namespace="shop", sidecar=True), pod("bare", namespace="shop")]
    assert unknown(asked_for, pods) == said
