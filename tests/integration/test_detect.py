"""Undeclared protocols: who speaks first, and what the first bytes are."""

import pytest
import trio

from mesh_api.limits import Limits
from mesh_api.sidecar import Pod, Protocol
from mesh_proxy.net.addr import Addr
from tests.integration.test_tcp_relay import BROKEN, application, everything, exactly, is_tcp, refused_port
from tests.support.mesh import VIP, TestCa, client_snapshot, identity, pair, run, sidecar, wait_until

SETTINGS = b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0\x64"
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REQUEST = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n"


def is_http(line):
    return str(line.get("protocol", "")).startswith("HTTP")


def undeclared(app):
    return pair(app.addr, protocol=Protocol.AUTO)


async def http_served(app, client):
    """Serve one HTTP request of `client`, after whatever tentative connection there was."""
    async with trio.open_nursery() as nursery:

        async def serve(stream):
            async with stream:
                data = b""
                try:
                    while piece := await stream.receive_some():
                        data += piece
                        if data.endswith(b"\r\n\r\n") and b" HTTP/1.1\r\n" in data:
                            await stream.send_all(RESPONSE)
                except BROKEN:
                    pass

        @nursery.start_soon
        async def _():
            while True:
                nursery.start_soon(serve, await app.listener.accept())

        answer = b""
        with trio.fail_after(5):
            while not answer.endswith(b"\r\n\r\nok"):
                piece = await client.receive_some()
                assert piece, answer
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()


def test_server_first_is_served_at_once_and_remembered():
    async def main():
        async with application() as app, undeclared(app) as mesh:
            for n in range(3):
                started = trio.current_time()
                client = await mesh.connect()
                served = await app.accept()
                await served.send_all(b"220 smtp ready\r\n")
                assert await exactly(client, 16) == b"220 smtp ready\r\n"
                waited = trio.current_time() - started
                assert waited < 1
                await client.send_all(b"QUIT\r\n")
                assert await exactly(served, 6) == b"QUIT\r\n"
                await served.aclose()
                assert await everything(client) == b""
                await client.aclose()
                verdicts = mesh.client.metric("triomesh_detect_total", verdict="server-first")
                assert verdicts == 1, f"connection {n} was looked at again"

    run(main)


@pytest.mark.parametrize("banner", [b"", SETTINGS, b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
def test_a_server_that_ends_undecided_is_not_remembered(banner):
    """An HTTP server that closes a silent connection must not lose HTTP for ten minutes."""

    async def main():
        async with application() as app, undeclared(app) as mesh:
            client = await mesh.connect()
            served = await app.accept()
            if banner:
                await served.send_all(banner)
            await served.aclose()
            assert await everything(client) == banner
            await client.aclose()
            client = await mesh.connect()
            await client.send_all(REQUEST)
            await http_served(app, client)
            await mesh.client.log.wait_for(is_http)
            await client.aclose()

    run(main)


@pytest.mark.parametrize("held", [SETTINGS, SETTINGS[:4], b"HTTP/1."])
def test_settings_do_not_pin_a_silent_client(held):
    async def main():
        async with application() as app, undeclared(app) as mesh:
            client = await mesh.connect()
            tentative = await app.accept()
            await tentative.send_all(held)
            await trio.sleep(0.05)
            await client.send_all(REQUEST)
            await http_served(app, client)
            # The tentative connection was dropped and counted nowhere.
            try:
                assert await everything(tentative) == b""
            except BROKEN:
                pass
            line = await mesh.client.log.wait_for(is_http)
            assert line["protocol"] == "HTTP/1.1"
            assert not any(is_tcp(line) for line in mesh.client.log.lines)
            assert mesh.client.metric("triomesh_tcp_connections_opened_total") == 0
            assert mesh.client.metric("triomesh_detect_total", verdict="server-first") == 0
            await client.aclose()
            await tentative.aclose()

    run(main)


def test_a_client_that_is_slow_to_speak_http():
    async def main():
        async with application() as app, undeclared(app) as mesh:
            client = await mesh.connect()
            tentative = await app.accept()
            await trio.sleep(0.1)
            await client.send_all(REQUEST)
            await http_served(app, client)
            line = await mesh.client.log.wait_for(is_http)
            assert line["status"] == 200
            assert mesh.client.metric("triomesh_tcp_connections_opened_total") == 0
            endpoint = next(iter(next(iter(mesh.client.app.runtime.services.all())).endpoints()))
            assert endpoint.inflight == 0
            await client.aclose()
            await tentative.aclose()

    run(main)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GE", b"T / HTTP/1.1\r\n", b"host: x\r\n\r\n"),
        tuple(REQUEST[i : i + 1] for i in range(len(REQUEST))),
    ],
)
@pytest.mark.parametrize("pause", [0, 0.04])
def test_partial_prefixes_are_http(pieces, pause):
    async def main():
        async with application() as app, undeclared(app) as mesh:
            client = await mesh.connect()
            for piece in pieces:
                await client.send_all(piece)
                await trio.sleep(pause)
            await http_served(app, client)
            await mesh.client.log.wait_for(is_http)
            await client.aclose()

    run(main)


