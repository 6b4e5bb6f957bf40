"""Who may connect to the discovery stream, and what happens when an end is slow, silent, or lost."""

import socket
import threading

import msgspec
import pytest
import trio

from certs.framing import read_frame, write_frame
from mesh_api.discovery import (
    ALPN_DISCOVERY,
    MAX_FRAME_BYTES,
    Applied,
    Goodbye,
    Held,
    Hello,
    Subscribe,
    Update,
    Welcome,
    address_key,
    decode_from_control,
    encode_message,
)
from mesh_api.sidecar import Destination, Pod
from mesh_control.serve.subscriptions import PodRef
from mesh_proxy.discovery.contents import Absent
from mesh_proxy.discovery.dial import Resolver, StreamError, Target
from mesh_proxy.net.addr import Addr
from tests.support.discovery import (
    CONTROL,
    ControlPlane,
    FakeSource,
    Gate,
    control_plane,
    gone,
    limits,
    serving,
    streamed,
)
from tests.support.mesh import TestCa, identity, run, sidecar, wait_until

WEB = Destination(name="web", namespace="shop", port=80, addresses=("10.96.0.1", "fd00::1"))
API = Destination(name="api", namespace="shop", port=80, addresses=("10.96.0.2",))
POD = Pod(name="p", namespace="shop", addresses=("10.1.0.1",), identity=identity("p"))
VIP, VIP6, API_VIP = Addr("10.96.0.1", 80), Addr("fd00::1", 80), Addr("10.96.0.2", 80)


def replace(content, **changes):
    return msgspec.structs.replace(content, **changes)


# -- who may connect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ({}, "there is no pod shop/client"),
        ({("shop", "client"): identity("other")}, f"pod shop/client is {identity('other')}"),
    ],
)
def test_a_pod_that_is_not_the_certificates(pods, reason):
    async def main():
        ca = TestCa()
        async with control_plane(ca, pods=pods) as plane, streamed(ca, plane) as side:
            await wait_until(lambda: reason in side.app.stream.problem)
            assert any(reason in text for text in side.app.not_ready())
            assert plane.server.stats.welcomed == 0
            pods["shop", "client"] = identity("client")
            await wait_until(lambda: not side.app.not_ready())

    run(main)


def test_a_workload_that_poses_as_the_control_plane():
    async def main():
        ca = TestCa()
        async with control_plane(ca, name="web") as plane, streamed(ca, plane) as side:
            await wait_until(lambda: f"expected {CONTROL}" in side.app.stream.problem)
            assert identity("web", "triomesh-system") in side.app.stream.problem
            assert plane.server.stats.welcomed == 0

    run(main)


def test_foreign_roots():
    async def main():
        async with control_plane(TestCa()) as plane, streamed(TestCa(), plane) as side:
            await wait_until(lambda: "TLS" in side.app.stream.problem or "closed" in side.app.stream.problem)
            assert plane.server.stats.welcomed == 0

    run(main)


async def raw(ca: TestCa, plane: ControlPlane, name: str = "client") -> trio.SSLStream:
    """A sidecar's TLS stream, spoken by hand."""
    tcp = await trio.open_tcp_stream(*plane.address)
    return trio.SSLStream(tcp, ca.credentials(name).client[ALPN_DISCOVERY], server_side=False)


async def say(stream, message):
    await write_frame(stream, encode_message(message), MAX_FRAME_BYTES)


async def hear(stream):
    with trio.fail_after(5):
        return decode_from_control(await read_frame(stream, MAX_FRAME_BYTES))


HELLO = Hello(pod="client", namespace="shop", version="0")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"\xc1"], "expected a message of a sidecar"),
        ([encode_message(Applied(1))], "expected hello first, got applied"),
        ([encode_message(HELLO), encode_message(HELLO)], "expected one hello"),
        ([encode_message(HELLO), encode_message(Applied(7))], "nothing was to be applied with nonce 7"),
        ([encode_message(HELLO), b"\x90"], "expected a message of a sidecar"),
        ([encode_message(HELLO), encode_message(Subscribe((Held("nonsense"),)))], "got 'nonsense'"),
        (
            [
                encode_message(HELLO),
                encode_message(Subscribe(tuple(Held(f"pod/10.0.{n >> 8}.{n & 255}") for n in range(8193)))),
            ],
            "at most 8192 keys",
        ),
    ],
)
def test_what_a_sidecar_must_not_say(frames, reason):
    async def main():
        ca = TestCa()
        async with control_plane(ca) as plane:
            stream = await raw(ca, plane)
            for frame in frames:
                await write_frame(stream, frame, MAX_FRAME_BYTES)
            message = await hear(stream)
            if isinstance(message, Welcome):
                message = await hear(stream)
            assert isinstance(message, Goodbye)
            assert reason in message.reason
            assert not message.moving
            await wait_until(lambda: plane.server.stats.connected == 0)
            assert len(plane.server.subscriptions) == 0
            await trio.aclose_forcefully(stream)

    run(main)


