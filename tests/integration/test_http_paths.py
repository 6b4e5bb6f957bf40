"""Paths before routing: one spelling for route, log and application, and ambiguous ones refused."""

from __future__ import annotations

import pytest

from mesh_api.traffic import Match, PathMatch, PathNormalization, Respond, Route
from tests.integration.http_peers import answering, each_mesh, mesh, mesh_test, ok
from tests.support.mesh import server_snapshot

MODES = {mode.value: mode for mode in PathNormalization}
CASES = [
    ("none", b"/a/../b//c%7e\\", b"/a/../b//c%7e\\"),
    ("base", b"/a/../b//c%7e\\", b"/b//c~/"),
    ("merge-slashes", b"/a/../b//c%7e\\", b"/b/c~/"),
    ("decode-and-merge", b"/a/..%2Fb/%2fc%7e", b"/b/c~"),
    ("base", b"/a%2Fb?x=%2e/../", b"/a%2Fb?x=%2e/../"),
    ("merge-slashes", b"/a%2Fb", None),
    ("merge-slashes", b"/../a", None),
    ("decode-and-merge", b"/a%00", None),
    ("none", b"/a%00", b"/a%00"),
    ("base", b"http://server/a/./b", b"http://server/a/b"),
]


@each_mesh
@pytest.mark.parametrize(("mode", "target", "expected"), CASES)
@mesh_test
async def test_what_the_application_gets(mode: str, target: bytes, expected: bytes | None, hops: str) -> None:
    async with mesh(
        answering(lambda r: ok(r.path)), hops, server=server_snapshot(path_normalization=MODES[mode])
    ) as m:
        m.client.app.runtime.normalise_paths(MODES[mode])
        client = await m.connect()
        for _ in range(2):
            await client.send(b"POST %s HTTP/1.1\r\nHost: server\r\nContent-Length: 2\r\n\r\nhi" % target)
            response = await client.response()
            if expected is None:
                assert response.status == 400
                assert b"ambiguous-path" in (response.get(b"x-triomesh-error") or b"")
                assert not m.app.peers
                return
            assert response.body == expected
        assert (await m.records(status=200))[-1]["path"] == expected.decode()


@each_mesh
@mesh_test
async def test_routes_see_the_path_that_goes_on(hops: str) -> None:
    routes = (
        Route(
            name="admin",
            match=(Match(path=PathMatch(prefix="/admin")),),
            respond=Respond(status=403, body="no"),
        ),
    )
    async with mesh(ok(), hops, routes=routes) as m:
        client = await m.connect()
        for target in (b"/admin", b"/x/../admin", b"/%61dmin/x", b"/x/%2e%2e/admin", b"/x\\..\\admin"):
            assert (await client.get(target)).status == 403, target
        assert (await client.get(b"/x/..%2fadmin")).status == 404, "the base mode does not decode slashes"


@mesh_test
async def test_the_configuration_says_how() -> None:
    async with mesh(answering(lambda r: ok(r.path)), server=server_snapshot()) as m:
        client = await m.connect()
        assert (await client.get(b"//a/./b")).body == b"//a/b", "base is the default"
        m.server.app.on_snapshot(server_snapshot(path_normalization=PathNormalization.MERGE_SLASHES))
        assert (await client.get(b"//a/./b")).body == b"/a/b"
