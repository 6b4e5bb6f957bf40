"""`meshctl install`, `upgrade` and `uninstall` on a local cluster, also in turn with kubectl."""

import json
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from manifests.render import crds, render
from manifests.values import Values
from tests.support.local_cluster import KUBECTL, Cluster, pod, run, running
from tests.support.meshctl_cluster import IDLE, install, kubeconfig_of, meshctl, said
from tests.support.meshctl_policies import ACCESS, MESH, TRAFFIC, WRONG, broken

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning:kubernetes")]
MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
LACKING = ("PodDisruptionBudget", "NetworkPolicy")
"""Kinds that the local cluster does not have."""
# Nothing here needs a running control plane: it asks for more memory than there is, and so stays where it is.


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(f"install{os.getpid()}") as found:
        yield found


@pytest.fixture
def installed(cluster: Cluster) -> Cluster:
    install(cluster)
    return cluster


@pytest.fixture
def clean(cluster: Cluster) -> Cluster:
    assert meshctl(cluster, "uninstall", "--purge", "--force").exit_code == 0
    return cluster


def everything(cluster: Cluster) -> set[str]:
    """Every object of every kind whose name or namespace is ours."""
    found: set[str] = set()
    for scope in ("true", "false"):
        listed = cluster.kubectl(
            "api-resources", "--verbs=list", f"--namespaced={scope}", "-o", "name"
        ).stdout
        kinds = ",".join(kind for kind in listed.split() if not kind.startswith("events"))
        names = cluster.kubectl("get", kinds, "-A", "-o", "name", "--ignore-not-found").stdout
        found |= {name for name in names.split() if "triomesh" in name}
        if scope == "true":
            ours = cluster.kubectl("get", kinds, "-n", "triomesh-system", "-o", "name", "--ignore-not-found")
            found |= set(ours.stdout.split())
    return found


def written(cluster: Cluster) -> dict[str, str]:
    """Versions of objects that nobody but an installation writes."""
    listed = cluster.json("get", "clusterrole,crd,sa,role", "-A")["items"]
    return {
        f"{each['kind']} {each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in listed
    }


def test_install_again_upgrade_and_purge(clean: Cluster) -> None:
    before = everything(clean)
    first = install(clean)
    assert {what for what in first.values() if not what.startswith("skipped")} == {"created"}
    assert sorted(name for name, what in first.items() if what.startswith("skipped")) == [
        "networkpolicy.networking.k8s.io/triomesh-control",
        "poddisruptionbudget.policy/triomesh-control",
    ]
    versions = written(clean)
    again = install(clean)
    assert {what for what in again.values() if not what.startswith("skipped")} == {"unchanged"}
    assert written(clean) == versions
    done = meshctl(clean, "uninstall", "--purge")
    assert done.exit_code == 0, done.output
    assert everything(clean) == before
    assert meshctl(clean, "uninstall", "--purge").output == "nothing is installed\n"


def test_uninstall_keeps_policies_and_the_key(installed: Cluster) -> None:
    meshctl(installed, "upgrade")
    installed.kubectl(
        "create", "secret", "generic", "triomesh-ca", "-n", "triomesh-system", "--from-literal=a=b"
    )
    installed.kubectl("create", "configmap", "triomesh-ca-bundle", "--from-literal=bundle.pem=x")
    done = meshctl(installed, "uninstall")
    assert done.exit_code == 0, done.output
    left = everything(installed)
    assert {name for name in left if name.startswith("customresourcedefinition")} == {
        f"customresourcedefinition.apiextensions.k8s.io/{crd['metadata']['name']}" for crd in crds()
    }
    assert "secret/triomesh-ca" in left
    assert "namespace/triomesh-system" in left
    assert not [name for name in left if re.search("webhook|deployment|role|configmap/triomesh", name)]
    meshctl(installed, "uninstall", "--purge")
    assert not [name for name in everything(installed) if "triomesh" in name]


def test_uninstall_refuses_while_pods_have_sidecars(installed: Cluster) -> None:
    meshed = pod("meshed", "sleep", "60", container={"name": "triomesh-proxy"})
    installed.apply(meshed)
    try:
        done = meshctl(installed, "uninstall")
        assert done.exit_code == 2
        assert "1 pods have a sidecar" in done.stderr
        assert "\n  default/meshed\n" in done.stderr
        assert installed.kubectl("get", "deployment", "-n", "triomesh-system", "-o", "name").stdout
        assert meshctl(installed, "uninstall", "--force").exit_code == 0
    finally:
        installed.kubectl("delete", "pod", "meshed", "--grace-period=0", "--force")