def test_strangers_are_bounded_and_have_a_deadline():
    async def main():
        ca = TestCa()
        async with control_plane(ca, limits=limits(hello_s=0.3, max_strangers=2)) as plane:
            mute = [await trio.open_tcp_stream(*plane.address) for _ in range(2)]
            await wait_until(lambda: plane.server._strangers == 2)
            third = await trio.open_tcp_stream(*plane.address)
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                assert await third.receive_some()
            assert plane.server.stats.ended["full"] == 1
            await wait_until(lambda: plane.server._strangers == 0)
            hello_less = await raw(ca, plane)
            await hello_less.do_handshake()
            await wait_until(lambda: plane.server.stats.ended["broken"] == 3)
            for stream in (*mute, third, hello_less):
                await trio.aclose_forcefully(stream)

    run(main)


def test_most_connections():
    async def main():
        ca = TestCa()
        async with (
            control_plane(ca, limits=limits(max_connections=1)) as plane,
            streamed(ca, plane) as one,
        ):
            await wait_until(lambda: not one.app.not_ready())
            async with streamed(ca, plane, "other") as two:
                await wait_until(lambda: plane.server.stats.ended["full"] >= 1)
                assert two.app.not_ready()

    run(main)


def test_a_newer_stream_of_the_same_pod_replaces_the_old():
    async def main():
        ca = TestCa()
        async with control_plane(ca) as plane:
            first, second = await raw(ca, plane), await raw(ca, plane)
            await say(first, HELLO)
            assert isinstance(await hear(first), Welcome)
            await say(second, HELLO)
            assert isinstance(await hear(second), Welcome)
            farewell = await hear(first)
            assert "newer stream" in farewell.reason
            await wait_until(lambda: plane.server.stats.connected == 1)
            assert set(plane.server.sidecars) == {PodRef("shop", "client")}
            for stream in (first, second):
                await trio.aclose_forcefully(stream)

    run(main)


# -- being slow, silent, lost ------------------------------------------------------------------------------


def test_a_sidecar_that_does_not_apply_holds_one_update_and_is_given_up():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        async with control_plane(ca, source, limits=limits(applied_s=1.0)) as plane:
            stream = await raw(ca, plane)
            await say(stream, HELLO)
            await hear(stream)
            await say(stream, Subscribe((Held(address_key(*VIP)),)))
            first = await hear(stream)
            assert isinstance(first, Update)
            session = next(iter(plane.server._streams.values())).session
            for n in range(500):
                source.put(serving(replace(WEB, addresses=("10.96.0.1", f"10.97.{n >> 8}.{n & 255}"))))
                if n % 50 == 0:
                    await trio.lowlevel.checkpoint()
            assert len(session.dirty) <= 3
            assert plane.server.stats.updates == 1
            await say(stream, Applied(first.nonce))
            last = await hear(stream)
            [resource] = last.resources
            assert b"10.97.1.243" in resource.body, "the latest, once"
            assert "was not answered" in (await hear(stream)).reason
            await wait_until(lambda: plane.server.stats.ended["slow"] == 1)
            await trio.aclose_forcefully(stream)

    run(main)


def test_a_silent_sidecar_is_given_up():
    async def main():
        ca = TestCa()
        async with control_plane(ca, limits=limits(ping_s=0.1, silent_s=0.4)) as plane:
            stream = await raw(ca, plane)
            await say(stream, HELLO)
            await wait_until(lambda: plane.server.stats.ended["silent"] == 1)
            async with streamed(ca, plane) as side:
                await wait_until(lambda: not side.app.not_ready())
                await trio.sleep(1.0)
                assert plane.server.stats.ended["silent"] == 1, "pings are answered"
            await trio.aclose_forcefully(stream)

    run(main)


