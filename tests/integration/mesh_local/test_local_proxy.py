"""services/proxy and pods/proxy against a real server on loopback."""

import random
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh_local.apiserver.proxy import ProxyEndpoint
from mesh_local.apiserver.service_routes import ServiceResolver
from mesh_local.apiserver.types import Call, User
from mesh_local.kinds import pod, service
from mesh_local.kinds.base import Kind, find
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object
from tests.support.local_auth import FakeReader, LoopbackDialer
from tests.support.local_webhook import Asked, Authority, Reply, Server, serving

LIMIT_S = 15
Message = MutableMapping[str, Any]


def kind_of(resource: str) -> Kind:
    found = find((*service.KINDS, *pod.KINDS), resource)
    assert found is not None
    return found


class Client:
    """An ASGI server's side of one request."""

    def __init__(self, *body: bytes) -> None:
        self.sent: list[Message] = []
        self.gone = trio.Event()
        self._incoming = [
            {"type": "http.request", "body": part, "more_body": i < len(body) - 1}
            for i, part in enumerate(body)
        ]

    async def receive(self) -> Message:
        if self._incoming:
            return self._incoming.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(dict(message))

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent[1:])

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1]["more_body"]


class World:
    def __init__(self) -> None:
        self.reader = FakeReader()
        self.node = LoopbackDialer()
        self.proxy = ProxyEndpoint(self.reader, ServiceResolver(self.reader, self.node, random.Random(1)))

    def pod(self, name: str, ip: str) -> None:
        status = {"podIP": ip, "podIPs": [{"ip": ip}]}
        metadata = {"name": name, "namespace": "d"}
        self.reader.put("pods", {"metadata": metadata, "spec": {"containers": []}, "status": status})

    def service(
        self,
        port: int,
        name: str = "web",
        ready: bool = True,
        port_name: str = "",
        target: Object | None = None,
    ) -> None:
        self.pod("web-0", "10.1.0.5")
        target = {"kind": "Pod", "namespace": "d", "name": "web-0"} if target is None else target
        unnamed: Object = {"port": 80} | ({"name": port_name} if port_name else {})
        spec = {"type": "ClusterIP", "ports": [unnamed]}
        self.reader.put("services", {"metadata": {"name": name, "namespace": "d"}, "spec": spec})
        labels = {"kubernetes.io/service-name": name}
        self.reader.put(
            "endpointslices.discovery.k8s.io",
            {
                "metadata": {"name": f"{name}-x", "namespace": "d", "labels": labels},
                "endpoints": [
                    {"addresses": ["10.1.0.5"], "conditions": {"ready": ready}, "targetRef": target}
                ],
                "ports": [{"name": port_name, "port": port}],
            },
        )

    async def ask(
        self,
        name: str = "web",
        rest: str = "/",
        *,
        method: str = "GET",
        query: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        body: tuple[bytes, ...] = (),
        resource: str = "services",
        client: Client | None = None,
    ) -> Client:
        client = client or Client(*body)
        path = f"/api/v1/namespaces/d/{resource}/{name}/proxy{rest}"
        scope = {
            "type": "http",
            "method": method,
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": headers if headers is not None else [(b"host", b"api:6443")],
        }
        call = Call(User("u"), kind_of(resource), name, "d", "proxy", "get", None, {})
        with trio.fail_after(LIMIT_S):
            await self.proxy(scope, client.receive, client.send, call)
        return client


Test = Callable[[World, Server], Awaitable[None]]


def run(test: Test, reply: Reply | None = None, tls: Any = None) -> None:
    async def handle(_asked: Asked) -> Reply:
        return reply or Reply(body=b"hello", content_type="text/plain")

    async def main() -> None:
        world = World()
        async with serving(handle, tls) as server:
            world.service(server.port)
            await test(world, server)

    trio.run(main)


