"""A sidecar at its limits: it refuses what is new, serves what is there, and answers health and metrics."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh_api.limits import Limits
from mesh_api.sidecar import Inbound, MtlsMode, Protocol
from mesh_ops.log_writer import LogWriter
from mesh_proxy.discovery.dial import Resolver, StreamError
from mesh_proxy.net.addr import Addr
from tests.integration.http_peers import (
    Application,
    Peer,
    answering,
    application,
    mesh,
    mesh_test,
    ok,
    plain,
)
from tests.support.cgroup import MIB, group
from tests.support.mesh import (
    VIP,
    Sidecar,
    TestCa,
    client_snapshot,
    server_snapshot,
    sidecar,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


async def pages_answer(side: Sidecar, reason: str) -> None:
    """Health says ready, and the metrics, which name the reason, come whole."""
    for port, path in (("health", b"/healthz/ready"), ("health", b"/healthz/live"), ("metrics", b"/metrics")):
        peer = Peer(await trio.open_tcp_stream("127.0.0.1", side.app.ports[port]))
        message = await peer.get(path)
        assert message.status == 200, message.body
        if port == "metrics":
            assert b'triomesh_refused_total{direction="any",reason="%s"}' % reason.encode() in message.body
        peer.close()


async def is_refused(addr: Addr) -> None:
    """A new connection is reset, at once or with its first bytes."""
    with trio.socket.socket() as sock, trio.fail_after(5):
        try:
            await sock.connect(addr)
            await sock.send(GET)
            data = await sock.recv(1000)
        except ConnectionError:
            return
    raise AssertionError(f"expected a reset, got {data!r}")


@asynccontextmanager
async def back(app: Application, **settings: object) -> AsyncIterator[Sidecar]:
    """The sidecar of a server that takes plaintext, since its clients are the tests'."""
    snapshot = server_snapshot(inbound=Inbound(mtls=MtlsMode.PERMISSIVE))
    async with sidecar(TestCa().credentials("server"), snapshot, **settings) as side:
        side.aim(inbound=app.addr)
        yield side


async def dial(side: Sidecar) -> Peer:
    return Peer(await trio.open_tcp_stream(*side.inbound))


@mesh_test
async def test_short_memory_refuses_new_connections_and_serves_the_others(tmp_path: Path) -> None:
    group(tmp_path, 100 * MIB, 50 * MIB)
    async with application(answering(ok())) as app, back(app, cgroup_directory=str(tmp_path)) as side:
        old = await dial(side)
        assert (await old.get()).status == 200
        pools = [one for service in side.app.runtime.services.all() for one in service.endpoints()]
        assert [len(one.idle) for one in pools] == [1]

        group(tmp_path, 100 * MIB, 95 * MIB)
        line = await side.log.wait_for(lambda line: line.get("event") == "memory is short")
        assert (line["used"], line["limit"]) == (95 * MIB, 100 * MIB)
        assert [len(one.idle) for one in pools] == [0]
        for _ in range(3):
            await is_refused(side.inbound)
        assert side.metric("triomesh_refused_total", reason="memory") == 3
        assert (await old.get()).status == 200
        await pages_answer(side, "memory")
        refused = await side.log.wait_for(lambda line: line.get("event") == "new connections refused")
        assert refused["reason"] == "memory"

        # File pages do not count: the kernel gives them up before anybody dies.
        group(tmp_path, 100 * MIB, 95 * MIB, inactive=20 * MIB)
        await side.log.wait_for(lambda line: line.get("event") == "memory is free again")
        new = await dial(side)
        assert (await new.get()).status == (await old.get()).status == 200
        new.close()
        old.close()


@mesh_test
async def test_all_connections_taken() -> None:
    async with application(answering(ok())) as app, back(app, limits=Limits(connections=20)) as side:
        clients = [await dial(side) for _ in range(20)]
        for client in clients:
            assert (await client.get()).status == 200
        for _ in range(5):
            await is_refused(side.inbound)
        await pages_answer(side, "too-many-connections")
        assert side.metric("triomesh_refused_total", reason="too-many-connections") == 5
        for client in clients:
            assert (await client.get()).status == 200
            client.close()


