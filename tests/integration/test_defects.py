"""An error of the sidecar's own ends the connection that met it, is told, and ends nothing else."""

from __future__ import annotations

import pytest

from mesh_proxy.http2.client import ClientSession
from mesh_proxy.runtime import DEFECT, Runtime
from tests.integration.http2_mesh import chain
from tests.integration.http2_peers import echo, http2_application
from tests.integration.http_peers import answering, mesh, mesh_test, ok
from tests.support.mesh import wait_until


def without_ids(_: Runtime) -> bytes:
    raise ZeroDivisionError("no ids left")


GET = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


@mesh_test
async def test_in_the_task_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh(answering(ok())) as m:
        side = m.client
        side.defects = 1
        other, broken = await m.connect(), await m.connect()
        assert (await other.get()).status == 200
        with monkeypatch.context() as patch:
            patch.setattr(Runtime, "next_request_id", without_ids)
            await broken.send(GET)
            line = await side.log.wait_for(lambda line: line.get("event") == DEFECT)
        assert "ZeroDivisionError" in str(line["error"])
        assert "without_ids" in str(line["trace"])
        assert "outbound connection from 127.0.0.1:" in str(line["where"])
        assert side.metric("triomesh_refused_total", reason=DEFECT) == 1
        assert await broken.end() == "reset"
        assert (await other.get()).status == 200
        await wait_until(lambda: side.app.runtime.connections == 1)
        other.close()


@pytest.mark.usefixtures("http2_engine")
@mesh_test
async def test_in_the_task_of_a_session_to_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    async with http2_application(echo) as app, chain(app.addr, "one-sidecar") as c:
        (side,) = c.sidecars
        side.defects = 1
        peer = await c.http2()

        def broken(session: ClientSession, *_: object) -> None:
            raise KeyError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(ClientSession, "_head", broken)
            stream = await peer.start(b"/one")
            line = await side.log.wait_for(lambda line: line.get("event") == DEFECT)
            assert "HTTP/2 session to 127.0.0.1:" in str(line["where"])
            assert (await stream.head()).status == 503
        assert (await peer.ask(b"/two")).status == 200
