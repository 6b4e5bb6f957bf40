"""What the proxy says by itself, and when it tries again."""

from __future__ import annotations

import pytest
import trio

from mesh_api.sidecar import Endpoint, Inbound, MtlsMode, TlsMode
from mesh_api.traffic import Algorithm, Budget, Outliers, Retries, Settings, Timeouts
from tests.integration.http_peers import (
    Message,
    Peer,
    answering,
    application,
    closed_port,
    fleet,
    mesh,
    mesh_test,
    ok,
    plain,
)
from tests.support.mesh import TestCa, identity, server_snapshot, sidecar, wait_until

RULE = b'rule="shop/server:80"'
GET = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nab"


def error_of(response: Message) -> bytes:
    error = response.get(b"x-triomesh-error")
    assert error is not None, response.raw
    assert len(response.get(b"x-request-id") or b"") == 32
    assert response.body.startswith(error.partition(b";")[0].removeprefix(b"flag="))
    return error


async def resetting(peer: Peer) -> None:
    await peer.request()
    peer.reset()


@mesh_test
async def test_no_endpoint() -> None:
    async with fleet() as m:
        client = await m.connect()
        for _ in range(2):
            response = await client.get()
            assert response.status == 503
            error = error_of(response)
            assert error == b"flag=UH; side=client; " + RULE + b'; detail="the destination has no endpoint"'
        record = await m.record(flag="UH")
        assert (record["status"], record["attempts"], record["side"]) == (503, 0, "client")
        assert m.client.metric("triomesh_requests_total", flag="UH", code="503") == 2


@mesh_test
async def test_an_error_to_head_has_no_body() -> None:
    async with fleet() as m:
        client = await m.connect()
        assert (await client.get(method=b"HEAD")).status == 503
        assert (await client.get()).status == 503


@mesh_test
async def test_an_error_to_an_unread_body_closes() -> None:
    async with fleet() as m:
        client = await m.connect()
        await client.send(POST[:-1])
        response = await client.response()
        assert response.status == 503
        assert response.get(b"connection") == b"close"
        await client.send(POST[-1:])
        assert await client.end() == "clean"


@mesh_test
async def test_connect_refused() -> None:
    addr = closed_port()
    async with fleet(plain(addr)) as m:
        response = await (await m.connect()).get()
        assert response.status == 503
        error = error_of(response)
        assert error.startswith(b"flag=UF; side=client; " + RULE + b'; endpoint="%s"' % str(addr).encode())
        assert b"refused" in error
        record = await m.record(flag="UF")
        assert (record["upstream"], record["attempts"]) == (str(addr), 1)
        assert record["retry_reason"] == "every endpoint has been tried"
        assert m.client.metric("triomesh_retries_total", result="tried") == 0


@mesh_test
async def test_application_refuses() -> None:
    """The flag is the server's sidecar's; the client's sidecar passes it on and has nothing to add."""
    async with mesh(ok()) as m:
        await m.app.stop_listening()
        response = await (await m.connect()).get()
        assert response.status == 503
        assert error_of(response).startswith(b'flag=UF; side=server; rule="application"; endpoint="')
        assert (await m.record("server", flag="UF"))["side"] == "server"
        assert "flag" not in await m.record(status=503)


@mesh_test
async def test_endpoint_resets_before_its_response() -> None:
    async with application(resetting) as app, fleet(plain(app.addr)) as m:
        client = await m.connect()
        await client.send(POST)
        response = await client.response()
        assert response.status == 503
        assert error_of(response).startswith(b"flag=UC; side=client; ")
        record = await m.record(flag="UC")
        assert record["retry_reason"] == "the method is not idempotent and bytes were sent"
        assert len(app.peers) == 1