@contextmanager
def descriptors(more: int) -> Iterator[None]:
    """As if the process could have only so many more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@mesh_test
async def test_descriptors_run_out_and_health_answers() -> None:
    with descriptors(200):
        async with application(answering(ok())) as app, back(app) as side:
            clients = [await dial(side) for _ in range(10)]
            for client in clients:
                assert (await client.get()).status == 200
            taken = [os.dup(0)]
            while taken[-1] < side.app.runtime.pressure.accept_below:
                taken.append(os.dup(0))
            for _ in range(3):
                await is_refused(side.inbound)
            assert side.metric("triomesh_refused_total", reason="descriptors") == 3
            assert side.metric("triomesh_refused_total", reason="accept-failed") == 0
            await pages_answer(side, "descriptors")
            for client in clients:
                assert (await client.get()).status == 200
                client.close()
            for descriptor in taken:
                os.close(descriptor)
            again = await dial(side)
            assert (await again.get()).status == 200
            again.close()


@mesh_test
async def test_a_dial_beyond_the_descriptors_is_an_answer_not_a_crash() -> None:
    async with application(answering(ok())) as app:
        snapshot = client_snapshot(VIP, endpoints=(plain(app.addr),), protocol=Protocol.HTTP)
        async with sidecar(TestCa().credentials("client"), snapshot) as front:
            front.aim(outbound=VIP)
            front.app.runtime.dialer.descriptors = 3
            peer = Peer(await trio.open_tcp_stream(*front.outbound))
            message = await peer.get()
            assert message.status == 503
            record = await front.log.wait_for(lambda line: "duration_ms" in line)
            assert record["flag"] == "UF"
            assert "descriptors are short" in str(record["detail"])
            peer.close()


@mesh_test
async def test_peers_that_stall_in_every_way_hold_up_nobody_else() -> None:
    """Endpoints that do not answer, clients that do not read, do not finish a head, or a handshake."""
    big = b"x" * 4_000_000

    async def handle(peer: Peer) -> None:
        while True:
            path = (await peer.head()).path
            if path == b"/stall":
                await trio.sleep_forever()
            await peer.send(ok(big if path == b"/big" else b"ok"))

    async with mesh(handle) as m:
        stalled: list[Peer] = []
        for _ in range(5):
            for start in (b"GET /stall HTTP/1.1\r\nHost: s\r\n\r\n", b"GET / HTTP/1.1\r\nHo", b"G"):
                stalled.append(await m.connect())
                await stalled[-1].send(start)
            unread = await m.connect(rcvbuf=4096)
            await unread.send(b"GET /big HTTP/1.1\r\nHost: s\r\n\r\n")
            upload = await m.connect()
            await upload.send(
                b"POST /stall HTTP/1.1\r\nHost: s\r\nContent-Length: 99999999\r\n\r\n" + big[:200_000]
            )
            handshake = await m.connect(m.server.inbound)
            await handshake.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            stalled += [unread, upload, handshake]
        with trio.fail_after(5):
            for _ in range(10):
                client = await m.connect()
                for _ in range(5):
                    assert (await client.get()).status == 200
                client.close()
        for peer in stalled:
            peer.reset()


@mesh_test
async def test_a_log_reader_that_stalls_stops_nobody() -> None:
    read, write = os.pipe()
    log = LogWriter(write, capacity=64)
    try:
        async with application(answering(ok())) as app:
            snapshot = client_snapshot(VIP, endpoints=(plain(app.addr),), protocol=Protocol.HTTP)
            async with sidecar(TestCa().credentials("client"), snapshot) as front:
                front.aim(outbound=VIP)
                front.app.log = front.app.runtime.log = log
                peer = Peer(await trio.open_tcp_stream(*front.outbound))
                with trio.fail_after(10):
                    while log.dropped < 100:
                        assert (await peer.get(b"/" + b"p" * 2000)).status == 200
                metrics = Peer(await trio.open_tcp_stream("127.0.0.1", front.app.ports["metrics"]))
                body = (await metrics.get(b"/metrics")).body
                assert b"triomesh_access_log_dropped_total 0" not in body
                peer.close()
                metrics.close()
        assert not log.close(0.05)  # the sidecar ends all the same
    finally:
        os.close(read)
        os.close(write)


@mesh_test
async def test_a_name_server_that_does_not_answer_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control plane's name is the only one that a sidecar looks up; it does so in threads of its own."""
    answered = threading.Event()
    asked = 0
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        if host != "control.example":
            return real(host, *args, **kwargs)
        asked += 1
        answered.wait(20)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("mesh_proxy.discovery.dial.RESOLVE_S", 0.2)
    resolver = Resolver()
    failed: list[str] = []

    async def look_up() -> None:
        with pytest.raises(StreamError) as caught:
            await resolver("control.example", 15010)
        failed.append(str(caught.value))

    try:
        async with mesh(ok()) as m, trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look_up)
            await wait_until(lambda: asked == 2)
            client = await m.connect()
            while len(failed) < 5:
                assert (await client.get()).status == 200
    finally:
        answered.set()
    assert asked == 2
    assert all("no address within 0.2 s" in reason for reason in failed)
