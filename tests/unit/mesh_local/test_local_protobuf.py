"""Protobuf bodies: what kubectl 1.36.4 sends, the special shapes, and what is refused."""

import base64

import pytest

from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.protobuf import decode
from mesh_local.machinery.protobuf_fields import ROWS
from mesh_local.machinery.schema import definitions
from tests.support.local_protobuf import body, message

# Bodies of `kubectl create`, `create token` and `auth can-i`.
SENT = {
    "configmap": (
        "azhzAAoPCgJ2MRIJQ29uZmlnTWFwEkQKFgoCYzESABoEZGVtbyIAKgAyADgAQgASBgoBYRIBMRIPCgV0LnR4dBIGaGVsbG8K"
        "GhEKB2Jpbi5kYXQSBgD/AWJpbhoAIgA=",
        {
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "metadata": {"name": "c1", "namespace": "demo"},
            "data": {"a": "1", "t.txt": "hello\n"},
            "binaryData": {"bin.dat": "AP8BYmlu"},
        },
    ),
    "deployment": (
        "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50Er8BCiEKAmQxEgAaBGRlbW8iACoAMgA4AEIAWgkKA2FwcBICZDESiwEIAxIL"
        "CgkKA2FwcBICZDEacgobCgASABoAIgAqADIAOABCAFoJCgNhcHASAmQxElMSNQoBYhIFYS9iOjEaBXNsZWVwGgE1KgAyCwoA"
        "EAAYkD8iACoAQgBqAHIAgAEAiAEAkAEAogEAGgAyAEIASgBSAFgAYABoAIIBAIoBAJoBAMIBACICCgAoADgAGgwIABAAGAAg"
        "ACgAOAAaACIA",
        {
            "kind": "Deployment",
            "apiVersion": "apps/v1",
            "metadata": {"name": "d1", "namespace": "demo", "labels": {"app": "d1"}},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "d1"}},
                "template": {
                    "metadata": {"labels": {"app": "d1"}},
                    "spec": {
                        "containers": [
                            {
                                "name": "b",
                                "image": "a/b:1",
                                "command": ["sleep", "5"],
                                "ports": [{"containerPort": 8080}],
                            }
                        ]
                    },
                },
            },
        },
    ),
    "role": (
        "azhzAAokChxyYmFjLmF1dGhvcml6YXRpb24uazhzLmlvL3YxEgRSb2xlElMKFgoCcjESABoEZGVtbyIAKgAyADgAQgASFgoD"
        "Z2V0CgRsaXN0EgAaBHBvZHMiAXgSIQoDZ2V0CgRsaXN0EgRhcHBzGgtkZXBsb3ltZW50cyIBeBoAIgA=",
        {
            "kind": "Role",
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "metadata": {"name": "r1", "namespace": "demo"},
            "rules": [
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]},
                {
                    "verbs": ["get", "list"],
                    "apiGroups": ["apps"],
                    "resources": ["deployments"],
                    "resourceNames": ["x"],
                },
            ],
        },
    ),
    "cluster role": (
        "azhzAAorChxyYmFjLmF1dGhvcml6YXRpb24uazhzLmlvL3YxEgtDbHVzdGVyUm9sZRIhChMKA2NyMhIAGgAiACoAMgA4AEIA"
        "GgoKCAoGCgFhEgFiGgAiAA==",
        {
            "kind": "ClusterRole",
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "metadata": {"name": "cr2"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
        },
    ),
    "service": (
        "azhzAAoNCgJ2MRIHU2VydmljZRJ0CiUKBHN2YzMSABoEZGVtbyIAKgAyADgAQgBaCwoDYXBwEgRzdmMzEkcKIAoHODAtaHR0"
        "cBIDVENQGFAiCggBEAAaBGh0dHAosOoBEgsKA2FwcBIEc3ZjMxoAIghOb2RlUG9ydDoAQgBSAFoAYABoABoCCgAaACIA",
        {
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": {"name": "svc3", "namespace": "demo", "labels": {"app": "svc3"}},
            "spec": {
                "ports": [
                    {
                        "name": "80-http",
                        "protocol": "TCP",
                        "port": 80,
                        "targetPort": "http",
                        "nodePort": 30000,
                    }
                ],
                "selector": {"app": "svc3"},
                "type": "NodePort",
            },
        },
    ),
    "token": (
        "azhzAAooChhhdXRoZW50aWNhdGlvbi5rOHMuaW8vdjESDFRva2VuUmVxdWVzdBJXChAKABIAGgAiACoAMgA4AEIAEj0KAXgK"
        "AXkaMgoDUG9kEgJ2MRoBcCIkMDAwMDAwMDAtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAwINgEGgQKABIAGgAiAA==",
        {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "spec": {
                "audiences": ["x", "y"],
                "boundObjectRef": {
                    "kind": "Pod",
                    "apiVersion": "v1",
                    "name": "p",
                    "uid": "00000000-0000-4000-8000-000000000000",
                },
                "expirationSeconds": 600,
            },
        },
    ),
    "can-i": (
        "azhzAAoyChdhdXRob3JpemF0aW9uLms4cy5pby92MRIXU2VsZlN1YmplY3RBY2Nlc3NSZXZpZXcSLwoQCgASABoAIgAqADIA"
        "OABCABIREg8KCC9tZXRyaWNzEgNnZXQaCAgAEgAaACAAGgAiAA==",
        {
            "kind": "SelfSubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "spec": {"nonResourceAttributes": {"path": "/metrics", "verb": "get"}},
            "status": {"allowed": False},
        },
    ),
}
META = (1, [(1, "x")])


