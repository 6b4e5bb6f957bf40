"""The inbound port: what each mTLS mode takes, refuses and passes on."""

import contextlib
import ssl

import pytest
import trio

from certs.credentials import ALPN_HTTP1, ALPN_TCP
from mesh_api.limits import Limits
from mesh_api.sidecar import Inbound, MtlsMode, Pod, Protocol
from mesh_proxy.net.addr import Addr
from tests.integration.test_detect import REQUEST, RESPONSE
from tests.integration.test_tcp_relay import (
    BROKEN,
    application,
    everything,
    exactly,
    is_tcp,
    refused_port,
    reset,
)
from tests.support.mesh import TestCa, identity, run, server_snapshot, sidecar, wait_until

STRICT, PERMISSIVE, DISABLE = MtlsMode.STRICT, MtlsMode.PERMISSIVE, MtlsMode.DISABLE
CA = TestCa()
FOREIGN = TestCa("other.example")
SAME_NAME = TestCa()


def back(mode, app, ca=CA, limits=Limits(), **inbound):  # noqa: B008 - frozen
    snapshot = server_snapshot(inbound=Inbound(mtls=mode, **inbound))
    return sidecar(ca.credentials("server"), snapshot, limits=limits)


async def dial(side):
    return await trio.open_tcp_stream(*side.inbound)


