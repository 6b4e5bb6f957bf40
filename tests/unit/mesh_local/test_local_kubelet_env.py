"""Environment variables, the downward API, and what a container's spec becomes."""

from typing import Any

import pytest

from mesh_local.kubelet.container_spec import CAPABILITIES, capabilities, held, identity, sysctls
from mesh_local.kubelet.environment import container_env, expand, service_env
from mesh_local.kubelet.fields import Node, field_value, resource_value
from mesh_local.kubelet.sandbox import hosts, resolv_conf
from mesh_local.kubelet.types import ConfigError
from mesh_local.machinery.objects import Object
from tests.support.local_kubelet import OPTIONS

NODE = Node("node1", ("10.0.0.1", "fd00::1"), {"cpu": "2", "memory": "1Gi"})
POD: Object = {
    "metadata": {
        "name": "p",
        "namespace": "t",
        "uid": "u",
        "labels": {"b": 'say "hi"', "a": "1"},
        "annotations": {"k": "two\nlines"},
    },
    "spec": {
        "serviceAccountName": "sa",
        "containers": [
            {"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}
        ],
    },
}
OBJECTS: dict[tuple[str, str], Object] = {
    ("ConfigMap", "cm"): {"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "AAE="}},
    ("Secret", "s"): {"data": {"k": "djE="}},
}


def env(*items: Object, **more: Any) -> dict[str, str]:
    spec = {"name": "c", "env": list(items), **more}
    return container_env(
        spec, POD, NODE, ("10.1.0.1",), lambda kind, name: OBJECTS.get((kind, name)), {"S": "svc"}
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("$(A)b", "1b"), ("$(NO)", "$(NO)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A")],
)
def test_references(text: str, wanted: str) -> None:
    assert expand(text, {"A": "1"}) == wanted


def test_variables_see_those_before_them_and_services() -> None:
    assert env({"name": "A", "value": "$(S)-$(B)"}, {"name": "B", "value": "$(A)"}) == {
        "S": "svc",
        "A": "svc-$(B)",
        "B": "svc-$(B)",
    }


def test_values_from_everywhere() -> None:
    found = env(
        {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}},
        {"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "N", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": True}}},
        envFrom=[{"configMapRef": {"name": "cm"}, "prefix": "P_"}, {"secretRef": {"name": "s"}}],
    )
    assert found == {
        "S": "svc",
        "P_a": "1",
        "P_b": "2",
        "k": "v1",
        "F": "10.1.0.1",
        "R": "64",
        "C": "1",
        "K": "v1",
    }


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"configMapKeyRef": {"name": "no", "key": "k"}}, 'configmap "no" not found'),
        ({"secretKeyRef": {"name": "s", "key": "z"}}, "couldn't find key z in Secret t/s"),
        ({"fieldRef": {"fieldPath": "spec.nothing"}}, "unsupported fieldPath: spec.nothing"),
    ],
)
def test_what_is_missing_is_named(item: Object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        env({"name": "X", "valueFrom": item})


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("metadata.labels", 'a="1"\nb="say \\"hi\\""'),
        ("metadata.annotations['k']", "two\nlines"),
        ("spec.nodeName", "node1"),
        ("status.hostIPs", "10.0.0.1,fd00::1"),
    ],
)
def test_fields(path: str, wanted: str) -> None:
    assert field_value(path, POD, NODE, ("10.1.0.1",)) == wanted


@pytest.mark.parametrize(
    ("resource", "divisor", "wanted"),
    [
        ("requests.cpu", "1m", "250"),
        ("requests.cpu", None, "1"),
        ("limits.cpu", None, "2"),  # the node's, as no limit is set
        ("limits.memory", "0", str(64 * 1024 * 1024)),
    ],
)
def test_resources(resource: str, divisor: str | None, wanted: str) -> None:
    assert resource_value({"resource": resource, "divisor": divisor}, POD, "c", NODE) == wanted


def service(service_name: str, ip: str, namespace: str = "t", **port: Any) -> Object:
    return {
        "metadata": {"name": service_name, "namespace": namespace},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, **port}]},
    }


