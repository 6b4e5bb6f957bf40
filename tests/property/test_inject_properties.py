"""Injection is a fixpoint, its patch leads to its pod, and it can be undone; golden pods and made ones."""

import copy
from typing import Any

import jsonpatch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from injector.decision import INIT, PROXY, Decision, Inject, Namespace
from injector.json_patch import diff
from injector.patch import decide, remove
from injector.values import Values
from mesh_local.kinds.pod import POD
from tests.support.inject import CASES, ENABLED, case, values

Pod = dict[str, Any]
VALUES = values()


def _injected() -> list[str]:
    return [name for name in CASES if isinstance(decide(*case(name)), Inject)]


INJECTED = _injected()


def inject(pod: Pod, namespace: Namespace = ENABLED, with_values: Values = VALUES) -> Inject:
    decision: Decision = decide(pod, namespace, with_values)
    assert isinstance(decision, Inject), decision
    return decision


def defaulted(pod: Pod) -> Pod:
    made = copy.deepcopy({"apiVersion": "v1", "kind": "Pod", **pod})
    POD.default(made)
    return made


def check(pod: Pod, namespace: Namespace, with_values: Values) -> None:
    before = copy.deepcopy(pod)
    first = inject(pod, namespace, with_values)
    assert pod == before, "the input was changed"
    assert jsonpatch.apply_patch(pod, first.patch) == first.pod
    assert inject(first.pod, namespace, with_values).patch == []
    # As the API server stores it, with its defaults in our containers too.
    stored = defaulted(first.pod)
    assert inject(stored, namespace, with_values).patch == []
    names = [container["name"] for container in first.pod["spec"]["initContainers"]]
    assert names[:2] == [INIT, PROXY]
    assert remove(first.pod) == pod
    assert defaulted(remove(stored)) == defaulted(pod)


@pytest.mark.parametrize("name", INJECTED)
def test_golden_pods(name: str) -> None:
    check(*case(name))


@pytest.mark.parametrize("name", INJECTED)
def test_golden_pods_as_the_api_server_sends_them(name: str) -> None:
    pod, namespace, with_values = case(name)
    check(defaulted(pod), namespace, with_values)


@pytest.mark.parametrize("name", INJECTED)
def test_reinvocation_after_another_webhook(name: str) -> None:
    """It puts a container in front, mounts a volume everywhere, and adds a container with a probe."""
    pod, namespace, with_values = case(name)
    changed = defaulted(inject(pod, namespace, with_values).pod)
    spec = changed["spec"]
    spec["initContainers"].insert(0, {"name": "vault-init", "image": "vault:1"})
    spec["containers"].append(
        {"name": "vault", "image": "vault:1", "livenessProbe": {"httpGet": {"path": "/v", "port": 8200}}}
    )
    spec.setdefault("volumes", []).insert(0, {"name": "secrets", "emptyDir": {}})
    for container in (*spec["initContainers"], *spec["containers"]):
        container.setdefault("volumeMounts", []).append({"name": "secrets", "mountPath": "/vault"})
        container.setdefault("env", []).append({"name": "VAULT", "value": "yes"})
    again = inject(changed, namespace, with_values)
    inits = again.pod["spec"]["initContainers"]
    assert [container["name"] for container in inits][:3] == [INIT, PROXY, "vault-init"]
    for container in inits[:2]:
        assert {"name": "secrets", "mountPath": "/vault"} in container["volumeMounts"]
        assert {"name": "VAULT", "value": "yes"} in container["env"]
    probe = again.pod["spec"]["containers"][-1]["livenessProbe"]["httpGet"]
    assert probe["port"] == (8200 if name == "probes-left-alone" else 15020)
    assert inject(again.pod, namespace, with_values).patch == []
    assert inject(defaulted(again.pod), namespace, with_values).patch == []


@pytest.mark.parametrize("name", INJECTED)
def test_another_version_leaves_nothing_of_the_first(name: str) -> None:
    pod, namespace, _ = case(name)
    old = values(version="1.0.0", capture={"excludeOutboundPorts": "1,2"}, trustBundle="x", logLevel="error")
    first = inject(pod, namespace, old)
    assert inject(first.pod, namespace, VALUES).pod == inject(pod, namespace, VALUES).pod


_port = st.integers(1, 14_999) | st.sampled_from(["http", "missing", "8080"])
_handler = (
    st.fixed_dictionaries(
        {"httpGet": st.fixed_dictionaries({"port": _port}, optional={"path": st.text(max_size=8)})}
    )
    | st.fixed_dictionaries({"tcpSocket": st.fixed_dictionaries({"port": _port})})
    | st.fixed_dictionaries({"grpc": st.fixed_dictionaries({"port": st.integers(1, 14_999)})})
    | st.just({"exec": {"command": ["true"]}})
)
_probe = st.builds(
    lambda handler, times: {**handler, **times},
    _handler,
    st.fixed_dictionaries({}, optional={"timeoutSeconds": st.integers(1, 9)}),
)
_names = st.lists(
    st.sampled_from(["a", "b", "c", "d", "triomesh", "triomesh-token"]), min_size=1, max_size=4, unique=True
)
_container = st.fixed_dictionaries(
    {"image": st.just("x")},
    optional={
        "ports": st.just([{"name": "http", "containerPort": 8080}]),
        "readinessProbe": _probe,
        "livenessProbe": _probe,
        "startupProbe": _probe,
        "lifecycle": st.fixed_dictionaries({}, optional={"preStop": _handler, "postStart": _handler}),
        "securityContext": st.fixed_dictionaries({}, optional={"runAsUser": st.integers(0, 1000)}),
    },
)


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    names = draw(_names)
    made = [{"name": name, **draw(_container)} for name in names]
    cut = draw(st.integers(0, len(made) - 1))
    spec: Pod = {"containers": made[cut:]}
    if cut:
        spec["initContainers"] = [{**one, "restartPolicy": "Always"} for one in made[:cut]]
    volumes = draw(st.lists(st.sampled_from(["triomesh-token", "triomesh-bundle", "v"]), unique=True))
    if volumes:
        spec["volumes"] = [{"name": name, "emptyDir": {}} for name in volumes]
    scrape = st.sampled_from(["true", "false"])
    port = st.sampled_from(["8080", "x", "15020"])
    told = {"prometheus.io/scrape": scrape, "prometheus.io/port": port, "a/b~c": st.just("1")}
    annotations = draw(st.fixed_dictionaries({}, optional=told))
    pod: Pod = {"spec": spec}
    if annotations:
        pod["metadata"] = {"annotations": annotations}
    else:
        pod["metadata"] = {"name": "x"}
    return pod


@settings(max_examples=150, deadline=None)
@given(pods())
def test_made_pods(pod: Pod) -> None:
    check(pod, ENABLED, VALUES)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "~/"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b/c", "~d", ""]), inner, max_size=3)
    ),
    max_leaves=12,
)


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: here True is not 1."""
    return repr(_sorted(one)) == repr(_sorted(other))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "x/y"]), _json),
    st.dictionaries(st.sampled_from(["a", "x/y"]), _json),
)
def test_a_patch_leads_from_one_object_to_the_other(old: Any, new: Any) -> None:
    assert _same(jsonpatch.apply_patch(copy.deepcopy(old), diff(old, new)), new)
    assert diff(old, copy.deepcopy(old)) == []