def test_kubectl_apply_and_meshctl_take_turns(clean: Cluster) -> None:
    done = clean.kubectl("apply", "-k", str(MANIFESTS), check=False)
    assert re.findall(r'no matches for kind "(\w+)"', done.stderr) == list(LACKING), done.stderr
    assert set(re.findall(r"(\w+)$", done.stdout, re.MULTILINE)) == {"created"}
    again = said(meshctl(clean, "install"))
    assert {what for what in again.values() if not what.startswith("skipped")} == {"unchanged"}
    text = "---\n".join(yaml.safe_dump(obj) for obj in render(Values()) if obj["kind"] not in LACKING)
    applied = clean.kubectl("apply", "-f", "-", stdin=text).stdout
    changed = [line for line in applied.splitlines() if not line.endswith(" unchanged")]
    # A control plane that runs by now has made it fail closed; it will do so again.
    validator = "validatingwebhookconfiguration.admissionregistration.k8s.io/triomesh-validator configured"
    assert changed in ([], [validator])
    tried = clean.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text).stdout
    assert tried.count("(server dry run)") == len(render(Values())) - len(LACKING)


def test_drift_is_repaired_and_what_the_control_plane_wrote_stays(installed: Cluster) -> None:
    hooks = "mutatingwebhookconfiguration/triomesh-injector"

    def written() -> str:
        return str(installed.json("get", hooks)["webhooks"][0]["clientConfig"].get("caBundle", ""))

    installed.until(lambda: b64decode(written()).startswith(b"-----BEGIN CERTIFICATE"), "our bundle in it")
    bundle = written()
    fail = json.dumps([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}])
    validator = "validatingwebhookconfiguration/triomesh-validator"
    installed.kubectl("patch", validator, "--type=json", "-p", fail)
    installed.kubectl("delete", "rolebinding", "triomesh-control", "-n", "triomesh-system")
    installed.kubectl(
        *("patch", "clusterrole", "triomesh-control", "--type=json"),
        *(
            "-p",
            '[{"op": "add", "path": "/rules/-", "value": {"apiGroups": [""], "resources": ["secrets"], '
            '"verbs": ["get"]}}]',
        ),
    )
    found = {name: what for name, what in install(installed).items() if not what.startswith("skipped")}
    assert found.pop("rolebinding.rbac.authorization.k8s.io/triomesh-control") == "created"
    assert found.pop("clusterrole.rbac.authorization.k8s.io/triomesh-control") == "configured"
    assert set(found.values()) == {"unchanged"}
    assert written() == bundle
    assert installed.json("get", validator)["webhooks"][0]["failurePolicy"] == "Fail"


def test_upgrade_keeps_values_and_removes_what_is_no_longer_part(installed: Cluster) -> None:
    install(installed, "--set", "replicas=1", "--set", "logLevel=debug")
    label = "triomesh.dev/install=triomesh"
    installed.kubectl("create", "role", "old", "-n", "triomesh-system", "--verb=get", "--resource=pods")
    installed.kubectl("label", "role", "old", "-n", "triomesh-system", label)
    done = meshctl(installed, "upgrade", "--set", "image.tag=9")
    assert done.exit_code == 0, done.output
    assert "role.rbac.authorization.k8s.io/old deleted: no longer part of the installation" in done.output
    deployment = installed.json("get", "deployment", "triomesh-control", "-n", "triomesh-system")
    assert deployment["spec"]["replicas"] == 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "triomesh:9"
    assert {"name": "TRIOMESH_LOG_LEVEL", "value": "debug"} in container["env"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trustDomain=other.example", "the trust domain is cluster.local, not other.example"),
        ("namespace=elsewhere", "the mesh is installed in triomesh-system, not elsewhere"),
    ],
)
def test_what_an_installation_cannot_change(installed: Cluster, assignment: str, message: str) -> None:
    done = meshctl(installed, "install", *IDLE, "--set", assignment)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: nothing was changed: {message}")


def test_upgrade_of_nothing(clean: Cluster) -> None:
    done = meshctl(clean, "upgrade")
    assert done.exit_code == 2
    assert "the mesh is not installed" in done.stderr


def test_waiting_says_why_it_does_not_start(installed: Cluster) -> None:
    done = meshctl(installed, "upgrade", "--wait", "--timeout", "3s")
    assert done.exit_code == 2
    assert "triomesh-control: 0 of 2 replicas ready" in done.output
    assert done.stderr.startswith("error: not ready within 3 s: ")
    assert "Insufficient memory" in done.stderr


