"""Pods: defaulting, what is refused, what an update may change, and how they are printed."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mesh_local.kinds.pod import POD
from mesh_local.kinds.pod_defaults import image_pull_policy, qos_class
from mesh_local.machinery.objects import Object, copy

NOW = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
CREATED = "2026-01-01T00:00:00Z"


def pod(*containers: Object, **spec: Any) -> Object:
    """A defaulted Pod; one plain container if none is given."""
    obj: Object = {
        "metadata": {"name": "p", "creationTimestamp": CREATED},
        "spec": {"containers": list(containers) or [{"name": "c", "image": "x:1"}], **spec},
    }
    POD.default(obj)
    return obj


def complaints(obj: Object) -> list[str]:
    return [str(e) for e in POD.validate(obj)]


def test_the_spec_gets_its_defaults() -> None:
    spec = pod()["spec"]
    assert spec == {
        "containers": [
            {
                "name": "c",
                "image": "x:1",
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "enableServiceLinks": True,
    }


def test_probes_ports_and_env_get_their_defaults() -> None:
    container = pod(
        {
            "name": "c",
            "image": "x:1",
            "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1},
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        }
    )["spec"]["containers"][0]
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert container["readinessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 1,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] == "v1"


def test_volumes_get_their_defaults() -> None:
    token = {"path": "tok", "audience": "mesh"}
    volumes = pod(
        volumes=[
            {"name": "none"},
            {"name": "c", "configMap": {"name": "m"}},
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": token}]}},
        ]
    )["spec"]["volumes"]
    assert volumes == [
        {"name": "none", "emptyDir": {}},
        {"name": "c", "configMap": {"name": "m", "defaultMode": 420}},
        {
            "name": "t",
            "projected": {
                "sources": [
                    {"serviceAccountToken": {"path": "tok", "audience": "mesh", "expirationSeconds": 3600}}
                ],
                "defaultMode": 420,
            },
        },
    ]


def test_limits_become_requests_and_the_account_has_two_names() -> None:
    limits = {"cpu": "1", "memory": "1Gi"}
    spec = pod(
        {"name": "c", "image": "x:1", "resources": {"limits": limits, "requests": {"cpu": "500m"}}},
        serviceAccount="a",
    )["spec"]
    assert spec["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert spec["serviceAccountName"] == spec["serviceAccount"] == "a"


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("x", "Always"),
        ("host:5000/x", "Always"),
        ("x:latest", "Always"),
        ("localhost/base:1", "IfNotPresent"),
        ("x@sha256:ab", "IfNotPresent"),
    ],
)
def test_the_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    assert image_pull_policy(image) == policy


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "10m"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}, "Burstable"),
        ({"requests": {"example.com/gpu": "1"}}, "BestEffort"),
    ],
)
def test_qos_class(resources: Object, qos: str) -> None:
    assert qos_class({"containers": [{"resources": resources}]}) == qos


def test_create_starts_pending() -> None:
    obj = pod()
    obj["status"] = {"phase": "Running"}
    POD.prepare_create(obj)
    assert obj["status"] == {"phase": "Pending", "qosClass": "BestEffort"}


@pytest.mark.parametrize(
    ("containers", "message"),
    [
        ([], "spec.containers: Required value"),
        ([{"name": "c"}], "spec.containers[0].image: Required value"),
        (
            [{"name": "c", "image": "x"}, {"name": "c", "image": "x"}],
            'spec.containers[1].name: Duplicate value: "c"',
        ),
        (
            [{"name": "c", "image": "x", "restartPolicy": "Sometimes"}],
            'spec.containers[0].restartPolicy: Unsupported value: "Sometimes": '
            'supported values: "Always", "Never", "OnFailure"',
        ),
        (
            [{"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            'spec.containers[0].volumeMounts[0].name: Not found: "v"',
        ),
        (
            [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}],
            'spec.containers[0].resources.requests: Invalid value: "2": '
            "must be less than or equal to cpu limit of 1",
        ),
        (
            [{"name": "c", "image": "x", "ports": [{"containerPort": 70000}]}],
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: "
            "must be between 1 and 65535, inclusive",
        ),
        (
            [{"name": "c", "image": "x", "ports": [{"containerPort": 1, "name": "a"}] * 2}],
            'spec.containers[0].ports[1].name: Duplicate value: "a"',
        ),
        (
            [{"name": "c", "image": "x", "env": [{"name": "A=B"}]}],
            'spec.containers[0].env[0].name: Invalid value: "A=B": a valid environment variable name must '
            "consist only of printable ASCII characters other than '='",
        ),
        (
            [{"name": "c", "image": "x", "livenessProbe": {}}],
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            [{"name": "c", "image": "x", "startupProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}}],
            "spec.containers[0].startupProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            [{"name": "c", "image": "x", "lifecycle": {"preStop": {"exec": {"command": []}}}}],
            "spec.containers[0].lifecycle.preStop.exec.command: Required value",
        ),
        (
            [{"name": "c", "image": "x", "imagePullPolicy": "Maybe"}],
            'spec.containers[0].imagePullPolicy: Unsupported value: "Maybe": '
            'supported values: "Always", "IfNotPresent", "Never"',
        ),
    ],
)
def test_a_bad_container_is_named(containers: list[Object], message: str) -> None:
    obj: Object = {"metadata": {"name": "p"}, "spec": {"containers": containers}}
    POD.default(obj)
    assert complaints(obj) == [message]


def test_init_containers_have_rules_of_their_own() -> None:
    probe = {"exec": {"command": ["a"]}}
    init = {"name": "i", "image": "x", "readinessProbe": probe}
    assert complaints(pod(initContainers=[init])) == [
        "spec.initContainers[0].readinessProbe: Forbidden: "
        "may not be set for init containers without restartPolicy=Always"
    ]
    assert complaints(pod(initContainers=[{**init, "restartPolicy": "Always"}])) == []
    assert complaints(pod(initContainers=[{"name": "c", "image": "x"}])) == [
        'spec.initContainers[0].name: Duplicate value: "c"'
    ]


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (
            {"name": "v", "emptyDir": {}, "configMap": {"name": "m"}},
            "spec.volumes[0].configMap: Forbidden: may not specify more than 1 volume type",
        ),
        ({"name": "v", "secret": {}}, "spec.volumes[0].secret.secretName: Required value"),
        (
            {"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "/abs"}]}},
            'spec.volumes[0].configMap.items[0].path: Invalid value: "/abs": must be a relative path',
        ),
        (
            {
                "name": "v",
                "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]},
            },
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: "
            "may not specify a duration less than 10 minutes",
        ),
        (
            {"name": "v", "downwardAPI": {"items": [{"path": "p"}]}},
            "spec.volumes[0].downwardAPI.items[0]: Required value: "
            "one of fieldRef and resourceFieldRef is required",
        ),
    ],
)
def test_a_bad_volume_is_named(volume: Object, message: str) -> None:
    assert complaints(pod(volumes=[volume])) == [message]


def test_the_rest_of_the_spec() -> None:
    assert complaints(pod(restartPolicy="Maybe", activeDeadlineSeconds=0, dnsPolicy="None")) == [
        'spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never"',
        "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
    ]


def test_an_update_may_change_images_and_add_tolerations() -> None:
    old = pod(tolerations=[{"key": "a", "operator": "Exists"}])
    new = copy(old)
    new["spec"]["containers"][0]["image"] = "x:2"
    new["spec"]["tolerations"].append({"key": "b", "operator": "Exists"})
    assert POD.validate_update(new, old) == []
    del new["spec"]["tolerations"][0]
    [error] = POD.validate_update(new, old)
    assert str(error) == (
        "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
    )


def test_an_update_may_change_nothing_else() -> None:
    old = pod()
    new = copy(old)
    new["spec"]["containers"][0]["command"] = ["x"]
    [error] = POD.validate_update(new, old)
    assert error.field == "spec"
    assert error.detail.startswith(
        "pod updates may not change fields other than `spec.containers[*].image`,"
        "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
        "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
        "previously negative)\n@@ "
    )
    assert '+      "command": [' in error.detail


def test_containers_may_not_be_added() -> None:
    old = pod()
    [error] = POD.validate_update(pod({"name": "c", "image": "x:1"}, {"name": "d", "image": "x:1"}), old)
    assert str(error) == "spec.containers: Forbidden: pod updates may not add or remove containers"


def test_a_write_to_status_leaves_the_spec_alone() -> None:
    old = {**pod(), "status": {"phase": "Pending", "qosClass": "BestEffort"}}
    new: Object = {"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Running"}}
    POD.prepare_status(new, old)
    assert new["spec"] == old["spec"]
    assert new["status"] == {"phase": "Running", "qosClass": "BestEffort"}


def test_times_of_a_condition_that_nobody_set_are_null() -> None:
    obj = {**pod(), "status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}}
    POD.default(obj)
    (found,) = obj["status"]["conditions"]
    assert (found["lastProbeTime"], found["lastTransitionTime"]) == (None, None)


def test_warnings() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    assert POD.warnings(pod({"name": "c", "image": "x", "env": env})) == [
        'spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply'
    ]


def test_field_selectors() -> None:
    obj = {**pod(nodeName="node1"), "status": {"phase": "Running", "podIP": "10.0.0.1"}}
    values = {name: read(obj) for name, read in POD.fields.items()}
    assert values == {
        "spec.nodeName": "node1",
        "spec.restartPolicy": "Always",
        "spec.schedulerName": "default-scheduler",
        "spec.serviceAccountName": "",
        "spec.hostNetwork": "false",
        "status.phase": "Running",
        "status.podIP": "10.0.0.1",
        "status.nominatedNodeName": "",
    }