def test_variables_for_services() -> None:
    services = [
        service("kubernetes", "10.96.0.1", "default", name="https"),
        service("my-web", "fd10::5"),
        service("headless", "None"),
        service("elsewhere", "10.96.0.9", "other"),
    ]
    found = service_env(POD, services)
    assert found["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert found["KUBERNETES_SERVICE_PORT_HTTPS"] == "80"
    assert found["MY_WEB_PORT"] == "tcp://[fd10::5]:80"
    assert found["MY_WEB_PORT_80_TCP_ADDR"] == "fd10::5"
    assert not [key for key in found if key.startswith(("HEADLESS", "ELSEWHERE"))]
    alone = service_env({**POD, "spec": {"enableServiceLinks": False}}, services)
    assert {key.split("_")[0] for key in alone} == {"KUBERNETES"}


def test_capabilities_as_containerd_gives_them() -> None:
    def named(numbers: list[int]) -> set[str]:
        return {CAPABILITIES[n] for n in numbers}

    assert sum(1 << n for n in capabilities({})) == 0xA80425FB
    assert named(capabilities({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}})) == {"NET_ADMIN"}
    assert "NET_RAW" not in named(capabilities({"capabilities": {"drop": ["NET_RAW"]}}))
    # ALL is all that there is to give; more would keep the container from starting.
    assert capabilities({"privileged": True}) == held()
    assert capabilities({"capabilities": {"add": ["ALL"]}}) == held()
    assert named(capabilities({"capabilities": {"add": ["ALL"], "drop": ["CHOWN"]}})) == named(held()) - {
        "CHOWN"
    }
    with pytest.raises(ConfigError, match='unknown capability "CAP_FLY"'):
        capabilities({"capabilities": {"add": ["FLY"]}})


def test_who_a_container_runs_as() -> None:
    def who(own: Object, general: Object) -> tuple[int, int, list[int]]:
        pod = {**POD, "spec": {"securityContext": general}}
        return identity(pod, {"name": "c", "securityContext": own})

    assert who({"runAsUser": 123456}, {"runAsUser": 1, "runAsGroup": 5, "fsGroup": 7}) == (123456, 5, [5, 7])
    with pytest.raises(ConfigError, match="image will run as root"):
        who({"runAsNonRoot": True}, {})
    with pytest.raises(ConfigError, match="breaks non-root policy"):
        who({"runAsNonRoot": True}, {"runAsUser": 0})


def test_kernel_parameters_of_the_network_only() -> None:
    def of(*items: Object) -> dict[str, str]:
        return sysctls({"spec": {"securityContext": {"sysctls": list(items)}}})

    assert of({"name": "net.core.somaxconn", "value": "64"})["net.core.somaxconn"] == "64"
    for name in ("kernel.panic", "net.../../kernel.panic", "net"):
        with pytest.raises(ConfigError, match="forbidden sysctl"):
            of({"name": name, "value": "1"})


def test_resolv_conf() -> None:
    host = "search corp\nnameserver 9.9.9.9\noptions edns0\n"
    pod: Object = {"metadata": {"name": "p", "namespace": "t"}, "spec": {}}
    assert resolv_conf(pod, OPTIONS, host) == (
        "search t.svc.cluster.local svc.cluster.local cluster.local corp\n"
        "nameserver 10.96.0.10\noptions ndots:5\n"
    )
    assert resolv_conf({**pod, "spec": {"hostNetwork": True}}, OPTIONS, host) == (
        "search corp\nnameserver 9.9.9.9\noptions edns0\n"
    )
    own = {
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "x", "value": "2"}]},
    }
    assert resolv_conf({**pod, "spec": own}, OPTIONS, host) == "nameserver 1.1.1.1\noptions x:2\n"


def test_hosts() -> None:
    pod: Object = {
        "metadata": {"name": "p", "namespace": "t"},
        "spec": {"subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]},
    }
    text = hosts(pod, OPTIONS, ("10.1.0.1", "fd00::2"))
    assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
    assert "10.1.0.1\tp.sub.t.svc.cluster.local\tp\nfd00::2\tp.sub.t.svc.cluster.local\tp\n" in text
    assert text.endswith("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n")