def refused(data):
    with pytest.raises(ApiError) as error:
        decode(data)
    assert error.value.code == 400
    return error.value.message


def config_map(*fields):
    return body("v1", "ConfigMap", *fields)


@pytest.mark.parametrize("name", SENT)
def test_what_kubectl_sends(name):
    encoded, expected = SENT[name]
    assert decode(base64.b64decode(encoded)) == expected


def test_inlined_messages_stand_in_their_parent():
    volume = [(1, "v"), (2, [(2, [(1, "Memory"), (2, [(1, "1Gi")])])])]
    probe = [(1, [(2, [(1, "/h"), (2, [(1, 0), (2, 80)])])]), (2, 5)]
    env = [(1, "E"), (3, [(3, [(1, [(1, "cm")]), (2, "k"), (3, False)])])]
    container = [(1, "c"), (7, env), (10, probe), (15, [(2, False)])]
    obj = decode(body("v1", "Pod", (2, [(1, volume), (2, container)])))
    assert obj["spec"] == {
        "volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}],
        "containers": [
            {
                "name": "c",
                "env": [
                    {
                        "name": "E",
                        "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k", "optional": False}},
                    }
                ],
                "livenessProbe": {"httpGet": {"path": "/h", "port": 80}, "initialDelaySeconds": 5},
                "securityContext": {"privileged": False},
            }
        ],
    }


def test_zeros_mean_absent_unless_the_field_is_optional_or_required():
    spec = [(1, 0), (5, 0), (3, [])]
    assert decode(body("apps/v1", "Deployment", META, (2, spec)))["spec"] == {"replicas": 0, "template": {}}
    pod = decode(
        body("v1", "Pod", (2, [(1, [(1, "v"), (2, [(2, [])])]), (2, [(1, ""), (2, "")]), (11, False)]))
    )
    assert pod["spec"] == {"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": ""}]}