@mesh_test
async def test_endpoint_ends_within_its_head() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.1 200 OK\r\nContent-Le")

    async with application(handle) as app, fleet(plain(app.addr)) as m:
        response = await (await m.connect()).get()
        assert response.status == 503
        assert error_of(response).startswith(b"flag=UC; side=client; ")
        assert len(app.peers) == 1, "a response had begun"


@mesh_test
async def test_request_timeout() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.rest()

    async with mesh(silent, settings=Settings(timeouts=Timeouts(request_s=0.1))) as m:
        client = await m.connect()
        for _ in range(2):
            response = await client.get()
            assert response.status == 504
            assert error_of(response).startswith(b"flag=UT; side=client; " + RULE)
        assert (await m.record(flag="UT"))["status"] == 504
        # The server's sidecar learns it as a client that is gone, and so does the application.
        await m.record("server", flag="DC")


@mesh_test
async def test_request_timeout_within_the_response_cuts_it() -> None:
    async def slow(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await peer.rest()

    async with mesh(slow, settings=Settings(timeouts=Timeouts(request_s=0.2))) as m:
        client = await m.connect()
        await client.send(GET)
        await client.head()
        assert await client.exactly(2) == b"he"
        assert await client.end() == "reset"
        assert (await m.record(flag="UT"))["status"] == 200


@mesh_test
async def test_request_timeout_while_the_client_sends() -> None:
    async with mesh(ok(), settings=Settings(timeouts=Timeouts(request_s=0.1))) as m:
        client = await m.connect()
        await client.send(POST[:-1])
        response = await client.response()
        assert response.status == 504
        assert response.get(b"connection") == b"close"


@pytest.mark.parametrize("tls", [TlsMode.MESH, TlsMode.NONE])
@mesh_test
async def test_endpoint_that_accepts_and_is_silent(tls: TlsMode) -> None:
    """The connect timeout covers the TLS handshake; without TLS only the request timeout ends it."""
    async with application(lambda peer: peer.rest()) as app:
        endpoint = Endpoint(
            address=app.addr.ip, port=app.addr.port, tls=tls, identity=identity("server"), workload="w"
        )
        timeouts = Timeouts(connect_s=0.1, request_s=None if tls is TlsMode.MESH else 0.2)
        async with fleet(endpoint, settings=Settings(timeouts=timeouts)) as m:
            response = await (await m.connect()).get()
            flag = b"UF" if tls is TlsMode.MESH else b"UT"
            assert error_of(response).startswith(b"flag=%s; side=client; " % flag)


@mesh_test
async def test_endpoint_of_another_identity() -> None:
    ca = TestCa()
    async with (
        sidecar(ca.credentials("other"), server_snapshot()) as back,
        application(answering(ok())) as app,
    ):
        back.aim(inbound=app.addr)
        endpoint = Endpoint(
            address=back.inbound.ip, port=back.inbound.port, tls=TlsMode.MESH, identity=identity("server")
        )
        async with fleet(endpoint) as m:
            m.client.app.holder.swap(ca.credentials("client"))
            response = await (await m.connect()).get()
            assert error_of(response).startswith(b"flag=UF; side=client; ")
            assert not app.peers


@mesh_test
async def test_a_plaintext_caller_gets_the_flag_and_nothing_else() -> None:
    async with mesh(ok()) as m:
        await m.app.stop_listening()
        response = await (await m.connect(m.server.inbound)).get()
        assert response.status == 503
        assert error_of(response) == b"UF"
        assert response.body == b"UF\n"


@mesh_test
async def test_a_plaintext_caller_is_denied_once_the_mode_is_strict() -> None:
    async with mesh(ok()) as m:
        client = await m.connect(m.server.inbound)
        assert (await client.get()).status == 200
        m.server.app.on_snapshot(server_snapshot(inbound=Inbound(mtls=MtlsMode.STRICT)))
        response = await client.get()
        assert response.status == 403
        assert error_of(response) == b"UAEX"
        assert (await (await m.connect()).get()).status == 200, "mTLS goes on"


# Retries


def stale_once(answer: bytes = ok(b"again")) -> tuple[list[int], object]:
    """A handler whose first connection answers once and resets at the second request."""
    seen: list[int] = []

    async def handle(peer: Peer) -> None:
        seen.append(0)
        number = len(seen) - 1
        while True:
            await peer.request()
            seen[number] += 1
            if number == 0 and seen[0] == 2:
                peer.reset()
                return
            await peer.send(answer)

    return seen, handle


@mesh_test
async def test_stale_pooled_connection_get_is_tried_again() -> None:
    seen, handle = stale_once()
    async with application(handle) as app, fleet(plain(app.addr)) as m:
        client = await m.connect()
        assert (await client.get()).status == 200
        assert (await client.get()).body == b"again"
        assert seen == [2, 1]
        assert (await m.record(attempts=2))["status"] == 200
        assert m.client.metric("triomesh_retries_total", result="tried") == 1
        (endpoint,) = next(iter(m.client.app.runtime.services.all())).endpoints()
        assert endpoint.failures == 0, "the endpoint is not to blame"


@mesh_test
async def test_stale_pooled_connection_post_is_not_tried_again() -> None:
    seen, handle = stale_once()
    async with application(handle) as app, fleet(plain(app.addr)) as m:
        client = await m.connect()
        assert (await client.get()).status == 200
        await client.send(POST)
        response = await client.response()
        assert error_of(response).startswith(b"flag=UC; ")
        assert seen == [2]
        assert (await client.get()).status == 200


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@mesh_test
async def test_pooled_connection_that_the_endpoint_closed(method: bytes) -> None:
    """The end was seen before the next request: nobody notices."""

    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())

    async with application(once) as app, fleet(plain(app.addr)) as m:
        client = await m.connect()
        for n in range(5):
            await client.send(method + b" / HTTP/1.1\r\nHost: s\r\n\r\n")
            assert (await client.response()).status == 200
            conns = m.client.app.runtime.reactor.conns
            await wait_until(lambda c=conns: len(c) == 1)
            assert len(app.peers) == n + 1
        assert m.client.metric("triomesh_retries_total") == 0


