"""Policies from the API server and their status back to it, with the control plane's own rights."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from manifests.rbac import control_cluster_role
from manifests.render import crds
from mesh_control.compile.content import Mesh, destination
from mesh_control.kube.client import Client, Object
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import CRDS, MESH_POLICIES, SERVICES, TRAFFIC_POLICIES
from mesh_control.kube.watch import ABSENT_S
from mesh_control.serve import status as module
from mesh_control.serve.source import ClusterSource
from mesh_control.serve.status import StatusWriter
from tests.support.control_api import ControlApi, run_api, until

SYSTEM = "triomesh-system"
DOMAIN = "cluster.local"


class Control:
    """A replica's watches and its writer."""

    def __init__(self, client: Client, api: ControlApi) -> None:
        self.api = api
        self.notes: list[tuple[str, dict[str, object]]] = []
        rng = random.Random(1)
        self.source = ClusterSource(client, Mesh(DOMAIN, ""), rng, on_note=self.note)
        self.writer = StatusWriter(client, self.source, rng, self.note)

    def note(self, name: str, fields: object) -> None:
        self.notes.append((name, dict(fields)))  # type: ignore[call-overload]

    def timeout(self, service: str = "web") -> float | None:
        found = destination(self.source.index, f"default/{service}:80")
        return found.settings.timeouts.request_s if found else None


@asynccontextmanager
async def control(api: ControlApi) -> AsyncIterator[Control]:
    await api.account("triomesh-control", SYSTEM)
    await api.allow("triomesh-control", SYSTEM, control_cluster_role()["rules"])
    path = api.directory / "token"
    path.write_text(await api.token("triomesh-control", SYSTEM, audience=api.api_audience))
    async with api.pod_client(path) as client, trio.open_nursery() as nursery:
        found = Control(client, api)
        nursery.start_soon(found.source.run)
        nursery.start_soon(found.writer.run)
        yield found
        nursery.cancel_scope.cancel()


async def install(admin: Client) -> None:
    for one in crds():
        await admin.create(CRDS, one)


def with_control(
    tmp_path: Path, test: Callable[[Client, Control], Awaitable[None]], *, installed: bool = True
) -> None:
    async def main(api: ControlApi) -> None:
        async with api.admin() as admin:
            if installed:
                await install(admin)
            async with control(api) as found:
                await found.source.wait_synced()
                await test(admin, found)

    run_api(tmp_path, main, 40)


async def policy(admin: Client, name: str, **spec: object) -> None:
    await admin.create(
        TRAFFIC_POLICIES,
        {"metadata": {"name": name}, "spec": {"target": {"service": "web"}, **spec}},
        "default",
    )


async def web(admin: Client) -> None:
    spec = {"ports": [{"port": 80}], "clusterIP": "None", "selector": {"app": "web"}}
    await admin.create(SERVICES, {"metadata": {"name": "web"}, "spec": spec}, "default")


async def said(admin: Client, name: str, type: str, wanted: str) -> Object:
    """The condition of a policy, once it has the status that is wanted."""
    found: list[Object] = []

    async def look() -> bool:
        obj = await admin.get(TRAFFIC_POLICIES, name, "default")
        found[:] = [one for one in obj.get("status", {}).get("conditions", []) if one["type"] == type]
        return bool(found) and found[0]["status"] == wanted

    with trio.fail_after(10):
        while not await look():
            await trio.sleep(0.05)
    return found[0]


def test_a_policy_is_in_force_and_says_so(tmp_path: Path) -> None:
    async def test(admin: Client, control: Control) -> None:
        await policy(admin, "p", timeouts={"request": "2s"})
        missing = await said(admin, "p", "Programmed", "False")
        assert missing["reason"] == "TargetNotFound"
        await web(admin)
        await said(admin, "p", "Programmed", "True")
        assert control.timeout() == 2.0
        await until(lambda: not control.writer._dirty)
        written = control.writer.written
        await admin.patch(TRAFFIC_POLICIES, "p", "default", {"metadata": {"labels": {"x": "y"}}})
        await admin.patch(TRAFFIC_POLICIES, "p", "default", {"spec": {"timeouts": {"request": "3s"}}})
        await until(lambda: control.timeout() == 3.0)
        await until(lambda: control.writer.written > written)
        status = (await admin.get(TRAFFIC_POLICIES, "p", "default"))["status"]
        assert status["observedGeneration"] == 2
        assert control.writer.written == written + 1, "the label alone is no reason to write"

    with_control(tmp_path, test)


def test_conflict_and_take_over(tmp_path: Path) -> None:
    async def test(admin: Client, control: Control) -> None:
        await web(admin)
        await policy(admin, "a", timeouts={"request": "2s"})
        await said(admin, "a", "Programmed", "True")
        await policy(admin, "b", timeouts={"request": "5s"})
        older = await said(admin, "b", "Conflicted", "True")
        assert "TrafficPolicy default/a is older" in older["message"]
        assert control.timeout() == 2.0
        await admin.delete(TRAFFIC_POLICIES, "a", "default")
        await said(admin, "b", "Conflicted", "False")
        assert control.timeout() == 5.0

    with_control(tmp_path, test)


