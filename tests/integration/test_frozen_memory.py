"""What a sidecar keeps out of the garbage collector's sight: its configuration, not what is open just now."""

from __future__ import annotations

import gc

from msgspec.structs import replace

from mesh_api.sidecar import Endpoint
from tests.integration.http_peers import mesh_test
from tests.support.mesh import VIP, client_snapshot, sidecar


@mesh_test
async def test_only_a_configuration_that_has_doubled_is_frozen() -> None:
    snapshot = client_snapshot(VIP, endpoints=(Endpoint("127.0.0.1", 1),))
    (destination,) = snapshot.destinations
    async with sidecar(snapshot=snapshot) as it:
        frozen = gc.get_freeze_count()
        for port in range(2, 6):
            changed = replace(destination, endpoints=(Endpoint("127.0.0.1", port),))
            it.app.on_snapshot(replace(snapshot, destinations=(changed,)))
            assert gc.get_freeze_count() <= frozen
        more = tuple(replace(destination, name=f"d{n}", addresses=(f"10.1.0.{n}",)) for n in range(1, 101))
        it.app.on_snapshot(replace(snapshot, destinations=more))
        assert gc.get_freeze_count() > frozen