@mesh_test
async def test_servers_sidecar_closes_an_idle_connection() -> None:
    async with mesh(ok()) as m:
        client = await m.connect()
        assert (await client.get()).status == 200
        for conn in [c for c in m.server.app.runtime.reactor.conns.values() if c.peer]:
            conn.on_deadline()
        conns = m.client.app.runtime.reactor.conns.values()
        await wait_until(lambda: not [c for c in conns if c.peer])
        for _ in range(3):
            await client.send(POST)
            assert (await client.response()).status == 200


@mesh_test
async def test_connect_refused_is_tried_at_the_other_endpoint() -> None:
    async with (
        application(answering(ok())) as app,
        fleet(plain(closed_port()), plain(app.addr), settings=Settings(algorithm=Algorithm.ROUND_ROBIN)) as m,
    ):
        client = await m.connect()
        await client.send(POST)
        assert (await client.response()).status == 200
        record = await m.record(attempts=2)
        assert record["upstream"] == str(app.addr)
        assert "retry_reason" not in record
        assert m.client.metric("triomesh_retries_total", result="tried") == 1


@mesh_test
async def test_hosts_tried_are_not_tried_again() -> None:
    endpoints = [plain(closed_port()) for _ in range(3)]
    async with fleet(*endpoints, retries=Retries(attempts=10)) as m:
        response = await (await m.connect()).get()
        assert error_of(response).startswith(b"flag=UF; ")
        assert (await m.record(flag="UF"))["attempts"] == 3


@mesh_test
async def test_retries_are_limited() -> None:
    endpoints = [plain(closed_port()) for _ in range(4)]
    async with fleet(*endpoints, retries=Retries(attempts=2)) as m:
        await (await m.connect()).get()
        record = await m.record(flag="UF")
        assert (record["attempts"], record["retry_reason"]) == (3, "no retries are left")