@pytest.mark.parametrize(
    "first", [b"\x00binary", b"\x16\x03\x01\x00\x05hello", b"hello world\n", b"*1\r\n$4\r\nPING\r\n"]
)
def test_other_bytes_are_opaque(first):
    async def main():
        async with application() as app, undeclared(app) as mesh:
            client = await mesh.connect()
            await client.send_all(first)
            served = await app.accept()
            assert await exactly(served, len(first)) == first
            await served.send_all(b"answer")
            assert await exactly(client, 6) == b"answer"
            await client.aclose()
            assert await everything(served) == b""
            await served.aclose()

    run(main)


def test_a_client_that_ends_without_a_word():
    async def main():
        async with application() as app, undeclared(app) as mesh:
            client = await mesh.connect()
            await client.send_eof()
            served = await app.accept()
            assert await everything(served) == b""
            await served.send_all(b"bye")
            await served.aclose()
            assert await everything(client) == b"bye"
            await client.aclose()

    run(main)


def test_a_client_that_ends_within_a_prefix():
    async def main():
        async with application() as app, undeclared(app) as mesh:
            client = await mesh.connect()
            await client.send_all(b"GE")
            await client.send_eof()
            served = await app.accept()
            assert await everything(served) == b"GE"
            await served.aclose()
            assert await everything(client) == b""
            await client.aclose()

    run(main)


def test_client_reset_while_silent():
    async def main():
        async with application() as app, undeclared(app) as mesh:
            from tests.integration.test_tcp_relay import reset

            client = await mesh.connect()
            served = await app.accept()
            reset(client)
            try:
                await everything(served)
            except BROKEN:
                pass
            await served.aclose()
            for side in (mesh.client, mesh.server):
                await wait_until(lambda side=side: not side.app.runtime.connections)
                assert not side.app.runtime.reactor.conns

    run(main)


def test_a_silent_client_of_a_dead_endpoint_is_not_left_waiting():
    async def main():
        snapshot = client_snapshot(Addr("127.0.0.1", refused_port()), protocol=Protocol.AUTO)
        limits = Limits(detect_seconds=0.2)
        async with sidecar(TestCa().credentials("client"), snapshot, limits=limits) as front:
            front.aim(outbound=VIP)
            client = await trio.open_tcp_stream(*front.outbound)
            with pytest.raises(BROKEN):
                await everything(client)
            assert (await front.log.wait_for(is_tcp))["flag"] == "UF"
            await client.aclose()

    run(main)


def test_a_pod_by_its_own_address():
    """Undeclared unless the port is listed as opaque; plaintext where its sidecar does not capture."""

    async def main():
        async with application() as app:
            pod = Pod(
                name="server-0",
                namespace="shop",
                addresses=("127.0.0.1",),
                identity=identity("server"),
                plaintext_ports=(app.addr.port,),
                opaque_ports=(app.addr.port,),
            )
            import msgspec

            snapshot = msgspec.structs.replace(client_snapshot(Addr("127.0.0.1", 1)), pods=(pod,))
            async with sidecar(TestCa().credentials("client"), snapshot) as front:
                front.aim(outbound=app.addr)
                client = await trio.open_tcp_stream(*front.outbound)
                served = await app.accept()  # at once: the client has not spoken
                await client.send_all(b"GET / HTTP/1.1\r\n")
                assert await exactly(served, 16) == b"GET / HTTP/1.1\r\n"
                await client.aclose()
                assert await everything(served) == b""
                await served.aclose()
                assert (await front.log.wait_for(is_tcp))["mtls"] is False

    run(main)
