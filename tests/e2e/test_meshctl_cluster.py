"""What `meshctl` says about a local cluster and its sidecars: checks, proxies, the CA, logs, reports."""

import json
import os
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from certs.authority import Authority
from mesh_api.version import VERSION
from tests.support.local_cluster import Cluster, pod, running
from tests.support.meshctl_cluster import install, kubeconfig_of, meshctl

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning:kubernetes")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(f"look{os.getpid()}") as found:
        yield found


@pytest.fixture
def installed(cluster: Cluster) -> Cluster:
    install(cluster)
    return cluster


@pytest.fixture
def clean(cluster: Cluster) -> Cluster:
    assert meshctl(cluster, "uninstall", "--purge", "--force").exit_code == 0
    return cluster


def test_check_before_and_after(clean: Cluster) -> None:
    done = meshctl(clean, "check", "--pre", "-o", "json")
    outcomes = {each["id"]: each["outcome"] for each in json.loads(done.output)}
    assert done.exit_code == 0
    assert outcomes.pop("kinds") == "warning"
    assert set(outcomes.values()) == {"passed"}
    done = meshctl(clean, "check", "-o", "json")
    outcomes = {each["id"]: each["outcome"] for each in json.loads(done.output)}
    assert done.exit_code == 1
    assert outcomes["installed"] == "failed"
    assert {outcomes[each] for each in ("webhook-answers", "sidecars-in-sync", "ca-expiry")} == {"skipped"}
    install(clean)
    found = {each["id"]: each for each in json.loads(meshctl(clean, "check", "-o", "json").output)}
    assert found["crds"]["outcome"] == "passed"
    assert found["control-plane"]["outcome"] == "failed"
    assert found["sidecars-in-sync"]["outcome"] == "skipped"
    why = found["sidecars-in-sync"]["detail"]
    assert 'no endpoints available for service "https:triomesh-control:admin"' in why
    assert found["webhook-answers"]["outcome"] == "failed"
    assert "no endpoints available for service" in found["webhook-answers"]["detail"]


def test_pods_that_were_there_before_the_label(installed: Cluster) -> None:
    installed.kubectl("create", "namespace", "late")
    try:
        container = {"name": "app", "image": "local", "command": ["sleep", "60"]}
        template: dict[str, Any] = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [container]}}
        template["spec"]["terminationGracePeriodSeconds"] = 0
        installed.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "web", "namespace": "late"},
                "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template},
            }
        )
        installed.until(lambda: bool(installed.json("get", "pods", "-n", "late")["items"]), "the pod")
        installed.kubectl("label", "namespace", "late", "triomesh.dev/injection=enabled")
        found = {each["id"]: each for each in json.loads(meshctl(installed, "check", "-o", "json").output)}
        assert found["pods-without-sidecar"]["outcome"] == "warning"
        assert found["pods-without-sidecar"]["lines"][-1] == "kubectl -n late rollout restart deployment/web"
    finally:
        installed.kubectl("delete", "namespace", "late")


@pytest.fixture
def meshed(cluster: Cluster) -> Iterator[Cluster]:
    """Two replicas of the control plane that run, and pod shop/web with a sidecar."""
    meshctl(cluster, "uninstall", "--purge", "--force")
    assert meshctl(cluster, "install", "--wait").exit_code == 0
    cluster.kubectl("create", "namespace", "shop")
    try:
        cluster.kubectl("label", "namespace", "shop", "triomesh.dev/injection=enabled")
        cluster.apply(pod("web", "sleep", "300", namespace="shop"))
        cluster.kubectl("wait", "-n", "shop", "--for=condition=Ready", "pod/web", "--timeout=60s", timeout=70)
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", "shop")
        meshctl(cluster, "uninstall", "--purge", "--force")


def test_sidecars_by_way_of_the_control_plane(meshed: Cluster, tmp_path: Path) -> None:
    lines = meshctl(meshed, "proxy-status").output.splitlines()
    assert lines[0].split() == [
        "NAMESPACE",
        "POD",
        "STATE",
        "KEYS",
        "CONNECTED",
        "VERSION",
        "HTTP/2",
        "REPLICA",
        "ERROR",
    ]
    assert [line.split()[:3] for line in lines[1:]] == [["shop", "web", "synced"]]
    text = meshctl(meshed, "proxy-config", "shop/web").output
    for expected in ("DESTINATION", "15001", "spiffe://cluster.local/ns/shop/sa/default", "LOG LEVEL"):
        assert expected in text
    certs = json.loads(meshctl(meshed, "proxy-config", "web", "certs", "-n", "shop", "-o", "json").output)
    assert [each["role"] for each in certs["certificates"]] == ["leaf", "root"]
    for _ in range(4):  # whichever replica the Service leads to
        done = meshctl(meshed, "proxy-config", "shop/web", "log", "--level", "debug")
        assert done.output == "log level of shop/web: debug\n"
    done = meshctl(meshed, "proxy-config", "shop/we")
    assert (done.exit_code, done.stderr) == (2, "error: there is no pod shop/we; did you mean shop/web?\n")
    assert f"control plane: {VERSION} (image triomesh:{VERSION}" in meshctl(meshed, "version").output
    found = {each["id"]: each for each in json.loads(meshctl(meshed, "check", "-o", "json").output)}
    for check in ("sidecars-in-sync", "sidecar-roots", "sidecar-versions", "sidecar-http2", "versions"):
        assert found[check]["outcome"] == "passed", found[check]
    report = tmp_path / "report.tar.gz"
    assert meshctl(meshed, "bug-report", "--file", str(report)).exit_code == 0
    with tarfile.open(report) as archive:
        assert "triomesh-report/sidecars/shop_web.yaml" in archive.getnames()
    rights_are_by_role(meshed, tmp_path)


