"""The range of Services: as the API server says it, and where there is no such kind (before 1.33)."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from mesh_control.compile.content import Mesh, address
from mesh_control.kube.client import Client
from mesh_control.kube.resources import SERVICE_CIDRS, SERVICES
from mesh_control.serve.source import ClusterSource
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.kinds.service_cidr import SERVICE_CIDR
from tests.support.control_api import ControlApi, run_api, until

OLD = tuple(kind for kind in BUILTIN if kind is not SERVICE_CIDR)


class Followed:
    def __init__(self, admin: Client) -> None:
        self.absent: set[object] = set()
        self.source = ClusterSource(admin, Mesh("cluster.local", ""), random.Random(1), on_note=self._note)

    def _note(self, name: str, fields: object) -> None:
        if name == "kube.watch.absent":
            self.absent.add(dict(fields)["resource"])  # type: ignore[call-overload]

    def held(self, ip: str) -> bool:
        return address(self.source.index, ip, 80) is None


def following(
    tmp_path: Path, test: Callable[[Client, Followed], Awaitable[None]], kinds: tuple = BUILTIN
) -> None:
    async def main(api: ControlApi) -> None:
        async with api.admin() as admin, trio.open_nursery() as nursery:
            found = Followed(admin)
            nursery.start_soon(found.source.run)
            await found.source.wait_synced()
            await test(admin, found)
            nursery.cancel_scope.cancel()

    run_api(tmp_path, main, kinds=kinds)


async def kubernetes(admin: Client) -> None:
    """The Service that every cluster has."""
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}
    await admin.create(SERVICES, {"metadata": {"name": "kubernetes"}, "spec": spec}, "default")


def test_service_cidrs_are_followed(tmp_path: Path) -> None:
    async def test(admin: Client, found: Followed) -> None:
        assert str(SERVICE_CIDRS) not in found.absent
        spec = {"cidrs": ["10.96.0.0/20", "fd10::/112"]}
        await admin.create(SERVICE_CIDRS, {"metadata": {"name": "kubernetes"}, "spec": spec})
        await until(lambda: found.held("10.96.15.15") and found.held("fd10::77"))
        await kubernetes(admin)
        await until(lambda: found.source.index.count("Service"))
        assert not found.held("10.96.16.1")

    following(tmp_path, test)


def test_a_cluster_without_the_kind_is_current_and_its_range_is_concluded(tmp_path: Path) -> None:
    async def test(admin: Client, found: Followed) -> None:
        assert str(SERVICE_CIDRS) in found.absent
        assert found.source.current()
        await kubernetes(admin)
        await until(lambda: found.held("10.96.16.1"))

    following(tmp_path, test, kinds=OLD)
