"""A control plane of the discovery stream in this process: a source told by hand, real TLS on loopback."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
import trio.testing

from certs.framing import read_frame, write_frame
from mesh_api.discovery import (
    MAX_FRAME_BYTES,
    AddressAnswer,
    Content,
    FromControl,
    FromSidecar,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Welcome,
    WorkloadConfig,
    address_key,
    decode_from_control,
    encode_message,
    pod_key,
)
from mesh_api.sidecar import Destination, Pod, Workload
from mesh_control.serve.discovery import DiscoveryServer, Limits
from mesh_control.serve.subscriptions import PodRef
from mesh_proxy.net.addr import Addr
from mesh_proxy.settings import HostPort
from tests.support.mesh import TRUST_DOMAIN, Sidecar, TestCa, identity, sidecar, wait_until

M = TypeVar("M", bound=FromControl)
CONTROL = identity("triomesh-control", "triomesh-system")
QUICK = Limits(settle_s=0.05, hello_s=2.0, sync_s=2.0)


def limits(**changes: object) -> Limits:
    """The limits of a quick control plane, with changes."""
    return dataclasses.replace(QUICK, **changes)  # type: ignore[arg-type]


class FakeSource:
    """Contents by key. `workload` is the same for everybody but for its name."""

    def __init__(self) -> None:
        self.contents: dict[str, Content] = {}
        self.config = WorkloadConfig(
            Workload(name="any", namespace="shop"), TRUST_DOMAIN, "", access_log=True
        )
        self.is_current = True
        self.synced = trio.Event()
        self.synced.set()
        self.looked_up: list[str] = []
        self.broken = False
        self._callbacks: list[Callable[[Collection[str]], None]] = []

    async def wait_synced(self) -> None:
        await self.synced.wait()

    def current(self) -> bool:
        return self.is_current

    def lookup(self, key: str, pod: PodRef) -> Content | None:
        self.looked_up.append(key)
        if self.broken:
            raise RuntimeError("a defect of the source")
        if key == "workload":
            return self.config
        content = self.contents.get(key)
        if content is None and key.startswith("address/"):
            return AddressAnswer()
        return content

    def subscribe(self, callback: Callable[[Collection[str]], None]) -> None:
        self._callbacks.append(callback)

    def put(self, contents: dict[str, Content | None]) -> None:
        """Change, add, or (None) delete contents, all at once."""
        for key, content in contents.items():
            if content is None:
                self.contents.pop(key, None)
            elif isinstance(content, WorkloadConfig):
                self.config = content
            else:
                self.contents[key] = content
        for callback in self._callbacks:
            callback(tuple(contents))


def serving(dest: Destination) -> dict[str, Content | None]:
    """A destination and its addresses."""
    name = f"{dest.namespace}/{dest.name}:{dest.port}"
    answers: dict[str, Content | None] = {
        address_key(ip, dest.port): AddressAnswer(destination=name) for ip in dest.addresses
    }
    return {f"destination/{name}": dest, **answers}


def running(pod: Pod, *ports: int) -> dict[str, Content | None]:
    """A pod and some of its ports."""
    ip = pod.addresses[0]
    return {pod_key(ip): pod, **{address_key(ip, port): AddressAnswer(pod=ip) for port in ports}}


def gone(contents: dict[str, Content | None]) -> dict[str, Content | None]:
    return dict.fromkeys(contents)


class ControlPlane:
    """A running server; `pods` gives the identity of each (namespace, name)."""

    def __init__(
        self, server: DiscoveryServer, source: FakeSource, address: Addr, scope: trio.CancelScope
    ) -> None:
        self.server = server
        self.source = source
        self.address = address
        self._scope = scope

    @property
    def host_port(self) -> HostPort:
        return HostPort(self.address.ip, self.address.port)

    async def settled(self) -> None:
        """Until every stream has been told everything."""
        await wait_until(
            lambda: all(
                not one.session.dirty and not one._batches and one._sent is None
                for one in self.server._streams.values()
            )
        )

    def kill(self) -> None:
        """End without a word."""
        self._scope.cancel()


@asynccontextmanager
async def control_plane(
    ca: TestCa,
    source: FakeSource | None = None,
    pods: dict[tuple[str, str], str] | None = None,
    *,
    limits: Limits = QUICK,
    port: int = 0,
    name: str = "triomesh-control",
    events: list[tuple[str, dict[str, object]]] | None = None,
) -> AsyncIterator[ControlPlane]:
    """Serve on loopback. By default every pod of namespace `shop` exists, with its name as ServiceAccount."""
    source = source or FakeSource()

    def pod_identity(namespace: str, pod: str) -> str | None:
        return identity(pod, namespace) if pods is None else pods.get((namespace, pod))

    def on_event(event: str, fields: object) -> None:
        if events is not None:
            events.append((event, dict(fields)))  # type: ignore[call-overload]

    server = DiscoveryServer(
        source,
        pod_identity,
        TRUST_DOMAIN,
        random.Random(1),
        replica="replica-1",
        version="0",
        limits=limits,
        on_event=on_event,
    )
    credentials = ca.credentials(name, namespace="triomesh-system")
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    address = Addr(*listeners[0].socket.getsockname()[:2])
    scope = trio.CancelScope()

    async def serve() -> None:
        with scope:
            await server.serve(listeners, lambda: credentials.discovery)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield ControlPlane(server, source, address, scope)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def streamed(
    ca: TestCa, plane: ControlPlane | Gate | None, name: str = "client", **settings: object
) -> AsyncIterator[Sidecar]:
    """A whole sidecar of pod shop/NAME, told by the control plane."""
    where = HostPort(*plane.address) if plane is not None else HostPort("triomesh-control.invalid", 15010)
    async with sidecar(
        ca.credentials(name),
        control=where,
        control_identity=CONTROL,
        pod_name=name,
        pod_namespace="shop",
        **settings,
    ) as side:
        yield side


class Gate:
    """A relay in front of a control plane that can stop (as a paused process does) and cut."""

    def __init__(self, target: Addr) -> None:
        self.target = target
        self.address = target
        self._open = trio.Event()
        self._open.set()
        self._scopes: set[trio.CancelScope] = set()

    def pause(self) -> None:
        self._open = trio.Event()

    def go_on(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Close what is up."""
        for scope in self._scopes:
            scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = Addr(*listeners[0].socket.getsockname()[:2])
        task_status.started()
        await trio.serve_listeners(self._relay, listeners)

    async def _relay(self, near: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                far = await trio.open_tcp_stream(*self.target)
            except OSError:
                await trio.aclose_forcefully(near)
                return
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, nursery)
                nursery.start_soon(self._pump, far, near, nursery)
        self._scopes.discard(scope)
        await trio.aclose_forcefully(near)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery) -> None:
        try:
            while data := await source.receive_some():
                await self._open.wait()
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


