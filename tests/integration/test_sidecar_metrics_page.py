"""The sidecar's metrics page, read as Prometheus reads it."""

import pytest
import trio

from mesh_ops.exposition import render
from tests.integration.http_peers import mesh, mesh_test, ok
from tests.support.promtool import complaints


@pytest.mark.parametrize("page", ["triomesh_x 1", "# TYPE triomesh_x counter\ntriomesh_x 1\n"])
def test_promtool_complains_where_it_should(page: str) -> None:
    assert complaints(page)


@mesh_test
async def test_both_sides_of_a_request() -> None:
    async with mesh(ok()) as m:
        client = await m.connect()
        assert (await client.get()).status == 200
        for side in (m.client, m.server):
            page = render(side.app.runtime.registry).decode()
            assert "triomesh_requests_total{" in page
            assert await trio.to_thread.run_sync(complaints, page) == ""