def test_a_request_and_its_answer() -> None:
    async def test(world: World, server: Server) -> None:
        headers = [
            (b"host", b"api:6443"),
            (b"authorization", b"Bearer secret"),
            (b"connection", b"close, x-private"),
            (b"x-private", b"1"),
            (b"x-kept", b"2"),
            (b"te", b"trailers"),
        ]
        client = await world.ask(rest="/a%20b//c", query=b"x=1&x=2", headers=headers)
        assert (client.status, client.body, client.complete) == (200, b"hello", True)
        assert client.headers[b"content-type"] == b"text/plain"
        assert client.headers[b"x-answer"] == b"1"
        assert b"connection" not in client.headers
        assert world.node.asked == [("10.1.0.5", server.port)]
        (asked,) = server.asked
        assert (asked.method, asked.target) == ("GET", "/a%20b//c?x=1&x=2")
        assert asked.headers["host"] == f"10.1.0.5:{server.port}"
        assert asked.headers["x-kept"] == "2"
        assert asked.headers["x-forwarded-host"] == "api:6443"
        assert asked.headers["x-forwarded-proto"] == "https"
        assert not {"authorization", "x-private", "te", "connection"} & set(asked.headers)

    run(test, Reply(body=b"hello", content_type="text/plain", headers={"X-Answer": "1"}))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("framing", [(b"content-length", b"6"), (b"transfer-encoding", b"chunked")])
def test_bodies_of_every_method(method: str, framing: tuple[bytes, bytes]) -> None:
    async def test(world: World, server: Server) -> None:
        headers = [(b"host", b"h"), framing]
        client = await world.ask(method=method, headers=headers, body=(b"abc", b"", b"def"))
        assert client.status == 418
        (asked,) = server.asked
        assert asked.method == method
        text = b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n" if framing[1] == b"chunked" else b"abcdef"
        assert asked.body == text

    run(test, Reply(418))


def test_head_has_no_body() -> None:
    async def test(world: World, server: Server) -> None:
        client = await world.ask(method="HEAD")
        assert (client.status, client.body, client.complete) == (200, b"", True)

    run(test)


def test_a_path_without_slash_is_redirected() -> None:
    async def test(world: World, server: Server) -> None:
        client = await world.ask(rest="", query=b"a=b")
        assert client.status == 301
        assert client.headers[b"location"] == b"/api/v1/namespaces/d/services/web/proxy/?a=b"
        assert server.asked == []

    run(test)


def test_names_with_ports_and_schemes(tmp_path: Path) -> None:
    async def test(world: World, server: Server) -> None:
        world.service(server.port, "named", port_name="http")
        for name in ("web", "web:80", "http:web:80", "named:http", "named:80", "http:named:http"):
            assert (await world.ask(name)).status == 200
        for name, text in (
            ("named", 'no endpoints available for service "named"'),
            ("web:81", 'no service port 81 found for service "web"'),
            ("web:other", 'no endpoints available for service "web:other"'),
        ):
            with pytest.raises(ApiError) as caught:
                await world.ask(name)
            assert (caught.value.code, caught.value.reason) == (503, "ServiceUnavailable")
            assert caught.value.message == text
        for name in ("ftp:web:80", "web:80:1", "UPPER"):
            with pytest.raises(ApiError, match="invalid service request") as caught:
                await world.ask(name)
            assert caught.value.code == 400

    run(test)


def test_https_to_a_server_with_any_certificate(tmp_path: Path) -> None:
    async def test(world: World, server: Server) -> None:
        assert (await world.ask("https:web:80")).status == 200

    run(test, tls=Authority(tmp_path / "pki").tls("elsewhere"))


def test_no_endpoints_and_no_service() -> None:
    async def test(world: World, server: Server) -> None:
        world.service(server.port, "idle", ready=False)
        with pytest.raises(ApiError, match=r'^no endpoints available for service "idle"$') as caught:
            await world.ask("idle")
        assert caught.value.code == 503
        with pytest.raises(ApiError, match=r'^services "absent" not found$'):
            await world.ask("absent")

    run(test)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param({}, id="no target"),
        pytest.param({"kind": "Node", "namespace": "d", "name": "web-0"}, id="no pod"),
        pytest.param({"kind": "Pod", "namespace": "d", "name": "gone"}, id="an absent pod"),
        pytest.param({"kind": "Pod", "namespace": "d", "name": "other"}, id="a pod with another address"),
        pytest.param({"kind": "Pod", "namespace": "e", "name": "web-0"}, id="a pod of another namespace"),
    ],
)
def test_an_endpoint_that_is_no_pod_is_not_asked(target: Object) -> None:
    async def test(world: World, server: Server) -> None:
        world.pod("other", "10.1.0.6")
        world.service(server.port, target=target)
        with pytest.raises(ApiError) as refused:
            await world.ask()
        assert refused.value.message == 'no endpoints available for service "web"'
        assert not server.asked

    run(test)


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "169.254.1.1", "0.0.0.0", "nonsense", ""])
def test_an_address_that_no_pod_can_have_is_not_asked(ip: str) -> None:
    async def test(world: World, server: Server) -> None:
        world.pod("odd", ip)
        with pytest.raises(ApiError) as refused:
            await world.ask(f"odd:{server.port}", resource="pods")
        assert (refused.value.code, refused.value.message) == (400, "address not allowed")

    run(test)


