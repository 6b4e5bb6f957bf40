"""The whole control plane in process: its roles, its rights, its metrics, and how it ends."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from certs.framing import read_frame, write_frame
from certs.workload import SignerError
from manifests.rbac import control_cluster_role, control_role
from manifests.values import Values
from mesh_api.discovery import ALPN_DISCOVERY, Hello, Welcome, decode_from_control, encode_message
from mesh_control import app as app_module
from mesh_control.settings import ROLES
from tests.support.control_api import ControlApi, run_api, until
from tests.support.control_app import Call, Replica, Witness, prepare, replica
from tests.support.promtool import complaints

SYSTEM = "triomesh-system"
DEFAULTS = Values()


def with_replica(
    tmp_path, test: Callable[[Replica, Witness], Awaitable[None]], roles=ROLES, values: Values = DEFAULTS
) -> None:
    async def main(api: ControlApi) -> None:
        witness = await prepare(api, values)
        async with replica(api, tmp_path, roles=roles) as found:
            await test(found, witness)

    run_api(tmp_path, main, 40)


async def listed(api: ControlApi, resource: str, namespace: str = "") -> list[Any]:
    return list((await api.local.client.list(resource, namespace)).items)


async def welcomed(found: Replica) -> trio.SSLStream:
    """A stream of pod shop/web-1."""
    own = await found.certificate()
    stream = await trio.open_tcp_stream("127.0.0.1", found.ports[15010])
    tls = trio.SSLStream(stream, own.client[ALPN_DISCOVERY])
    await write_frame(tls, encode_message(Hello(pod="web-1", namespace="shop", version="0")))
    assert isinstance(decode_from_control(await read_frame(tls)), Welcome)
    return tls


async def use_everything(found: Replica, witness: Witness) -> None:
    """Have a replica do whatever it may ever do."""
    api, client = found.api, found.api.local.client
    async with await welcomed(found):
        pass
    status, answer = await found.inject()
    assert status == 200
    assert answer["patch"]
    for _ in range(2):  # an Event is written once, then counted up
        assert (await found.inject(hostNetwork=True))[1].get("patch") is None
    assert (await found.inject("elsewhere"))[0] == 503  # not in the cache, so it is asked for

    async def until_seen(resource: str, namespace: str, good: Callable[[list[Any]], bool]) -> None:
        with trio.fail_after(10):
            while not good(await listed(api, resource, namespace)):
                await trio.sleep(0.02)

    await until_seen("events", "shop", lambda found: any(event["count"] == 2 for event in found))
    await until_seen("configmaps", "shop", lambda found: len(found) == 1)
    await client.patch("configmaps", "triomesh-ca-bundle", "shop", {"data": {"bundle.pem": "x"}})
    await until_seen("configmaps", "shop", lambda found: "BEGIN" in found[0]["data"]["bundle.pem"])
    hooks = "mutatingwebhookconfigurations.admissionregistration.k8s.io"
    await until_seen(
        hooks, "", lambda found: all("caBundle" in w["clientConfig"] for w in found[0]["webhooks"])
    )
    await until(lambda: found.app.election.leading)
    await until(
        lambda: Call("update", "coordination.k8s.io", "leases", SYSTEM, "triomesh-control") in witness.calls
    )


UNUSED = {
    # until the control plane follows policies and says what it made of them
    ("triomesh.dev", "accesspolicies"): {"list", "watch"},
    ("triomesh.dev", "trafficpolicies/status"): {"patch"},
    ("triomesh.dev", "accesspolicies/status"): {"patch"},
    ("triomesh.dev", "meshpolicies/status"): {"patch"},
}
"""Rights that nothing here uses, and why they are given all the same."""


def test_the_roles_are_what_is_needed_and_no_more(tmp_path) -> None:
    async def test(found: Replica, witness: Witness) -> None:
        await use_everything(found, witness)
        assert not witness.refused
        granted = {
            (group, resource, verb)
            for role in (control_cluster_role(), control_role(Values()))
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        used = {(call.group, call.resource, call.verb) for call in witness.calls}
        # Where the API server cannot stream a list (KEP-3157), what is watched is listed first.
        used |= {(group, resource, "list") for group, resource, verb in used if verb == "watch"}
        unused: dict[tuple[str, str], set[str]] = {}
        for group, resource, verb in granted:
            if (group, resource, verb) not in used:
                unused.setdefault((group, resource), set()).add(verb)
        assert unused == UNUSED

    with_replica(tmp_path, test)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_alone(tmp_path, role) -> None:
    """One Deployment a role: each serves its port and no other, within the roles' rights."""
    port = {"ca": 15012, "discovery": 15010, "injector": 15017}[role]

    async def test(found: Replica, witness: Witness) -> None:
        assert found.ports.keys() & {15010, 15012, 15017} == {port}
        assert (await found.page("/healthz/ready"))[0] == 200
        if role == "ca":
            assert (await found.certificate()).identity.endswith("/ns/shop/sa/web")
            await until(lambda: found.app.election.leading)
            leases = await listed(found.api, "leases.coordination.k8s.io", SYSTEM)
            assert [lease["metadata"]["name"] for lease in leases] == ["triomesh-control-ca"]
        elif role == "injector":
            assert (await found.inject())[1]["patch"]
        watched = {call.resource for call in witness.calls if call.verb == "watch"} - {"secrets"}
        assert watched >= {"ca": {"pods", "configmaps"}, "injector": {"namespaces"}}.get(role, {"services"})
        assert ("services" in watched) is (role == "discovery")
        assert not witness.refused

    with_replica(tmp_path, test, roles=(role,), values=Values(topology="separate"))