def test_without_permission_nothing_is_written(clean: Cluster, tmp_path: Path) -> None:
    stranger = kubeconfig_of(clean, "stranger", tmp_path / "kubeconfig")
    before = everything(clean)
    done = meshctl(clean, "install", kubeconfig=stranger)
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "error: nothing was changed: you are not allowed to"
    assert "  get, create, update customresourcedefinitions.apiextensions.k8s.io" in lines
    assert "  get, create, update deployments.apps in namespace triomesh-system" in lines
    assert "  get, create, update namespaces" in lines
    assert everything(clean) == before
    done = meshctl(clean, "check", "--pre", kubeconfig=stranger)
    assert done.exit_code == 1
    assert "NO  you may install the mesh: you are not allowed to\n" in done.output
    done = meshctl(clean, "uninstall", kubeconfig=stranger)
    assert done.exit_code == 2
    assert "cannot list resource" in done.stderr


@pytest.mark.parametrize(
    ("request_line", "yes"),
    [
        ("list pods -A", True),
        ("watch endpointslices.discovery.k8s.io -A", True),
        ("create tokenreviews.authentication.k8s.io", True),
        ("create events -n shop", True),
        ("create configmaps -n shop", True),
        ("patch configmap/triomesh-ca-bundle -n shop", True),
        ("patch configmap/other -n shop", False),
        ("list configmaps -A", False),
        ("get secret/triomesh-ca -n triomesh-system", True),
        ("get secret/other -n triomesh-system", False),
        ("get secret/triomesh-ca -n shop", False),
        ("delete secret/triomesh-ca -n triomesh-system", False),
        ("update lease/triomesh-control -n triomesh-system", True),
        ("patch mutatingwebhookconfiguration/triomesh-injector", True),
        ("patch mutatingwebhookconfiguration/other", False),
        ("patch trafficpolicies.triomesh.dev/x --subresource=status -n shop", True),
        ("patch trafficpolicies.triomesh.dev/x -n shop", False),
        ("create pods -n shop", False),
        ("create serviceaccounts/x --subresource=token -n shop", False),
        ("create clusterrolebindings", False),
    ],
)
def test_what_the_control_plane_may_do(account: Path, request_line: str, yes: bool) -> None:
    done = run(
        *(str(KUBECTL), "--kubeconfig", str(account), "auth", "can-i", *request_line.split()), check=False
    )
    assert done.stdout.strip().splitlines()[-1:] == ["yes" if yes else "no"], done.stderr


@pytest.fixture(scope="module")
def account(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of the control plane's own account."""
    install(cluster)
    path = tmp_path_factory.mktemp("account") / "kubeconfig"
    return kubeconfig_of(cluster, "triomesh-control", path, "triomesh-system")


def test_definitions_of_another_version_are_left_alone(clean: Cluster) -> None:
    other = crds()[2]
    other["spec"]["versions"][0]["name"] = "v2"
    other["metadata"]["labels"] = {}
    clean.apply(other)
    name = other["metadata"]["name"]
    try:
        clean.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=20s")
        done = meshctl(clean, "install", *IDLE)
        assert done.exit_code == 2
        assert f"the CRD {name} stores objects as v2, this meshctl knows v1alpha1" in done.stderr
        assert not [each for each in everything(clean) if "namespace/" in each]
        done = meshctl(clean, "check", "--pre")
        assert done.exit_code == 1
        assert f"{name} stores v2, expected v1alpha1" in done.output
    finally:
        clean.kubectl("delete", "crd", name)


def test_policies_are_stored_whole_and_bad_ones_refused(installed: Cluster) -> None:
    installed.kubectl("create", "namespace", "bookshop")
    try:
        for policy in (TRAFFIC, ACCESS, MESH):
            kind = policy["kind"].lower()
            installed.apply(policy)
            found = installed.json("get", kind, policy["metadata"]["name"], "-n", "bookshop")
            assert found["spec"] == policy["spec"], "pruned or defaulted"
        table = installed.kubectl("get", "tp,ap,mp", "-n", "bookshop").stdout
        assert re.search(r"NAME +SERVICE +HOST +ACCEPTED +AGE", table)
        assert re.search(r"NAME +ACTION +SERVICE +DRY-RUN +ACCEPTED +AGE", table)
        assert re.search(r"NAME +MTLS +MTLS-OVERRIDE +EGRESS +ACCEPTED +AGE", table)
        for policy, path, value, message in WRONG:
            text = json.dumps(broken(policy, path, value))
            done = installed.kubectl("apply", "-f", "-", stdin=text, check=False)
            assert done.returncode != 0, (path, value)
            assert message in done.stderr, (path, value, done.stderr)
    finally:
        installed.kubectl("delete", "namespace", "bookshop")
