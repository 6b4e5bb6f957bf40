"""Checks against clusters of plain objects: what passes, what fails and how, what cannot be known."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from certs.authority import Authority
from certs.bundle import fingerprint
from manifests.names import CA_BUNDLE, INJECTOR
from manifests.render import crds
from manifests.values import Values
from mesh_api.admin import ControlVersion, SidecarList, SidecarState, SyncState
from mesh_api.version import VERSION
from meshctl.checks import api, control, prerequisites, services, sidecars
from meshctl.checks.lists import BEFORE, INSTALLED
from meshctl.checks.model import Check, Outcome, Result, Target, failed, passed, run_all
from tests.support.meshctl_fake import FakeKube, namespace, pod

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ADMIN = "/api/v1/namespaces/triomesh-system/services/https:triomesh-control:admin/proxy/admin/v1"


def run(check: Check, kube: FakeKube) -> Result:
    ((_, result),) = run_all([check], Target(kube, Values(), lambda: NOW))
    return result


def test_ids_are_unique_and_all_have_hints() -> None:
    for checks in (BEFORE, INSTALLED):
        assert len({check.id for check in checks}) == len(checks)
        assert all(check.hint and check.title for check in checks)


def test_a_fatal_failure_skips_the_rest() -> None:
    first = Check("a", "first", "h", lambda _: failed("no"), fatal=True)
    second = Check("b", "second", "h", lambda _: passed())
    results = [r.outcome for _, r in run_all([first, second], Target(FakeKube(), Values(), lambda: NOW))]
    assert results == [Outcome.FAILED, Outcome.SKIPPED]


def test_what_may_not_be_asked_is_skipped_not_passed() -> None:
    kube = FakeKube()
    kube.denied.add(("list", "Node"))
    result = run(api.NODES, kube)
    assert result.outcome is Outcome.SKIPPED
    assert "cannot list" in result.detail


@pytest.mark.parametrize(
    ("minor", "outcome"),
    [
        ("28", Outcome.FAILED),
        ("29", Outcome.PASSED),
        ("36+", Outcome.PASSED),
        ("37", Outcome.WARNING),
        ("x", Outcome.WARNING),
    ],
)
def test_versions_of_the_api_server(minor: str, outcome: Outcome) -> None:
    kube = FakeKube()
    kube.put("GET", "/version", {"major": "1", "minor": minor, "gitVersion": f"v1.{minor}"})
    assert run(api.VERSION, kube).outcome is outcome


@pytest.mark.parametrize(
    ("date", "outcome"),
    [
        ("Tue, 01 Jan 2030 00:00:30 GMT", Outcome.PASSED),
        ("Tue, 01 Jan 2030 00:01:30 GMT", Outcome.FAILED),
        ("", Outcome.SKIPPED),
    ],
)
def test_clocks(date: str, outcome: Outcome) -> None:
    kube = FakeKube()
    kube.put("GET", "/version", {}, Date=date)
    assert run(api.CLOCK, kube).outcome is outcome


def test_old_nodes_are_named() -> None:
    def node(name: str, version: str) -> dict[str, Any]:
        status = {"nodeInfo": {"kubeletVersion": version}}
        return {"kind": "Node", "metadata": {"name": name}, "status": status}

    result = run(api.NODES, FakeKube(node("new", "v1.29.3"), node("old", "v1.28.9-gke.1")))
    assert result == failed("1 of 2 nodes are too old for native sidecars", ["old: v1.28.9-gke.1"])


def test_missing_permissions_are_named() -> None:
    kube = FakeKube()
    kube.denied |= {("create", "clusterroles"), ("update", "clusterroles")}
    result = run(prerequisites.PERMISSIONS, kube)
    assert result.lines == ("create, update clusterroles.rbac.authorization.k8s.io",)


def test_definitions_of_another_version() -> None:
    crd = {**crds()[0], "status": {"storedVersions": ["v1"]}}
    assert run(prerequisites.CRD_VERSIONS, FakeKube(crd)).lines == (
        "accesspolicies.triomesh.dev stores v1, expected v1alpha1",
    )
    assert run(prerequisites.CRD_VERSIONS, FakeKube()).outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        ({"kube-proxy-replacement": "true"}, Outcome.FAILED),
        ({"kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true"}, Outcome.PASSED),
        ({"kube-proxy-replacement": "false"}, Outcome.PASSED),
        ({"bpf-lb-sock": "true"}, Outcome.FAILED),
    ],
)
def test_addresses_translated_before_the_sidecar(data: dict[str, str], outcome: Outcome) -> None:
    metadata = {"name": "cilium-config", "namespace": "kube-system"}
    kube = FakeKube({"kind": "ConfigMap", "metadata": metadata, "data": data})
    assert run(prerequisites.TRANSLATED_EARLY, kube).outcome is outcome


def with_ca(lifetime_days: float, bundle: str | None = None) -> tuple[FakeKube, Authority]:
    authority = Authority.create("cluster.local", NOW, timedelta(days=lifetime_days))
    pem = authority.bundle.to_pem().decode()
    metadata = {"name": CA_BUNDLE, "namespace": "triomesh-system"}
    hook = {"name": "h", "clientConfig": {"caBundle": base64.b64encode((bundle or pem).encode()).decode()}}
    kube = FakeKube(
        {"kind": "ConfigMap", "metadata": metadata, "data": {"bundle.pem": pem}},
        {"kind": "MutatingWebhookConfiguration", "metadata": {"name": INJECTOR}, "webhooks": [hook]},
    )
    secret = {
        "kind": "Secret",
        "metadata": {"name": "triomesh-ca", "namespace": "triomesh-system"},
        "data": {"signer.pem": base64.b64encode(authority.to_pem().cert).decode()},
    }
    kube.objects.append(secret)
    return kube, authority


@pytest.mark.parametrize(
    ("days", "outcome"), [(365, Outcome.PASSED), (59, Outcome.WARNING), (0.5, Outcome.WARNING)]
)
def test_days_left(days: float, outcome: Outcome) -> None:
    kube, _ = with_ca(days)
    assert run(control.DAYS_LEFT, kube).outcome is outcome


def test_an_ended_root_fails_and_a_hidden_signer_is_said() -> None:
    kube, _ = with_ca(365)
    target = Target(kube, Values(), lambda: NOW + timedelta(days=366))
    ((_, result),) = run_all([control.DAYS_LEFT], target)
    assert result.outcome is Outcome.FAILED
    assert "signer: has ended" in result.lines[1]
    kube.denied.add(("list", "Secret"))
    result = run(control.DAYS_LEFT, kube)
    assert result.outcome is Outcome.PASSED
    assert "the signer was not looked at" in result.detail


def test_the_webhook_with_the_right_and_a_foreign_bundle() -> None:
    kube, _ = with_ca(365)
    assert run(control.WEBHOOK_BUNDLE, kube).outcome is Outcome.PASSED
    foreign = Authority.create("cluster.local", NOW).bundle.to_pem().decode()
    kube, _ = with_ca(365, foreign)
    result = run(control.WEBHOOK_BUNDLE, kube)
    assert result == failed(f"h: caBundle has no root of ConfigMap {CA_BUNDLE}")
    kube.objects[1]["webhooks"][0]["clientConfig"]["caBundle"] = "***"
    assert run(control.WEBHOOK_BUNDLE, kube).outcome is Outcome.FAILED


def test_whether_a_pod_would_get_its_sidecar() -> None:
    kube = FakeKube(namespace("shop"))
    path = "/api/v1/namespaces/shop/pods"
    kube.put("POST", path, pod("triomesh-check", sidecar=True))
    assert run(control.WEBHOOK_ANSWERS, kube).outcome is Outcome.PASSED
    kube.put("POST", path, pod("triomesh-check"))
    assert run(control.WEBHOOK_ANSWERS, kube) == failed(
        "a pod in namespace shop would start without a sidecar"
    )
    kube.put("POST", path, {"kind": "Status", "message": 'failed calling webhook "x": no route'}, 500)
    assert "no route" in run(control.WEBHOOK_ANSWERS, kube).detail
    kube.put("POST", path, {"kind": "Status", "message": 'pods is forbidden: User "u" cannot create'}, 403)
    assert run(control.WEBHOOK_ANSWERS, kube).outcome is Outcome.SKIPPED


def state(name: str, **changes: Any) -> SidecarState:
    fields: dict[str, Any] = {
        "namespace": "shop",
        "pod": name,
        "replica": "r",
        "version": VERSION,
        "identity": "spiffe://cluster.local/ns/shop/sa/default",
        "state": SyncState.SYNCED,
        "keys": 1,
        "connected_s": 1.0,
    }
    return SidecarState(**{**fields, **changes})


def answered(kube: FakeKube, *states: SidecarState, replicas: int = 1, answers: int = 1) -> FakeKube:
    body = SidecarList(replicas=replicas, answered=answers, sidecars=states)
    kube.put("GET", f"{ADMIN}/sidecars", msgspec.to_builtins(body))
    return kube


def test_sidecars_in_sync() -> None:
    kube = FakeKube(pod("a", sidecar=True), pod("b", sidecar=True), pod("c"))
    assert run(sidecars.IN_SYNC, kube).outcome is Outcome.SKIPPED
    answered(kube, state("a"), state("b"))
    assert run(sidecars.IN_SYNC, kube) == passed("2 sidecars")
    answered(kube, state("a", state=SyncState.REJECTED, error="$.x: expected y"))
    assert run(sidecars.IN_SYNC, kube).lines == (
        "shop/a: rejected: $.x: expected y",
        "shop/b: no stream to the control plane",
    )
    answered(kube, state("a"), state("b"), replicas=2)
    assert run(sidecars.IN_SYNC, kube).outcome is Outcome.SKIPPED


def test_sidecars_of_other_roots_and_versions() -> None:
    kube, authority = with_ca(365)
    root = fingerprint(authority.cert)
    answered(kube, state("a", root_sha256=(root,)))
    assert run(sidecars.SAME_ROOTS, kube).outcome is Outcome.PASSED
    assert run(sidecars.ONE_VERSION, kube).outcome is Outcome.PASSED
    answered(kube, state("a", root_sha256=("0" * 64,), version="0.0.9"))
    assert run(sidecars.SAME_ROOTS, kube).lines == ("shop/a: trusts 000000000000",)
    assert run(sidecars.ONE_VERSION, kube).lines == ("shop/a: 0.0.9",)


def test_sidecars_of_the_slow_http2_engine() -> None:
    kube = FakeKube()
    assert run(sidecars.ENGINE, kube).outcome is Outcome.SKIPPED
    answered(kube, state("a", http2="nghttp2 1.52.0"), state("b", http2="nghttp2 1.64.0"))
    assert run(sidecars.ENGINE, kube) == passed("2 sidecars: nghttp2 1.52.0, nghttp2 1.64.0")
    answered(kube, state("a", http2="nghttp2 1.52.0"), state("b", http2="hyper 4.1.0"), state("c"))
    found = run(sidecars.ENGINE, kube)
    assert found.outcome is Outcome.WARNING
    assert found.lines == ("shop/b: hyper 4.1.0", "shop/c: does not say")
    answered(kube)
    assert run(sidecars.ENGINE, kube) == passed("0 sidecars")


def test_versions_of_the_control_plane() -> None:
    kube = FakeKube()
    assert run(control.VERSIONS, kube).outcome is Outcome.SKIPPED
    body = ControlVersion(replica="r", version="9.9.9", trust_domain="cluster.local")
    kube.put("GET", f"{ADMIN}/version", msgspec.to_builtins(body))
    assert run(control.VERSIONS, kube).outcome is Outcome.WARNING
    kube.put("GET", f"{ADMIN}/version", {"unknown": 1})
    assert "cannot read" in run(control.VERSIONS, kube).detail
    assert run(control.VERSIONS, kube).outcome is Outcome.SKIPPED


def test_pods_without_a_sidecar_and_how_to_restart_them() -> None:
    owner = [{"kind": "ReplicaSet", "name": "web-5d9c", "controller": True}]
    labels = {"pod-template-hash": "5d9c"}
    kube = FakeKube(
        namespace("shop"),
        namespace("other", injected=False),
        pod("web-5d9c-a", ownerReferences=owner, labels=labels),
        pod("web-5d9c-b", ownerReferences=owner, labels=labels),
        pod("db-0", ownerReferences=[{"kind": "StatefulSet", "name": "db", "controller": True}]),
        pod("alone"),
        pod("meshed", sidecar=True),
        pod("out", labels={"triomesh.dev/inject": "false"}),
        pod("elsewhere", "other"),
    )
    result = run(sidecars.MISSING, kube)
    assert result.outcome is Outcome.WARNING
    assert [line for line in result.lines if line.startswith("kubectl")] == [
        "kubectl -n shop rollout restart deployment/web",
        "kubectl -n shop rollout restart statefulset/db",
        "kubectl -n shop delete pod alone  # and create it again: nobody else will",
    ]
    assert result.detail.startswith("4 pods")


def test_ports_that_do_not_say_what_they_speak() -> None:
    ports = [
        {"port": 80, "name": "http-web"},
        {"port": 81, "name": "web"},
        {"port": 82, "appProtocol": "http"},
        {"port": 83},
        {"port": 53, "protocol": "UDP"},
        {"port": 84, "name": "grpc"},
    ]
    metadata = {"name": "web", "namespace": "shop"}
    kube = FakeKube(namespace("shop"), {"kind": "Service", "metadata": metadata, "spec": {"ports": ports}})
    assert run(services.NAMES, kube).lines == ("shop/web: port 81 web", "shop/web: port 83")