def test_separate_roles_are_one_control_plane(tmp_path) -> None:
    """A certificate of one process opens the stream of another."""

    async def main(api: ControlApi) -> None:
        witness = await prepare(api, Values(topology="separate"))
        async with (
            replica(api, tmp_path, "ca-0", ("ca",)) as ca,
            replica(api, tmp_path, "discovery-0", ("discovery",)) as discovery,
        ):
            discovery.ports[15012] = ca.ports[15012]
            async with await welcomed(discovery):
                assert discovery.app.not_ready() == []
        assert not witness.refused

    run_api(tmp_path, main, 30)


def test_whether_the_ca_looks_at_addresses(tmp_path) -> None:
    """Where the cluster masquerades pods, no caller has an address of its pod."""

    async def main(api: ControlApi) -> None:
        await prepare(api, Values())
        status = {"podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}]}
        await api.local.client.patch("pods", "web-1", "shop", {"status": status}, subresource="status")
        async with replica(api, tmp_path, "strict", ("ca",)) as found:
            with pytest.raises(SignerError, match="has not the address"):
                await found.certificate()
            assert found.app.source.health.keys() == {"Pod"}
        async with replica(api, tmp_path, "lenient", ("ca",), check_peer_address=False) as found:
            assert (await found.certificate()).identity == "spiffe://cluster.local/ns/shop/sa/web"
            assert not found.app.source.health

    run_api(tmp_path, main, 30)


def test_metrics_are_as_prometheus_wants_them(tmp_path) -> None:
    async def test(found: Replica, witness: Witness) -> None:
        await use_everything(found, witness)
        status, page = await found.page("/metrics")
        assert status == 200
        lines = page.splitlines()
        assert 'triomesh_control_objects{kind="EndpointSlice"} 0' in lines
        assert "triomesh_control_certificates_signed_total 1" in lines
        assert 'triomesh_control_injections_total{result="skipped",reason="HostNetwork"} 2' in lines
        assert "triomesh_control_leader 1" in lines
        assert any(line.startswith("triomesh_control_push_seconds_bucket{") for line in lines)
        assert await trio.to_thread.run_sync(complaints, page) == ""

    with_replica(tmp_path, test)


def test_the_end_is_announced_before_it_comes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(app_module, "WITHDRAW_S", 1.0)

    async def test(found: Replica, _witness: Witness) -> None:
        stream = await welcomed(found)
        found.app.stop()
        assert await found.page("/healthz/ready") == (503, "stopping\n")
        assert (await found.page("/healthz/live"))[0] == 200
        assert (await found.inject())[1]["patch"]  # the API server may still come here
        with trio.fail_after(10):
            goodbye = b""
            while got := await stream.receive_some(65536):
                goodbye += bytes(got)
            await found.ended.wait()
        assert b"shutting down" in goodbye
        await trio.aclose_forcefully(stream)
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", found.ports[15017])

    with_replica(tmp_path, test)
