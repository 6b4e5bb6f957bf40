"""What is installed: the files of manifests/base are what is rendered, and what must hold in them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.__main__ import files, main
from manifests.injection import injector_values
from manifests.names import labels
from manifests.render import crds, render, to_yaml
from manifests.values import Values, parse
from mesh_control.settings import from_environment
from mesh_local.kinds.pod_security import violations

Object = dict[str, Any]
MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
BASE = MANIFESTS / "base"
KUBECTL = Path(sys.executable).parent / "kubectl"


def test_base_is_what_is_rendered() -> None:
    if os.environ.get("TRIOMESH_UPDATE_GOLDEN"):
        main()
    assert {path.name: path.read_text() for path in BASE.iterdir()} == files(Values())


def key(obj: Object) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


@pytest.mark.parametrize("folder", [MANIFESTS, BASE])
def test_kustomize_gives_the_objects_of_install(folder: Path) -> None:
    built = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=True)
    found = sorted(yaml.safe_load_all(built.stdout), key=key)
    assert found == sorted(render(Values()), key=key)


def test_yaml_round_trip() -> None:
    assert list(yaml.safe_load_all(to_yaml(render(Values())))) == render(Values())


def find(objects: list[Object], kind: str, name: str = "") -> Object:
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name))


def test_order_and_labels() -> None:
    objects = render(Values())
    kinds = [obj["kind"] for obj in objects]
    assert kinds[:4] == ["CustomResourceDefinition"] * 3 + ["Namespace"]
    assert kinds[-2:] == ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]
    for obj in objects:
        assert obj["metadata"]["labels"]["triomesh.dev/install"] == labels()["triomesh.dev/install"]


def test_values_reach_every_place() -> None:
    values = parse(
        {
            "namespace": "mesh",
            "image": {"repository": "registry.example/m", "tag": "9", "pullSecrets": ["pull"]},
            "replicas": 1,
            "trustDomain": "example.org",
            "webhook": {"failurePolicy": "Ignore"},
            "logLevel": "debug",
            "resources": {"limits": {"cpu": "2", "memory": ""}},
            "networkPolicy": {"adminFrom": ["10.0.0.0/24"]},
        }
    )
    objects = render(values)
    assert not [o for o in objects if o["kind"] == "PodDisruptionBudget"]
    text = to_yaml(objects)
    assert "triomesh-system" not in text
    assert "0.1.0" not in text.replace('"version":"0.1.0"', "")
    deployment = find(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example/m:9"
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2"}}
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert environment["TRIOMESH_LOG_LEVEL"] == "debug"
    assert environment["TRIOMESH_TRUST_DOMAIN"] == "example.org"
    hooks = find(objects, "MutatingWebhookConfiguration")["webhooks"]
    assert {hook["failurePolicy"] for hook in hooks} == {"Ignore"}
    assert {hook["clientConfig"]["service"]["namespace"] for hook in hooks} == {"mesh"}
    for hook in hooks:
        (excluded,) = (e for e in hook["namespaceSelector"]["matchExpressions"] if "metadata" in e["key"])
        assert excluded["values"] == ["kube-system", "kube-node-lease", "mesh"]
    admin = find(objects, "NetworkPolicy")["spec"]["ingress"][1]
    replicas, callers = admin["from"]
    assert replicas["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "control"
    assert callers == {"ipBlock": {"cidr": "10.0.0.0/24"}}


@pytest.mark.parametrize("topology", ["combined", "separate"])
def test_every_service_leads_to_pods_that_listen(topology: str) -> None:
    objects = render(parse({"topology": topology}))
    pods = [o["spec"]["template"] for o in objects if o["kind"] == "Deployment"]
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    assert len(pods) == len(policies) == (3 if topology == "separate" else 1)
    roles = []
    for service in (o["spec"] for o in objects if o["kind"] == "Service"):
        (pod,) = (p for p in pods if p["metadata"]["labels"].items() >= service["selector"].items())
        (policy,) = (p for p in policies if p["podSelector"]["matchLabels"] == service["selector"])
        (container,) = pod["spec"]["containers"]
        open_ports = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        listening = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in service["ports"]:
            assert listening[port["targetPort"]] in open_ports
        roles.append({e["name"]: e.get("value") for e in container["env"]}["TRIOMESH_ROLES"])
    assert set(roles) == (
        {"discovery", "ca", "injector"} if topology == "separate" else {"ca,discovery,injector"}
    )


def test_what_pods_were_told_outlives_a_change_of_topology() -> None:
    def served(topology: str) -> dict[str, set[int]]:
        found = render(parse({"topology": topology}))
        return {
            o["metadata"]["name"]: {port["port"] for port in o["spec"]["ports"]}
            for o in found
            if o["kind"] == "Service"
        }

    told = injector_values(Values())
    combined, separate = served("combined"), served("separate")
    for address in (told.control_address, told.ca_address):
        host, _, port = address.rpartition(":")
        assert int(port) in combined[host.partition(".")[0]] & separate[host.partition(".")[0]]
    for hook in find(render(Values()), "MutatingWebhookConfiguration")["webhooks"]:
        service = hook["clientConfig"]["service"]
        assert service["port"] in combined[service["name"]] & separate[service["name"]]


def test_choices_for_the_ca_and_the_network_reach_the_control_plane() -> None:
    tree = {"ca": {"checkPeerAddress": "false"}, "clusterNetworks": ["10.0.0.0/8", "fd00::/8"]}
    (container,) = find(render(parse(tree)), "Deployment")["spec"]["template"]["spec"]["containers"]
    env = {e["name"]: e.get("value", "x") for e in container["env"]}
    settings = from_environment(env)
    assert settings.check_peer_address is False
    assert settings.cluster_networks == ("10.0.0.0/8", "fd00::/8")


def test_the_two_entries_never_ask_about_the_same_pod() -> None:
    first, second = find(render(Values()), "MutatingWebhookConfiguration")["webhooks"]
    injection = [
        next(e for e in hook["namespaceSelector"]["matchExpressions"] if e["key"] == "triomesh.dev/injection")
        for hook in (first, second)
    ]
    assert [e["operator"] for e in injection] == ["In", "NotIn"]
    assert injection[0]["values"] == injection[1]["values"] == ["enabled"]
    pods = [hook["objectSelector"]["matchExpressions"] for hook in (first, second)]
    assert pods[0] == [{"key": "triomesh.dev/inject", "operator": "NotIn", "values": ["false"]}]
    assert pods[1] == [{"key": "triomesh.dev/inject", "operator": "In", "values": ["true"]}]


def test_the_control_plane_fits_its_namespace() -> None:
    """Pod Security `restricted`, as Kubernetes decides it."""
    objects = render(Values())
    level = find(objects, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "restricted"
    template = find(objects, "Deployment")["spec"]["template"]
    assert not violations(template["spec"], "restricted")


def test_rights_to_change_secrets_and_webhooks_are_by_name() -> None:
    objects = render(Values())
    guarded = (
        "secrets",
        "configmaps",
        "leases",
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
    )
    for role in (o for o in objects if o["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if set(rule["resources"]) & set(guarded):
                assert rule["verbs"] == ["create"] or rule.get("resourceNames"), rule
        if role["kind"] == "ClusterRole":
            assert not [r for r in role["rules"] if "secrets" in r["resources"]]


BOUNDS = {
    "string": ("maxLength", "format"),
    "array": ("maxItems",),
    "integer": ("maximum", "format"),
    "number": ("maximum",),
}
FREE = ({"type": "object"}, {"type": "string"})  # metadata, apiVersion and kind, which the API server checks


def walk(schema: Object, path: str = "") -> list[tuple[str, Object]]:
    found = [(path, schema)]
    for name, below in schema.get("properties", {}).items():
        found += walk(below, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            found += walk(schema[name], f"{path}.{name}")
    return found


@pytest.mark.parametrize("crd", crds(), ids=lambda crd: crd["spec"]["names"]["kind"])
def test_everything_in_a_schema_is_bounded(crd: Object) -> None:
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    assert version["subresources"] == {"status": {}}
    for path, part in walk(schema):
        assert "x-kubernetes-validations" not in part, path
        assert "x-kubernetes-preserve-unknown-fields" not in part, path
        if path in (".apiVersion", ".kind", ".metadata"):
            assert part in FREE
        elif part["type"] == "object" and "additionalProperties" in part:
            assert "maxProperties" in part, path
        elif part["type"] == "object":
            assert part["properties"], path
        elif part["type"] != "boolean":
            assert any(bound in part for bound in BOUNDS[part["type"]]), path


def test_defaults_are_few() -> None:
    """A default in the schema hides what the user did not say, so each one is deliberate."""
    found = {
        f"{crd['spec']['names']['kind']}{path}": part["default"]
        for crd in crds()
        for path, part in walk(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        if "default" in part
    }
    assert found == {
        "AccessPolicy.spec.action": "ALLOW",
        "AccessPolicy.spec.dryRun": False,
        "TrafficPolicy.spec.routes.items.to.items.weight": 1,
        "TrafficPolicy.spec.routes.items.redirect.status": 301,
    }
