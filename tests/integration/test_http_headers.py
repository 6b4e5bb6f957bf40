"""Which header bytes pass, which are added, which are taken away."""

from __future__ import annotations

import pytest

from tests.integration.http_peers import answering, each_mesh, each_path, mesh, mesh_test, ok

OURS = (b"x-request-id", b"x-forwarded-client-cert")
"""What a request has more behind two sidecars."""


@each_path
@mesh_test
async def test_header_case_order_and_spacing_are_kept(hops: str) -> None:
    fields = (
        b"hOsT: server\r\nX-b:  two\r\nx-B:one \r\nACCEPT:\t*/*\r\nCookie: a=1\r\nx-empty:\r\nX-\xc3: no\r\n"
    )
    fields = fields.replace(b"X-\xc3: no\r\n", b"X-High: \xc3\xa9\r\n")
    back = b"hTTP-x: y\r\nSET-cookie: a\r\nset-Cookie: b\r\nContent-LENGTH: 0\r\nX-z:\r\n"
    request = b"GET /p?q=%00;x HTTP/1.1\r\n" + fields + b"\r\n"
    answer = b"HTTP/1.1 200 Fine, thanks\r\n" + back + b"\r\n"
    seen: list = []
    async with mesh(recording(seen, answer), hops) as m:
        client = await m.connect()
        await client.send(request)
        response = await client.response()
        assert response.raw == answer
        assert seen[0].without(*OURS) == request


def recording(seen: list, answer: bytes):
    return answering(lambda request: (seen.append(request), answer)[1])


@each_mesh
@mesh_test
async def test_request_id_is_added_once_and_kept_if_present(hops: str) -> None:
    seen: list = []
    async with mesh(recording(seen, ok()), hops) as m:
        client = await m.connect()
        await client.get()
        await client.get()
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\nX-Request-ID: mine\r\n\r\n")
        await client.response()
        first, second, third = (request.get(b"x-request-id") for request in seen)
        assert first is not None
        assert len(first) == 32
        assert first != second
        assert third == b"mine"
        assert (b"X-Request-ID", b"mine") in seen[2].fields
        for request_id in (first, second, third):
            assert len(await m.records(request_id=request_id.decode())) == len(m.sidecars)


@each_mesh
@mesh_test
async def test_mesh_headers_of_a_client_are_dropped(hops: str) -> None:
    seen: list = []
    async with mesh(recording(seen, ok()), hops) as m:
        client = await m.connect()
        await client.send(
            b"GET / HTTP/1.1\r\nHost: s\r\nX-Triomesh-Error: flag=UH\r\nA: 1\r\nx-triomesh-any: 1\r\n\r\n"
        )
        await client.response()
        assert seen[0].without(*OURS) == b"GET / HTTP/1.1\r\nHost: s\r\nA: 1\r\n\r\n"


@each_mesh
@mesh_test
async def test_mesh_headers_of_an_application_are_dropped(hops: str) -> None:
    answer = ok(b"ok", b"X-Triomesh-Error: flag=UH", b"A: 1", b"X-TRIOMESH-Other: 1")
    async with mesh(answer, hops) as m:
        response = await (await m.connect()).get()
        assert response.raw == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: 1\r\n\r\n"


@each_mesh
@mesh_test
async def test_hop_by_hop_headers_end_at_their_hop(hops: str) -> None:
    seen: list = []
    back = b"Keep-Alive: 5\r\nConnection: keep-alive, x-back\r\nX-Back: 1\r\nContent-Length: 0\r\nB: 1\r\n"
    async with mesh(recording(seen, b"HTTP/1.1 200 OK\r\n" + back + b"\r\n"), hops) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(
                b"GET / HTTP/1.1\r\nHost: s\r\nConnection: Keep-Alive, X-Hop ,Upgrade\r\n"
                b"X-Hop: 1\r\nx-hop: 2\r\nKeep-Alive: 3\r\nTE: gzip\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
                b"Proxy-Connection: x\r\nX-Hopper: 1\r\n\r\n"
            )
            response = await client.response()
            assert response.raw == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nB: 1\r\n\r\n"
            assert seen[-1].without(*OURS) == b"GET / HTTP/1.1\r\nHost: s\r\nX-Hopper: 1\r\n\r\n"
        assert len(m.app.peers) == 1


@each_mesh
@pytest.mark.parametrize(
    "name", [b"host", b"Content-Length", b"x-request-id", b"x-triomesh-error", b"Cookie"]
)
@mesh_test
async def test_connection_cannot_nominate_what_must_stay(name: bytes, hops: str) -> None:
    async with mesh(ok(), hops) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\nConnection: " + name + b"\r\n\r\n")
        assert (await client.response()).status == 400
        assert await client.end() == "clean"
        assert not m.app.peers
