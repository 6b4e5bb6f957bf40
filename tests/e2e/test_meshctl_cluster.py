"""What `meshctl` says about a local cluster and its sidecars: checks, proxies, the CA, logs, reports."""

import json
import os
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from certs.authority import Authority
from mesh_api import admin
from mesh_api.sidecar import Destination, Endpoint, TlsMode
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
    assert (
        'no endpoints available for service "triomesh-control:admin"' in found["sidecars-in-sync"]["detail"]
    )
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


SIDECAR = admin.SidecarState(
    namespace="shop",
    pod="web",
    replica="stub",
    version=VERSION,
    identity="spiffe://cluster.local/ns/shop/sa/web",
    state=admin.SyncState.SYNCED,
    keys=7,
    connected_s=12.5,
)
CONFIG = admin.SidecarConfig(
    namespace="shop",
    pod="web",
    destinations=(
        Destination(
            name="api",
            namespace="shop",
            port=80,
            addresses=("10.96.0.9",),
            endpoints=(
                Endpoint(
                    address="10.244.0.9",
                    port=8080,
                    tls=TlsMode.MESH,
                    identity="spiffe://cluster.local/ns/shop/sa/api",
                ),
            ),
        ),
    ),
    listeners=(admin.Listener(address="127.0.0.1", port=15001, purpose="outbound"),),
    certificates=(
        admin.Certificate(
            role="leaf",
            subject="spiffe://cluster.local/ns/shop/sa/web",
            serial="01",
            not_before="2030-01-01T00:00:00Z",
            not_after="2030-01-02T00:00:00Z",
            sha256="0" * 64,
        ),
    ),
)
STUB = """
import http.server, json, socket, sys
pages = json.loads(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        found = pages.get(self.command + " " + self.path)
        body = json.dumps(found or {"error": "no such sidecar"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_PUT = answer
http.server.ThreadingHTTPServer(("0.0.0.0", 15013), Handler).serve_forever()
"""


@pytest.fixture
def stub(installed: Cluster) -> Iterator[Cluster]:
    """A pod that answers the admin port as a control plane would."""
    plain = msgspec.to_builtins
    listed = admin.SidecarList(replicas=1, answered=1, sidecars=(SIDECAR,))
    version = admin.ControlVersion(replica="stub", version=VERSION, trust_domain="cluster.local")
    pages = {
        "GET /admin/v1/version": plain(version),
        "GET /admin/v1/sidecars": plain(listed),
        "GET /admin/v1/sidecars/shop/web/config": plain(CONFIG),
        "PUT /admin/v1/sidecars/shop/web/log?level=debug": plain(admin.SidecarLog(level="debug")),
    }
    selector = installed.json("get", "service", "triomesh-control", "-n", "triomesh-system")["spec"][
        "selector"
    ]
    container = {
        "ports": [{"name": "admin", "containerPort": 15013}],
        "readinessProbe": {"tcpSocket": {"port": "admin"}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 1337, "seccompProfile": {"type": "RuntimeDefault"}}
    made = pod(
        "stub",
        *("python3", "-c", STUB, json.dumps(pages)),
        namespace="triomesh-system",
        container=container,
        securityContext=user,
    )
    made["metadata"]["labels"] = selector
    installed.apply(made)
    try:
        installed.kubectl(
            "wait", "-n", "triomesh-system", "--for=condition=Ready", "pod/stub", "--timeout=30s"
        )
        installed.until(lambda: meshctl(installed, "proxy-status").exit_code == 0, "the Service's endpoint")
        yield installed
    finally:
        installed.kubectl("delete", "pod", "stub", "-n", "triomesh-system", "--grace-period=0", "--force")


def test_sidecars_by_way_of_the_control_plane(stub: Cluster, tmp_path: Path) -> None:
    lines = meshctl(stub, "proxy-status").output.splitlines()
    assert lines[0].split() == [
        "NAMESPACE",
        "POD",
        "STATE",
        "KEYS",
        "CONNECTED",
        "VERSION",
        "REPLICA",
        "ERROR",
    ]
    assert lines[1].split() == ["shop", "web", "synced", "7", "12s", VERSION, "stub", "-"]
    text = meshctl(stub, "proxy-config", "shop/web").output
    for expected in ("shop/api:80", "10.244.0.9 8080", "15001", "leaf", "LOG LEVEL"):
        assert expected in text
    routes = json.loads(meshctl(stub, "proxy-config", "web", "routes", "-n", "shop", "-o", "json").output)
    assert list(routes) == ["namespace", "pod", "destinations"]
    done = meshctl(stub, "proxy-config", "shop/web", "log", "--level", "debug")
    assert done.output == "log level of shop/web: debug\n"
    done = meshctl(stub, "proxy-config", "shop/other")
    assert (done.exit_code, done.stderr) == (2, "error: no such sidecar\n")
    assert f"control plane: {VERSION} (image triomesh:{VERSION}" in meshctl(stub, "version").output
    operator = kubeconfig_of(stub, "operator", tmp_path / "kubeconfig")
    done = meshctl(stub, "proxy-status", kubeconfig=operator)
    assert done.exit_code == 2
    assert 'cannot get resource "services/proxy"' in done.stderr
    stub.kubectl(
        *("create", "rolebinding", "operator", "-n", "triomesh-system"),
        *("--clusterrole=triomesh-operator-view", "--serviceaccount=default:operator"),
    )
    assert meshctl(stub, "proxy-status", kubeconfig=operator).exit_code == 0
    done = meshctl(stub, "proxy-config", "shop/web", "log", "--level", "debug", kubeconfig=operator)
    assert done.exit_code == 2
    assert 'cannot update resource "services/proxy"' in done.stderr


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