def test_nobody_listens() -> None:
    async def main() -> None:
        world = World()
        world.service(1)
        with pytest.raises(ApiError) as caught:
            await world.ask()
        text = "error trying to reach service: dial tcp 10.1.0.5:1: connect: connection refused"
        assert (caught.value.code, caught.value.message) == (503, text)

    trio.run(main)


def test_upgrades_are_refused() -> None:
    async def test(world: World, server: Server) -> None:
        with pytest.raises(ApiError, match="upgrades") as caught:
            await world.ask(headers=[(b"Upgrade", b"websocket")])
        assert caught.value.code == 400

    run(test)


def test_pods() -> None:
    async def test(world: World, server: Server) -> None:
        spec = {"containers": [{"name": "c", "ports": [{"containerPort": server.port}]}]}
        metadata = {"name": "p", "namespace": "d"}
        world.reader.put("pods", {"metadata": metadata, "spec": spec, "status": {"podIP": "10.1.0.7"}})
        for name in ("p", f"p:{server.port}", f"http:p:{server.port}"):
            assert (await world.ask(name, "/x", resource="pods")).status == 200
        assert {a[0] for a in world.node.asked} == {"10.1.0.7"}
        world.reader.put("pods", {"metadata": metadata, "spec": spec, "status": {}})
        for name, code in (("p", 400), ("p:http", 400), ("absent", 404)):
            with pytest.raises(ApiError) as caught:
                await world.ask(name, resource="pods")
            assert caught.value.code == code

    run(test)


async def streaming(test: Callable[[World, trio.Event], Awaitable[None]], first: bytes, *, end: bool) -> None:
    """Run with a server that begins an endless answer; it ends at once where `end`."""
    closed = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        # A client that gives up resets the connection.
        async with stream:
            with suppress(trio.BrokenResourceError):
                await begin(stream)
        closed.set()

    async def begin(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + first)
        if not end:
            while await stream.receive_some(1024):
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        world = World()
        world.service(listeners[0].socket.getsockname()[1])
        await test(world, closed)
        nursery.cancel_scope.cancel()


def test_a_client_that_leaves_ends_the_exchange() -> None:
    async def test(world: World, closed: trio.Event) -> None:
        client = Client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: world.ask(client=client))
            with trio.fail_after(LIMIT_S):
                while client.body != b"part":
                    await trio.sleep(0.01)
                client.gone.set()
                await closed.wait()
        assert not client.complete

    trio.run(streaming_test(test, b"4\r\npart\r\n", end=False))


def test_a_client_that_leaves_before_its_body_is_complete() -> None:
    async def test(world: World, closed: trio.Event) -> None:
        client = Client(b"part", b"rest")
        client._incoming.pop()
        client.gone.set()
        headers = [(b"host", b"h"), (b"content-length", b"8")]
        await world.ask(method="POST", headers=headers, client=client)
        assert client.sent == []
        with trio.fail_after(LIMIT_S):
            await closed.wait()

    trio.run(streaming_test(test, b"", end=False))


def test_an_answer_that_breaks_off_is_not_completed() -> None:
    async def test(world: World, closed: trio.Event) -> None:
        client = await world.ask()
        assert client.body.startswith(b"part")
        assert not client.complete

    trio.run(streaming_test(test, b"4\r\npart\r\n4\r\npa", end=True))


def streaming_test(
    test: Callable[[World, trio.Event], Awaitable[None]], first: bytes, *, end: bool
) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        await streaming(test, first, end=end)

    return main
