"""TLS of the programs themselves: passed through as it is, its server name read in passing."""

import ssl
from contextlib import asynccontextmanager

import pytest
import trio

from mesh_api.sidecar import EgressMode, Protocol, Snapshot, Workload
from mesh_proxy.telemetry.families import MAX_SERVER_NAMES
from tests.integration.test_modes import handshake
from tests.integration.test_tcp_relay import BROKEN, application, exactly, is_tcp, reset
from tests.support.mesh import TestCa, pair, run, sidecar, wait_until

CA = TestCa()
FOREIGN = TestCa("programs.example")
COUNTER = "triomesh_tls_connections_total"


def contexts():
    """TLS of a program: certificates that the mesh knows nothing of, an ALPN of its own."""
    credentials = FOREIGN.credentials("server")
    credentials.server.verify_mode = ssl.CERT_NONE
    credentials.server.set_alpn_protocols(["imap"])
    client = ssl.create_default_context(cadata=credentials.bundle_pem)
    client.check_hostname = False
    client.set_alpn_protocols(["imap"])
    return client, credentials.server


def hello(name, alpn=()):
    """The bytes with which OpenSSL begins."""
    context, _ = contexts()
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    engine = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        engine.do_handshake()
    return outgoing.read()


@asynccontextmanager
async def outside(app):
    """A sidecar that knows no destination, and the address of one outside the mesh."""
    snapshot = Snapshot(
        workload=Workload(name="client", namespace="shop"), egress=EgressMode.PASSTHROUGH, access_log=True
    )
    async with sidecar(CA.credentials("client"), snapshot) as side:
        side.aim(outbound=app.addr)
        yield side


@asynccontextmanager
async def meshed(app, protocol):
    async with pair(app.addr, protocol=protocol) as mesh:
        yield mesh.client


SCENES = {
    "declared": lambda app: meshed(app, Protocol.TCP),
    "undeclared": lambda app: meshed(app, Protocol.AUTO),
    "outside": outside,
}
LABELS = {"declared": "server.shop:80", "undeclared": "server.shop:80", "outside": "passthrough"}


@pytest.mark.parametrize("size", [1, 7, 100_000], ids=["bytes", "pieces", "whole"])
@pytest.mark.parametrize("scene", SCENES)
def test_the_server_name_is_logged_and_counted(scene, size):
    first = hello("Api.Example.com", ["h2", "http/1.1"])

    async def main():
        async with application() as app, SCENES[scene](app) as side:
            async with await trio.open_tcp_stream(*side.outbound) as client:
                client.setsockopt(6, 1, 1)
                for at in range(0, len(first), size):
                    await client.send_all(first[at : at + size])
                    if size == 1:
                        await trio.lowlevel.checkpoint()
                served = await app.accept()
                assert await exactly(served, len(first)) == first, "untouched"
            await served.aclose()
            line = await side.log.wait_for(is_tcp)
            assert line["sni"] == "Api.Example.com"
            assert side.metric(COUNTER, sni="api.example.com", destination=LABELS[scene]) == 1
            assert side.metric(COUNTER) == 1

    run(main)


def test_a_handshake_through_two_sidecars_is_the_programs_own():
    async def main():
        client_side, server_side = contexts()
        async with application() as app, pair(app.addr, protocol=Protocol.AUTO) as mesh:
            async with await mesh.connect() as client, trio.open_nursery() as nursery:

                @nursery.start_soon
                async def serve():
                    served = await app.accept()
                    engine, _, outgoing = await handshake(served, server_side, server_side=True)
                    engine.write(b"greeting")
                    await served.send_all(outgoing.read())
                    await served.receive_some()
                    await served.aclose()

                tls = trio.SSLStream(client, client_side, server_hostname="db.internal")
                assert await tls.receive_some() == b"greeting"
                assert tls.selected_alpn_protocol() == "imap"
                await tls.aclose()
            line = await mesh.client.log.wait_for(is_tcp)
            assert (line["sni"], line["mtls"]) == ("db.internal", True)

    run(main)


@pytest.mark.parametrize(
    "first",
    [
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\x40\x00" + bytes(30_000),
        b"\x00\x01\x02",
        b"*1\r\n$4\r\nPING\r\n",
    ],
    ids=["no-hello", "endless", "binary", "redis"],
)
def test_what_is_no_hello_passes_uncounted(first):
    async def main():
        async with application() as app, meshed(app, Protocol.TCP) as side:
            async with await trio.open_tcp_stream(*side.outbound) as client:
                await client.send_all(first)
                served = await app.accept()
                assert await exactly(served, len(first)) == first
            await served.aclose()
            line = await side.log.wait_for(is_tcp)
            assert "sni" not in line
            assert side.metric(COUNTER) == 0

    run(main)


def test_a_hello_without_a_name():
    async def main():
        async with application() as app, meshed(app, Protocol.TCP) as side:
            async with await trio.open_tcp_stream(*side.outbound) as client:
                await client.send_all(hello(None))
                await (await app.accept()).aclose()
            await wait_until(lambda: side.metric(COUNTER, sni="") == 1)
            assert "sni" not in await side.log.wait_for(is_tcp)

    run(main)


def test_reading_the_name_holds_nothing_up():
    """A hello that never ends is passed on as it comes, and the server may speak before it."""

    async def main():
        first = hello("slow.example")
        async with application() as app, meshed(app, Protocol.TCP) as side:
            async with await trio.open_tcp_stream(*side.outbound) as client:
                served = await app.accept()
                await served.send_all(b"first")
                assert await exactly(client, 5) == b"first"
                await client.send_all(first[:20])
                assert await exactly(served, 20) == first[:20]
                reset(client)
                with pytest.raises(BROKEN):
                    await exactly(served, 1)
            await served.aclose()
            assert "sni" not in await side.log.wait_for(is_tcp)

    run(main)


def test_the_names_are_bounded():
    async def main():
        async with application() as app, meshed(app, Protocol.TCP) as side:
            counter = side.app.runtime.stats.tls_connections
            for number in range(MAX_SERVER_NAMES + 50):
                counter.child("server.shop:80", f"{number}.example").value += 1
            assert len(counter.children) == MAX_SERVER_NAMES + 1
            assert side.metric(COUNTER, sni="other") == 50

    run(main)