async def handshake(stream, context, *, server_side=False):
    """TLS in the caller's hands: (engine, incoming, outgoing)."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    engine = context.wrap_bio(incoming, outgoing, server_side=server_side)
    while True:
        try:
            engine.do_handshake()
            break
        except ssl.SSLWantReadError:
            await stream.send_all(outgoing.read())
            data = await stream.receive_some()
            if not data:
                raise EOFError from None
            incoming.write(data)
    await stream.send_all(outgoing.read())
    return engine, incoming, outgoing


async def ended(stream):
    """Whether the sidecar closed it without a byte of an answer."""
    try:
        data = await stream.receive_some()
    except BROKEN:
        return True
    # At most an alert.
    return data == b"" or (data[0] == 0x15 and await ended(stream))


def hello_of(context):
    outgoing = ssl.MemoryBIO()
    engine = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_side=False, server_hostname=None)
    with pytest.raises(ssl.SSLWantReadError):
        engine.do_handshake()
    return outgoing.read()


def client_context(ca=CA, *, alpn=(ALPN_TCP,), certificate=True):
    credentials = ca.credentials("client")
    if certificate:
        context = credentials.client[ALPN_TCP]
        context.set_alpn_protocols(list(alpn))
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    return context


def expired_context():
    """A leaf that was good when it was loaded and is not any more."""
    context = CA.credentials("client", lifetime_s=1).client[ALPN_TCP]
    return context


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (REQUEST, "plaintext"),
        (b"\0\1\2garbage", "plaintext"),
        (b"\x16\x03\x01\x00\x05zzzzz", "not-tls"),
        (b"\x16\x09\x09", "not-tls"),
        (hello_of(client_context(certificate=False, alpn=("h2", "http/1.1"))), "tls-not-of-the-mesh"),
        (hello_of(client_context(certificate=False, alpn=())), "tls-not-of-the-mesh"),
    ],
    ids=["http", "garbage", "hello-garbage", "version", "other-alpn", "no-alpn"],
)
def test_strict_refuses_by_first_bytes(first, reason):
    async def main():
        async with application() as app, back(STRICT, app) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            await client.send_all(first)
            assert await ended(client)
            await client.aclose()
            assert side.metric("triomesh_refused_total", direction="inbound", reason=reason) == 1
            line = await side.log.wait_for(lambda line: line.get("reason") == reason)
            assert line["destination"] == str(app.addr)
            assert line["source"].startswith("127.0.0.1:")
            assert app.accepted == 0

    run(main)


@pytest.mark.parametrize("who", ["foreign-trust-domain", "same-name-other-root", "no-certificate", "expired"])
@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE])
def test_mesh_handshakes_that_fail(who, mode):
    context = {
        "foreign-trust-domain": lambda: client_context(FOREIGN),
        "same-name-other-root": lambda: client_context(SAME_NAME),
        "no-certificate": lambda: client_context(certificate=False),
        "expired": expired_context,
    }[who]()
    context.verify_mode = ssl.CERT_NONE  # this client does not mind whom it meets

    async def main():
        if who == "expired":
            await trio.sleep(1.2)
        async with application() as app, back(mode, app) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            try:
                engine, incoming, _ = await handshake(client, context)
                while data := await client.receive_some():
                    incoming.write(data)
                    assert not engine.read(100)
            except (ssl.SSLError, EOFError, *BROKEN):
                pass
            await client.aclose()
            await wait_until(lambda: side.metric("triomesh_refused_total", reason="handshake") == 1)
            assert side.metric("triomesh_handshakes_total", side="server", result="failed") == 1
            line = await side.log.wait_for(lambda line: line.get("reason") == "handshake")
            assert line["detail"]
            if who == "expired":
                assert "expired" in line["detail"]
            assert app.accepted == 0

    run(main)


@pytest.mark.parametrize("mode", [STRICT, PERMISSIVE])
@pytest.mark.parametrize("alpn", [ALPN_TCP, ALPN_HTTP1])
def test_the_meshs_own_tls_is_terminated(mode, alpn):
    async def main():
        async with application() as app, back(mode, app) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            engine, incoming, outgoing = await handshake(client, client_context(alpn=(alpn,)))
            engine.write(REQUEST)
            await client.send_all(outgoing.read())
            served = await app.accept()
            head = await exactly(served, len(REQUEST))
            assert head.startswith(b"GET / HTTP/1.1\r\n")
            if alpn == ALPN_TCP:
                assert head == REQUEST
            await served.send_all(RESPONSE)
            incoming.write(await client.receive_some())
            assert engine.read(9) == b"HTTP/1.1 "
            await client.aclose()
            await served.aclose()
            assert side.metric("triomesh_handshakes_total", side="server", result="ok") == 1

    run(main)


def test_hello_in_many_segments():
    """Cut at every byte, for a terminated and a passed-through connection."""
    ours = hello_of(client_context())
    theirs = hello_of(client_context(certificate=False, alpn=("h2",)))

    async def main():
        async with application() as app, back(PERMISSIVE, app) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            for n in range(len(ours)):
                await client.send_all(ours[n : n + 1])
            assert (await client.receive_some())[0] == 0x16  # our ServerHello
            await client.aclose()
            client = await dial(side)
            for n in range(len(theirs)):
                await client.send_all(theirs[n : n + 1])
            served = await app.accept()
            assert await exactly(served, len(theirs)) == theirs
            await client.aclose()
            await served.aclose()

    run(main)


@pytest.mark.parametrize("protocol", list(Protocol))
def test_the_applications_own_tls_passes_untouched(protocol):
    server_context = FOREIGN.credentials("real-server").server
    names = []
    server_context.sni_callback = lambda _sock, name, _context: names.append(name)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server_context.verify_mode = ssl.CERT_NONE
    server_context.set_alpn_protocols(["http/1.1"])
    client.set_alpn_protocols(["http/1.1"])

    async def main():
        async with (
            application() as app,
            back(PERMISSIVE, app, protocols={str(app.addr.port): protocol}) as side,
        ):
            side.aim(inbound=app.addr)
            stream = await dial(side)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _():
                    raw = await app.accept()
                    engine, incoming, outgoing = await handshake(raw, server_context, server_side=True)
                    while not incoming.pending:
                        incoming.write(await raw.receive_some())
                    assert engine.read(4) == b"ping"
                    engine.write(b"pong")
                    await raw.send_all(outgoing.read())
                    await everything(raw)
                    await raw.aclose()

                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                engine = client.wrap_bio(incoming, outgoing, server_hostname="real.example")
                while True:
                    try:
                        engine.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        await stream.send_all(outgoing.read())
                        incoming.write(await stream.receive_some())
                engine.write(b"ping")
                await stream.send_all(outgoing.read())
                incoming.write(await stream.receive_some())
                assert engine.read(4) == b"pong"
                assert b"real-server" in engine.getpeercert(binary_form=True)
                await stream.aclose()
            assert names == ["real.example"]

    run(main)


@pytest.mark.parametrize("mode", [PERMISSIVE, DISABLE])
def test_plaintext_passes(mode):
    async def main():
        async with application() as app, back(mode, app) as side:
            side.aim(inbound=app.addr)
            for payload in (REQUEST, b"\0\1binary"):
                client = await dial(side)
                await client.send_all(payload)
                served = await app.accept()
                assert (await exactly(served, len(payload)))[:8] == payload[:8]
                await served.send_all(RESPONSE)
                assert (await exactly(client, 8))[:8] == RESPONSE[:8]
                await client.aclose()
                await served.aclose()
            await side.log.wait_for(is_tcp)
            assert not any(line.get("mtls") for line in side.log.lines)

    run(main)


def test_disable_passes_the_meshs_hello_on():
    hello = hello_of(client_context())

    async def main():
        async with application() as app, back(DISABLE, app) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            await client.send_all(hello)
            served = await app.accept()
            assert await exactly(served, len(hello)) == hello
            await client.aclose()
            await served.aclose()

    run(main)


@pytest.mark.parametrize("mode", [PERMISSIVE, DISABLE])
@pytest.mark.parametrize("protocol", [Protocol.AUTO, Protocol.TCP])
def test_the_server_may_speak_first_to_an_unmeshed_client(mode, protocol):
    async def main():
        async with application() as app, back(mode, app, protocols={str(app.addr.port): protocol}) as side:
            side.aim(inbound=app.addr)
            started = trio.current_time()
            client = await dial(side)
            served = await app.accept()
            await served.send_all(b"220 hi\r\n")
            assert await exactly(client, 8) == b"220 hi\r\n"
            assert trio.current_time() - started < 1
            await client.send_all(b"QUIT")
            assert await exactly(served, 4) == b"QUIT"
            await client.aclose()
            assert await everything(served) == b""
            await served.aclose()

    run(main)


def test_strict_never_speaks_first():
    async def main():
        async with application() as app, back(STRICT, app, limits=Limits(detect_seconds=0.3)) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            assert await ended(client)
            await client.aclose()
            assert app.accepted == 0
            assert side.metric("triomesh_refused_total", reason="detect-timeout") == 1

    run(main)


@pytest.mark.parametrize("tls", ["mesh", "none"])
def test_a_silent_peer_of_the_mesh_is_waited_for(tls):
    """A pod with a sidecar will send its ClientHello; one without may be waiting for the server."""
    from mesh_api.sidecar import TlsMode

    pods = (
        Pod(
            name="c",
            namespace="shop",
            addresses=("127.0.0.1",),
            identity=identity("client"),
            tls=TlsMode(tls),
        ),
    )

    async def main():
        async with application() as app:
            snapshot = server_snapshot(inbound=Inbound(mtls=PERMISSIVE), pods=pods)
            limits = Limits(detect_seconds=1.0)
            async with sidecar(CA.credentials("server"), snapshot, limits=limits) as side:
                side.aim(inbound=app.addr)
                client = await dial(side)
                accepted = None
                with trio.move_on_after(0.3):
                    accepted = await app.listener.accept()
                if tls == "none":
                    assert accepted is not None
                    await accepted.aclose()
                else:
                    assert accepted is None
                    engine, _, outgoing = await handshake(client, client_context())
                    engine.write(b"late")
                    await client.send_all(outgoing.read())
                    served = await app.accept()
                    assert await exactly(served, 4) == b"late"
                    await served.aclose()
                await client.aclose()

    run(main)


def test_a_handshake_that_stalls_ends():
    hello = hello_of(client_context())

    async def main():
        async with application() as app, back(STRICT, app, limits=Limits(detect_seconds=0.3)) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            await client.send_all(hello)
            with trio.fail_after(3), contextlib.suppress(*BROKEN):
                while await client.receive_some():
                    pass
            await client.aclose()
            await wait_until(lambda: not side.app.runtime.connections)
            assert side.metric("triomesh_refused_total", reason="handshake") == 1

    run(main)


def test_changing_to_strict():
    """Plaintext relays end and the next plaintext request is refused; mTLS connections stay."""

    async def main():
        async with application() as app, back(PERMISSIVE, app) as side:
            side.aim(inbound=app.addr)
            tcp, http, silent, meshed = [await dial(side) for _ in range(4)]
            served = []
            await tcp.send_all(b"\0\1")
            served.append(await app.accept())
            assert await exactly(served[0], 2) == b"\0\1"
            await http.send_all(REQUEST)
            # The silent one opens the application too: find out which is which.
            streams = [await app.accept(), await app.accept()]
            got = {}

            async def look(stream):
                with trio.move_on_after(1):
                    got[stream] = await stream.receive_some()

            engine, _, outgoing = await handshake(meshed, client_context())
            engine.write(b"meshed")
            await meshed.send_all(outgoing.read())
            streams.append(await app.accept())
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(look, stream)
            of_http = next(s for s, data in got.items() if data.startswith(b"GET"))
            of_mesh = next(s for s, data in got.items() if data == b"meshed")
            of_silent = next(s for s in streams if s not in got)
            await of_http.send_all(RESPONSE)
            assert (await exactly(http, len(RESPONSE)))[-2:] == b"ok"

            side.app.on_snapshot(server_snapshot(inbound=Inbound(mtls=STRICT)))
            with trio.fail_after(5), pytest.raises(BROKEN):
                await everything(tcp)
            await http.send_all(REQUEST)
            answer = await http.receive_some()
            assert answer.startswith(b"HTTP/1.1 403")
            assert b"UAEX" in answer
            # What the application may say now must not go out in plaintext.
            with contextlib.suppress(*BROKEN):
                await of_silent.send_all(b"banner")
            assert await ended(silent)
            engine.write(b"still here")
            await meshed.send_all(outgoing.read())
            assert await exactly(of_mesh, 10) == b"still here"
            line = await side.log.wait_for(lambda line: is_tcp(line) and line.get("flag"))
            assert line["flag"] == "UAEX"
            for stream in (tcp, http, silent, meshed, *served, *streams):
                await stream.aclose()

    run(main)


def test_per_port_mode():
    async def main():
        async with (
            application() as app,
            back(STRICT, app, port_mtls={str(app.addr.port): PERMISSIVE}) as side,
        ):
            side.aim(inbound=app.addr)
            client = await dial(side)
            await client.send_all(b"\0plain")
            served = await app.accept()
            assert await exactly(served, 6) == b"\0plain"
            await client.aclose()
            await served.aclose()

    run(main)


@pytest.mark.parametrize("reason", ["no-original-address", "own-port", "not-this-pod"])
def test_addresses_that_are_not_ours(reason):
    async def main():
        async with back(PERMISSIVE, None) as side:
            if reason == "own-port":
                side.aim(inbound=Addr("127.0.0.1", side.app.ports["admin"]))
            elif reason == "not-this-pod":
                side.aim(inbound=Addr("192.0.2.77", 80))
            client = await dial(side)
            with pytest.raises(BROKEN):
                await everything(client)
            await client.aclose()
            assert side.metric("triomesh_refused_total", direction="inbound", reason=reason) == 1
            await side.log.wait_for(lambda line: line.get("reason") == reason)
            await wait_until(lambda: not side.app.runtime.connections)

    run(main)


@pytest.mark.parametrize("loopback", ["127.0.0.2", "0.0.0.0", "::1", "::"])
def test_loopback_is_never_reached_from_outside(loopback):
    async def main():
        async with back(PERMISSIVE, None) as side:
            side.aim(inbound=Addr(loopback, 8080))
            client = await dial(side)
            with pytest.raises(BROKEN):
                await everything(client)
            await client.aclose()
            assert side.metric("triomesh_refused_total", reason="not-this-pod") == 1

    run(main)


def test_no_configuration_means_strict():
    async def main():
        async with application() as app, sidecar(CA.credentials("server")) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            await client.send_all(REQUEST)
            assert await ended(client)
            await client.aclose()
            assert app.accepted == 0

    run(main)


def test_no_certificate_yet():
    async def main():
        async with application() as app, sidecar(None, server_snapshot()) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            await client.send_all(hello_of(client_context()))
            assert await ended(client)
            await client.aclose()
            assert side.metric("triomesh_refused_total", reason="no-certificate") == 1

    run(main)


def test_the_application_sees_the_sidecars_source_address():
    async def main():
        async with application() as app, back(PERMISSIVE, app) as side:
            side.aim(inbound=app.addr)
            client = await dial(side)
            await client.send_all(b"\0x")
            served = await app.accept()
            assert served.socket.getpeername()[0] == "127.0.0.6"
            await client.aclose()
            await served.aclose()

    run(main)


def test_a_plaintext_client_of_a_dead_application_is_reset():
    async def main():
        async with back(PERMISSIVE, None) as side:
            side.aim(inbound=Addr("127.0.0.1", refused_port()))
            client = await dial(side)
            await client.send_all(b"\0x")
            with pytest.raises(BROKEN):
                await everything(client)
            assert (await side.log.wait_for(is_tcp))["flag"] == "UF"
            await client.aclose()

    run(main)


async def one_word(side):
    async with await dial(side) as stream:
        return await everything(stream)


def test_connections_are_bounded():
    async def main():
        async with application() as app:
            snapshot = server_snapshot(inbound=Inbound(mtls=PERMISSIVE))
            async with sidecar(CA.credentials("server"), snapshot, limits=Limits(connections=3)) as side:
                side.aim(inbound=app.addr)
                clients = [await dial(side) for _ in range(3)]
                await wait_until(lambda: side.app.runtime.connections == 3)
                # The reset may come before the client's connect has returned.
                with pytest.raises((OSError, *BROKEN)):
                    await one_word(side)
                assert side.metric("triomesh_refused_total", reason="too-many-connections") == 1
                reset(clients.pop())
                await wait_until(lambda: side.app.runtime.connections == 2)
                again = await dial(side)
                await again.send_all(b"\0x")
                await wait_until(lambda: side.app.runtime.connections == 3)
                for stream in (again, *clients):
                    await stream.aclose()

    run(main)