class ByHand:
    """The sidecar's end of a stream in memory, after Welcome."""

    def __init__(self, server: DiscoveryServer, stream: trio.abc.Stream) -> None:
        self.server = server
        self.stream = stream

    async def say(self, message: FromSidecar) -> None:
        await write_frame(self.stream, encode_message(message), MAX_FRAME_BYTES)

    async def hear(self, kind: type[M]) -> M:
        """The next message of a kind; pings are answered."""
        while True:
            message = decode_from_control(await read_frame(self.stream, MAX_FRAME_BYTES))
            if isinstance(message, Ping) and kind is not Ping:
                await self.say(Pong())
            elif isinstance(message, kind):
                return message
            else:
                assert not isinstance(message, Goodbye), message


def by_hand(test: Callable[[ByHand, trio.Nursery], Awaitable[None]], version: str = "1") -> None:
    """Run `test` with a sidecar whose every message is written by it, on a clock that jumps."""

    async def main() -> None:
        server = DiscoveryServer(
            FakeSource(),
            lambda namespace, name: identity(name, namespace),
            TRUST_DOMAIN,
            random.Random(1),
            replica="r",
            version="0",
            wall=trio.current_time,
        )
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.converse, near, identity("client"), trio.current_time() + 1e6)
            hand = ByHand(server, far)
            await hand.say(Hello(pod="client", namespace="shop", version=version))
            assert isinstance(await hand.hear(Welcome), Welcome)
            await test(hand, nursery)
            nursery.cancel_scope.cancel()
        assert server.memory.held == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