def test_a_paused_control_plane():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        async with control_plane(ca, source) as plane, trio.open_nursery() as nursery:
            gate = Gate(plane.address)
            await nursery.start(gate.run)
            async with streamed(ca, gate) as side:
                store = side.app.store
                assert await store.resolve(VIP, 2) == WEB
                gate.pause()
                source.put(serving(API))
                assert await store.resolve(API_VIP, 0.3) is Absent.NO_ANSWER
                assert await store.resolve(VIP, 2) == WEB
                gate.go_on()
                assert await store.resolve(API_VIP, 2) == API
            nursery.cancel_scope.cancel()

    run(main)


def test_a_control_plane_that_says_nothing_is_left(monkeypatch):
    monkeypatch.setattr("mesh_proxy.discovery.stream.SILENT_S", 0.4)

    async def main():
        ca = TestCa()
        async with (
            control_plane(ca, limits=limits(ping_s=0.1)) as plane,
            trio.open_nursery() as nursery,
        ):
            gate = Gate(plane.address)
            await nursery.start(gate.run)
            async with streamed(ca, gate) as side:
                await wait_until(lambda: not side.app.not_ready())
                gate.pause()
                await wait_until(lambda: "nothing heard" in side.app.stream.problem)
                assert not side.app.not_ready(), "what it knows stays in force"
                gate.go_on()
                await wait_until(lambda: side.app.stream.connected_to)
            nursery.cancel_scope.cancel()

    run(main)


def test_after_a_break_only_differences_are_sent():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put({**serving(WEB), **serving(API)})
        async with control_plane(ca, source) as plane, trio.open_nursery() as nursery:
            gate = Gate(plane.address)
            await nursery.start(gate.run)
            async with streamed(ca, gate) as side:
                store = side.app.store
                await store.resolve(VIP, 2)
                await store.resolve(API_VIP, 2)
                assert await store.resolve(Addr("192.0.2.1", 1), 2) is Absent.NOT_IN_MESH
                await plane.settled()
                stats = plane.server.stats
                told, generation = stats.resources, store.generation
                gate.cut()
                await wait_until(lambda: stats.welcomed == 2 and side.app.stream.connected_to)
                await plane.settled()
                await wait_until(lambda: len(next(iter(plane.server._streams.values())).session.asked) == 4)
                await plane.settled()
                assert (stats.resources, store.generation) == (told, generation)

                gate.pause()
                gate.cut()
                await wait_until(lambda: not side.app.stream.connected_to)
                changed = replace(API, protocol=API.protocol.HTTP)
                source.put(serving(changed))
                source.put(gone(serving(WEB)))
                assert store.lookup(VIP) == WEB
                gate.go_on()
                await wait_until(lambda: store.lookup(API_VIP) == changed)
                await wait_until(lambda: store.lookup(VIP) is Absent.NOT_IN_MESH)
                assert stats.resources == told + 2, "the changed one; nobody owns the other's address"
            nursery.cancel_scope.cancel()

    run(main)


def test_a_control_plane_that_is_killed_and_comes_back():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        async with streamed_later(ca) as (side, targets):
            store = side.app.store
            async with control_plane(ca, source) as plane:
                targets[:] = [plane.address]
                assert await store.resolve(VIP, 10) == WEB
                plane.kill()
            await wait_until(lambda: not side.app.stream.connected_to)
            assert await store.resolve(VIP, 2) == WEB
            assert await store.resolve(API_VIP, 0.2) is Absent.NO_ANSWER
            source.put(serving(API))
            async with control_plane(ca, source) as plane:
                targets[:] = [plane.address]
                assert await store.resolve(API_VIP, 10) == API
                plane.kill()

    run(main)