def rights_are_by_role(meshed: Cluster, tmp_path: Path) -> None:
    someone = kubeconfig_of(meshed, "someone", tmp_path / "kubeconfig")
    done = meshctl(meshed, "proxy-status", kubeconfig=someone)
    assert done.exit_code == 2
    assert 'cannot create resource "serviceaccounts/token"' in done.stderr
    meshed.kubectl(
        *("create", "rolebinding", "someone", "-n", "triomesh-system"),
        *("--clusterrole=triomesh-viewer", "--serviceaccount=default:someone"),
    )
    assert meshctl(meshed, "proxy-status", kubeconfig=someone).exit_code == 0
    done = meshctl(meshed, "proxy-config", "shop/web", "log", "--level", "debug", kubeconfig=someone)
    assert done.exit_code == 2
    assert 'cannot create resource "serviceaccounts/token"' in done.stderr


def test_ca_rotation_and_a_report_without_its_key(installed: Cluster, tmp_path: Path) -> None:
    done = meshctl(installed, "ca", "show")
    assert done.exit_code == 2
    assert "it is not there; the control plane makes it when it starts" in done.stderr
    files = make_intermediate(tmp_path)
    assert meshctl(installed, "ca", "import", *files).exit_code == 0
    assert meshctl(installed, "ca", "show").output.startswith("trust domain: cluster.local\nROLE")
    assert "waiting signer: " in meshctl(installed, "ca", "rotate").output
    done = meshctl(installed, "ca", "rotate", "--activate")
    assert done.exit_code == 2
    assert "nothing was changed: expected to wait another 86" in done.stderr
    assert meshctl(installed, "ca", "rotate", "--activate", "--force").exit_code == 0
    assert "no longer root: " in meshctl(installed, "ca", "rotate", "--retire", "--force").output
    roles = json.loads(meshctl(installed, "ca", "show", "-o", "json").output)["certificates"]
    assert [each["role"] for each in roles] == ["signer", "root"]
    key = installed.json("get", "secret", "triomesh-ca", "-n", "triomesh-system")["data"]["signer.key"]
    report = tmp_path / "report.tar.gz"
    done = meshctl(installed, "bug-report", "--file", str(report))
    assert done.exit_code == 0
    with tarfile.open(report) as archive:
        texts = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    assert "triomesh-report/objects/installed.yaml" in texts
    assert "control-plane: 0 of 2 replicas ready" in texts["triomesh-report/checks.txt"]
    assert "(removed, " in texts["triomesh-report/objects/ca-secret.yaml"]
    assert not [name for name, text in texts.items() if key[:60] in text or "PRIVATE KEY-----" in text]
    assert report.stat().st_mode & 0o777 == 0o600
    done = meshctl(installed, "bug-report", "--file", str(report))
    assert (done.exit_code, done.stderr) == (2, f"error: {report}: File exists\n")


def make_intermediate(directory: Path) -> list[str]:
    """Options of `ca import` for an intermediate of a root of our own."""

    pem = Authority.create("cluster.local", datetime.now(UTC)).to_pem()
    options = []
    for name, data in (("cert", pem.cert), ("key", pem.key), ("root", pem.roots)):
        (directory / name).write_bytes(data)
        options += [f"--{name}", str(directory / name)]
    return options


def test_logs_of_a_sidecar_and_of_the_control_plane(installed: Cluster) -> None:
    installed.apply(
        pod("talks", "sh", "-c", "echo one; echo two; exec sleep 60", container={"name": "triomesh-proxy"})
    )
    try:
        installed.kubectl("wait", "--for=condition=Ready", "pod/talks", "--timeout=30s")
        installed.until(lambda: "two" in meshctl(installed, "logs", "talks").output, "the log")
        assert meshctl(installed, "logs", "default/talks", "--tail", "1").output == "two\n"
        done = meshctl(installed, "logs", "talks", "--init")
        assert done.exit_code == 2
        assert "container triomesh-init is not valid for pod talks" in done.stderr
        done = meshctl(installed, "logs", "nobody")
        assert (done.exit_code, done.stderr) == (2, 'error: pods "nobody" not found\n')
    finally:
        installed.kubectl("delete", "pod", "talks", "--grace-period=0", "--force")
