"""When a sidecar puts what lives long out of the garbage collector's sight."""

from __future__ import annotations

from msgspec.structs import replace

from mesh_api.sidecar import Endpoint
from tests.integration.http_peers import mesh_test
from tests.support.mesh import VIP, client_snapshot, sidecar


@mesh_test
async def test_the_heap_is_settled_with_a_configuration_that_has_doubled_and_no_other() -> None:
    snapshot = client_snapshot(VIP, endpoints=(Endpoint("127.0.0.1", 1),))
    (destination,) = snapshot.destinations
    async with sidecar(snapshot=snapshot) as it:
        settled: list[int] = []
        it.app.settle = lambda: settled.append(1)
        for port in range(2, 6):
            changed = replace(destination, endpoints=(Endpoint("127.0.0.1", port),))
            it.app.on_snapshot(replace(snapshot, destinations=(changed,)))
        assert not settled
        more = tuple(replace(destination, name=f"d{n}", addresses=(f"10.1.0.{n}",)) for n in range(1, 101))
        it.app.on_snapshot(replace(snapshot, destinations=more))
        assert len(settled) == 1