def test_a_replica_that_closes_sends_its_sidecars_to_another():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        async with (
            control_plane(ca, source) as one,
            control_plane(ca, source) as two,
            streamed_later(ca) as (side, targets),
        ):
            targets[:] = [one.address, two.address]
            assert await side.app.store.resolve(VIP, 10) == WEB
            await wait_until(lambda: side.app.stream.connected_to)
            first, second = (one, two) if side.app.stream.connected_to == str(one.address) else (two, one)
            await first.settled()
            await first.server.close(5)
            assert first.server.stats.connected == 0
            await wait_until(lambda: side.app.stream.connected_to == str(second.address))
            await trio.sleep(0.05)
            assert second.server.stats.resources == 0
            line = await side.log.wait_for(lambda line: line["event"] == "discovery lost")
            assert line["level"] == "info"
            assert "shutting down" in line["reason"]

    run(main)


def test_a_defect_of_the_source_ends_one_stream_only():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        events = []
        async with control_plane(ca, source, events=events) as plane, streamed(ca, plane) as side:
            assert await side.app.store.resolve(VIP, 2) == WEB
            source.broken = True
            source.put(serving(replace(WEB, protocol=API.protocol.HTTP)))
            await wait_until(lambda: plane.server.stats.ended["failed"] == 1)
            assert side.app.store.lookup(VIP) == WEB
            source.broken = False
            await wait_until(lambda: side.app.store.lookup(VIP).protocol is API.protocol.HTTP)
            assert ("discovery.failed", {"error": "RuntimeError: a defect of the source"}) in events

    run(main)


def test_a_stream_ends_with_its_certificate():
    async def main():
        ca = TestCa()
        async with (
            control_plane(ca) as plane,
            sidecar_of(ca.credentials("client", lifetime_s=2), plane) as side,
        ):
            await wait_until(lambda: plane.server.stats.connected == 1)
            await wait_until(lambda: plane.server.stats.ended["age"] == 1)
            assert side.app.store.snapshot is not None

    run(main)


def test_a_defect_in_the_sidecars_end_is_told_and_tried_again(monkeypatch):
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            assert await side.app.store.resolve(VIP, 2) == WEB
            with monkeypatch.context() as patch:
                patch.setattr("mesh_proxy.discovery.contents.Contents.apply", None)
                source.put(serving(replace(WEB, protocol=API.protocol.HTTP)))
                await side.log.wait_for(lambda line: "a defect of this sidecar" in str(line.get("reason")))
            assert not side.app.not_ready()
            await wait_until(lambda: side.app.store.lookup(VIP).protocol is API.protocol.HTTP)

    run(main)


# -- names -------------------------------------------------------------------------------------------------


def test_addresses_need_no_resolver(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)

    async def main():
        resolver = Resolver()
        assert await resolver("10.0.0.1", 15010) == [Target("10.0.0.1", 15010)]
        assert await resolver("fd00:0::1", 15010) == [Target("fd00::1", 15010)]

    run(main)


def test_a_name_with_several_addresses_and_one_without(monkeypatch):
    def getaddrinfo(host, port, type):
        if host != "control":
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (ip, port)) for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main():
        resolver = Resolver()
        assert await resolver("control", 1) == [Target("10.0.0.1", 1), Target("10.0.0.2", 1)]
        with pytest.raises(StreamError, match="nobody: Name or service not known"):
            await resolver("nobody", 1)

    run(main)


def test_a_name_server_that_does_not_answer(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(20) and [])
    monkeypatch.setattr("mesh_proxy.discovery.dial.RESOLVE_S", 0.1)

    async def main():
        resolver = Resolver()
        try:
            for _ in range(4):  # more than there are threads
                with trio.fail_after(2), pytest.raises(StreamError, match="no address within"):
                    await resolver("control", 1)
        finally:
            release.set()

    run(main)


# -- helpers -----------------------------------------------------------------------------------------------


def sidecar_of(credentials, plane):
    return sidecar(
        credentials,
        control=plane.host_port,
        control_identity=CONTROL,
        pod_name="client",
        pod_namespace="shop",
    )


class streamed_later:
    """A sidecar whose control plane's addresses are a list that the test fills."""

    def __init__(self, ca: TestCa) -> None:
        self.targets: list[Addr] = []

        async def resolve(host: str, port: int):
            await trio.lowlevel.checkpoint()
            return [Target(*addr) for addr in self.targets]

        self.inner = streamed(ca, None, resolve=resolve)

    async def __aenter__(self):
        return await self.inner.__aenter__(), self.targets

    async def __aexit__(self, *exc):
        return await self.inner.__aexit__(*exc)