@mesh_test
async def test_a_big_body_is_not_kept() -> None:
    body = b"x" * 200_000

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.exactly(150_000)
        peer.reset()

    async with (
        application(handle) as one,
        application(handle) as two,
        fleet(plain(one.addr), plain(two.addr)) as m,
    ):
        client = await m.connect()
        await client.send(b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 200000\r\n\r\n")
        await client.send(body)
        response = await client.response()
        assert error_of(response).startswith(b"flag=UC; ")
        record = await m.record(flag="UC")
        assert record["retry_reason"] == "the request body is over 64 KiB and was not kept"
        assert len(one.peers) + len(two.peers) == 1
        assert m.client.metric("triomesh_retries_total", result="body-too-big") == 1


@mesh_test
async def test_a_small_body_in_pieces_is_sent_again_whole() -> None:
    body = bytes(range(250)) * 200  # 50,000

    async def broken(peer: Peer) -> None:
        await peer.head()
        await peer.exactly(20_000)
        peer.reset()

    async def good(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(ok(request.body))

    async with (
        application(broken) as one,
        application(good) as two,
        fleet(plain(one.addr), plain(two.addr), settings=Settings(algorithm=Algorithm.ROUND_ROBIN)) as m,
    ):
        client = await m.connect()
        await client.send(b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 50000\r\n\r\n")
        await client.send(body[:30_000])
        await wait_until(lambda: two.peers)
        await client.send(body[30_000:])
        assert (await client.response()).body == body
        assert (await client.get()).status == 200


@mesh_test
async def test_the_budget_stops_retries() -> None:
    endpoints = [plain(closed_port()) for _ in range(2)]
    async with fleet(*endpoints, budget=Budget(percent=0, min_per_s=0)) as m:
        await (await m.connect()).get()
        record = await m.record(flag="UF")
        assert (record["attempts"], record["retry_reason"]) == (
            1,
            "the retry budget of the destination is spent",
        )
        assert m.client.metric("triomesh_retries_total", result="budget") == 1


@mesh_test
async def test_the_budget_is_a_share_of_the_requests() -> None:
    bad = [plain(closed_port()) for _ in range(2)]
    settings = Settings(outliers=Outliers(consecutive_5xx=0, consecutive_local=0))
    async with fleet(*bad, settings=settings, budget=Budget(percent=20, min_per_s=0)) as m:
        client = await m.connect()
        for _ in range(50):
            assert (await client.get()).status == 503
        assert m.client.metric("triomesh_retries_total", result="tried") == 10


@mesh_test
async def test_nothing_is_sent_for_a_client_that_is_gone_while_dialling() -> None:
    go, dialling = trio.Event(), trio.Event()
    async with application(answering(ok())) as app, fleet(plain(app.addr)) as m:
        dialer = m.client.app.runtime.dialer
        dial = dialer.dial

        async def slow(peer: Peer, alpn: str, within_s: float) -> object:
            dialling.set()
            await go.wait()
            return await dial(peer, alpn, within_s)

        dialer.dial = slow
        client = await m.connect()
        await client.send(POST)
        await dialling.wait()
        (down,) = m.client.app.runtime.reactor.conns.values()
        client.reset()
        await wait_until(lambda: down.ended)
        go.set()
        assert (await m.record())["flag"] == "DC"
        assert all(peer.received == b"" for peer in app.peers)


@mesh_test
async def test_a_client_gone_during_an_interim_response_is_not_the_endpoints_fault() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        with trio.move_on_after(5):
            while True:
                await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 4000 + b"\r\n\r\n")

    async with mesh(handle) as m:
        client = await m.connect()
        await client.send(GET)
        await client.response()
        client.reset()
        assert (await m.record())["flag"] == "DC"
        assert (await m.record("server"))["flag"] == "DC"