def test_what_the_schema_lets_through_leaves_the_last_good_in_force(tmp_path: Path) -> None:
    async def test(admin: Client, control: Control) -> None:
        await web(admin)
        await policy(admin, "p", timeouts={"request": "2s"}, routes=[{"to": [{"weight": 1}]}])
        accepted = await said(admin, "p", "Accepted", "True")
        await admin.patch(TRAFFIC_POLICIES, "p", "default", {"spec": {"routes": [{"to": [{"weight": 0}]}]}})
        refused = await said(admin, "p", "Accepted", "False")
        assert refused["reason"] == "Invalid"
        assert "expected weights with a sum above 0" in refused["message"]
        assert "(generation 1) stays in force" in refused["message"]
        assert control.timeout() == 2.0
        programmed = await said(admin, "p", "Programmed", "True")
        assert programmed["lastTransitionTime"] == accepted["lastTransitionTime"]
        assert programmed["observedGeneration"] == 2

    with_control(tmp_path, test)


def test_a_status_that_somebody_overwrites_is_repaired(tmp_path: Path) -> None:
    async def test(admin: Client, control: Control) -> None:
        await web(admin)
        await policy(admin, "p")
        await said(admin, "p", "Accepted", "True")
        now = "2026-01-01T00:00:00Z"
        lie = {
            "type": "Accepted",
            "status": "False",
            "reason": "Lie",
            "message": "",
            "lastTransitionTime": now,
        }
        await admin.patch(
            TRAFFIC_POLICIES, "p", "default", {"status": {"conditions": [lie]}}, subresource="status"
        )
        await said(admin, "p", "Accepted", "True")

    with_control(tmp_path, test)


def test_without_the_kinds_the_replica_is_ready_and_finds_them_later(tmp_path: Path) -> None:
    async def test(admin: Client, control: Control) -> None:
        absent = {fields["resource"] for name, fields in control.notes if name == "kube.watch.absent"}
        assert absent >= {"trafficpolicies.triomesh.dev", "meshpolicies.triomesh.dev"}
        assert control.source.current()
        await web(admin)
        await install(admin)
        await policy(admin, "p", timeouts={"request": "2s"})
        await until(lambda: control.timeout() == 2.0, ABSENT_S * 2)
        await said(admin, "p", "Accepted", "True")

    with_control(tmp_path, test, installed=False)


def test_another_version_of_a_kind_keeps_what_is_known(tmp_path: Path) -> None:
    async def test(admin: Client, control: Control) -> None:
        await web(admin)
        await policy(admin, "p", timeouts={"request": "2s"})
        await until(lambda: control.timeout() == 2.0)
        crd = await admin.get(CRDS, str(TRAFFIC_POLICIES))
        other = {**crd["spec"]["versions"][0], "name": "v2"}
        old = {**crd["spec"]["versions"][0], "served": False, "storage": False}
        await admin.patch(CRDS, str(TRAFFIC_POLICIES), "", {"spec": {"versions": [other, old]}})
        control.api.local.store.end_watches()
        await until(lambda: [n for n, f in control.notes if n == "kube.watch.absent"], 15)
        assert control.timeout() == 2.0
        assert control.source.synced

    with_control(tmp_path, test)


def test_a_write_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.05)

    async def test(admin: Client, control: Control) -> None:
        broken = True
        patch = control.writer._client.patch

        async def failing(*args: object, **more: object) -> Object:
            if broken:
                raise KubeError(500, "InternalError", "on purpose")
            return await patch(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(control.writer._client, "patch", failing)
        await web(admin)
        await policy(admin, "p")
        await until(lambda: control.writer.failed >= 2)
        failed = next(fields for name, fields in control.notes if name == "status.failed")
        assert (failed["name"], failed["error"]) == ("p", "on purpose")
        broken = False
        await said(admin, "p", "Accepted", "True")

    with_control(tmp_path, test)


def test_a_defect_about_one_policy_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.status

    def status(index: object, name: tuple[str, tuple[str, str]]) -> object:
        if name[1][1] == "bad":
            raise RuntimeError("a defect")
        return real(index, name)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "status", status)

    async def test(admin: Client, control: Control) -> None:
        await web(admin)
        await policy(admin, "bad", timeouts={"request": "2s"})
        await until(lambda: control.writer.failed > 0)
        await policy(admin, "good", timeouts={"request": "3s"})
        await said(admin, "good", "Accepted", "True")
        told = [fields for name, fields in control.notes if name == "status.failed"]
        assert (told[0]["name"], told[0]["error"]) == ("bad", "RuntimeError: a defect")

    with_control(tmp_path, test)


def test_a_mesh_policy_says_what_it_selects(tmp_path: Path) -> None:
    async def test(admin: Client, control: Control) -> None:
        refs = [{"kind": "Deployment", "name": "none"}]
        obj = {"metadata": {"name": "m"}, "spec": {"targetRefs": refs, "defaults": {"accessLog": "all"}}}
        await admin.create(MESH_POLICIES, obj, "default")

        async def message() -> str:
            found = (await admin.get(MESH_POLICIES, "m", "default")).get("status", {}).get("conditions", [])
            return next((one["message"] for one in found if one["type"] == "Programmed"), "")

        with trio.fail_after(10):
            while await message() != "No pod belongs to Deployment none":
                await trio.sleep(0.05)

    with_control(tmp_path, test)