def test_times_quantities_and_json():
    managed = [(1, "m"), (4, [(1, 1767225600), (2, 5)]), (7, [(1, '{"f:data":{}}')])]
    obj = decode(config_map((1, [(1, "x"), (8, [(1, 1767225600)]), (9, []), (17, managed)])))
    assert obj["metadata"] == {
        "name": "x",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [
            {"manager": "m", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:data": {}}},
        ],
    }
    lease = decode(
        body("coordination.k8s.io/v1", "Lease", (2, [(1, "h"), (4, [(1, 1767225600), (2, 123456789)])]))
    )
    assert lease["spec"] == {"holderIdentity": "h", "renewTime": "2026-01-01T00:00:00.123456Z"}
    limits = [(1, [(1, "cpu"), (2, [(1, "500m")])])]
    pod = decode(body("v1", "Pod", (2, [(2, [(1, "c"), (8, limits)])])))
    assert pod["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "500m"}}


def test_lists_in_maps_and_negative_numbers():
    user = [(1, "u"), (4, [(1, "k"), (2, [(1, "a"), (1, "b")])])]
    review = decode(body("authentication.k8s.io/v1", "TokenReview", (3, [(1, True), (2, user)])))
    assert review["status"] == {"authenticated": True, "user": {"username": "u", "extra": {"k": ["a", "b"]}}}
    event = decode(body("v1", "Event", META, (2, []), (8, -1)))
    assert (event["count"], event["involvedObject"]) == (-1, {})


def test_packed_numbers_are_taken():
    spec = [(2, [(1, "c")]), (14, [(4, b"\x01\x96\x01")])]
    assert decode(body("v1", "Pod", (2, spec)))["spec"]["securityContext"] == {"supplementalGroups": [1, 150]}


def test_delete_options_go_with_any_version():
    options = decode(body("apps/v1", "DeleteOptions", (1, 0), (4, "Orphan")))
    assert options == {
        "kind": "DeleteOptions",
        "apiVersion": "apps/v1",
        "gracePeriodSeconds": 0,
        "propagationPolicy": "Orphan",
    }


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"),
        (b"k8s\x00", "unable to decode protobuf: kind and apiVersion must be set"),
        (body("v1", "Widget"), 'no kind "Widget" is registered for version "v1" in protobuf'),
        (body("v1", "Container"), 'no kind "Container" is registered for version "v1" in protobuf'),
        (
            body("v1", "ObjectReference"),
            'no kind "ObjectReference" is registered for version "v1" in protobuf',
        ),
        (body("apps/v1", "ConfigMap"), 'no kind "ConfigMap" is registered for version "apps/v1" in protobuf'),
        (config_map((1, [(99, "x")])), "ConfigMap.metadata: unknown field number 99"),
        (config_map((77, 1)), "ConfigMap: unknown field number 77"),
        (config_map((1, 5)), "ConfigMap.metadata: wire type 0, expected 2"),
        (config_map((1, b"\x0a\x05ab")), "ConfigMap.metadata: unexpected end of data"),
        (config_map((1, [(1, b"\xff")])), "ConfigMap.metadata.name: a string is not UTF-8"),
        (config_map(META, META), "ConfigMap.metadata: field number 1 occurs twice"),
        (config_map((2, [(3, "x")])), "ConfigMap.data: unknown field number 3 in a map entry"),
        (config_map((2, 1)), "ConfigMap.data: expected wire type 2"),
        (config_map((1, b"\x0b")), "ConfigMap.metadata: field 1 has wire type 3, which is not supported"),
        (config_map((1, b"\x02\x00")), "ConfigMap.metadata: field number 0 is out of range"),
        (config_map((1, b"\x38" + b"\xff" * 11)), "ConfigMap.metadata: a varint is longer than 64 bits"),
        (
            config_map((1, [(8, [(1, 1 << 62)])])),
            "creationTimestamp: 4611686018427387904 seconds are out of range",
        ),
        (
            config_map((1, [(17, [(7, [(1, "{")])])])),
            "metadata.managedFields.fieldsV1: raw value is not JSON",
        ),
        (body("v1", "Event", (8, 1 << 40)), "Event.count: 1099511627776 is out of range for int32"),
        (
            b"k8s\x00" + message((1, [(1, "v1"), (2, "ConfigMap")]), (3, "gzip")),
            "content encoding or type 'gzip' is not supported",
        ),
        (
            body("v1", "Service", (2, [(1, [(4, [(1, 2)])])])),
            "Service.spec.ports.targetPort: 2 is not a type of IntOrString",
        ),
    ],
)
def test_refusals_say_what_and_where(data, expected):
    assert expected in refused(data)


def test_every_field_of_the_tables_is_a_field_of_the_api():
    known = definitions()
    inlined = {f[1:].split("=")[0] for row in ROWS.values() for f in row.split() if f.startswith("*")}
    checked = 0
    for row, fields in ROWS.items():
        package = "io.k8s.apimachinery.pkg.apis" if row.startswith("meta.") else "io.k8s.api"
        definition = known.get(f"{package}.{row}")
        if definition is None:
            assert row in inlined
            continue
        numbers = [f.split("=")[1] for f in fields.split()]
        assert len(set(numbers)) == len(numbers), row
        names = {f.split("=")[0].rstrip("?") for f in fields.split() if not f.startswith("*")}
        assert names <= definition["properties"].keys(), row
        checked += 1
    assert checked > 200
