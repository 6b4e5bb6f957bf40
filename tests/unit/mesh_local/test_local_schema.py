"""Typed decoding and the reading of bodies, with the messages recorded on Kubernetes 1.36."""

from typing import Any

import pytest

from mesh_local.machinery import schema
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.jsontext import MAX_DEPTH

CORE = "io.k8s.api.core.v1."
CRD = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"
CANNOT = "json: cannot unmarshal"
QUANTITY = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


def decode(kind: str, data: Any, package: str = CORE) -> Any:
    return schema.decode(package + kind, data, kind=kind, version="v1").object


def refused(kind: str, data: Any, package: str = CORE) -> str:
    with pytest.raises(ApiError) as caught:
        decode(kind, data, package)
    assert (caught.value.code, caught.value.reason) == (400, "BadRequest")
    prefix = f'{kind} in version "v1" cannot be handled as a {kind}: '
    assert caught.value.message.startswith(prefix)
    return caught.value.message.removeprefix(prefix)


def container(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "c", **fields}]}}


def test_a_good_object_is_unchanged() -> None:
    data = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "containers": [{"name": "c", "ports": [{"containerPort": 80}], "securityContext": {}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "hostNetwork": False,
        },
    }
    decoded = schema.decode(CORE + "Pod", data, kind="Pod", version="v1")
    assert decoded.object == data
    assert decoded.unknown == []


def test_unknown_fields_are_dropped_and_named() -> None:
    data = {"dataa": 1, **container(foo=1, env=[{"name": "a", "valu": 1}]), "metadata": {"zz": {}}}
    decoded = schema.decode(CORE + "Pod", data, kind="Pod", version="v1")
    assert decoded.object == {"spec": {"containers": [{"name": "c", "env": [{"name": "a"}]}]}, "metadata": {}}
    assert decoded.unknown == [
        'unknown field "dataa"',
        'unknown field "spec.containers[0].foo"',
        'unknown field "spec.containers[0].env[0].valu"',
        'unknown field "metadata.zz"',
    ]
    error = schema.strict_error("Pod", "v1", decoded.unknown[:2])
    assert error.message == (
        'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "dataa", '
        'unknown field "spec.containers[0].foo"'
    )


def test_the_list_of_unknown_fields_is_bounded() -> None:
    decoded = schema.decode(
        CORE + "ConfigMap", {str(n): 1 for n in range(1000)}, kind="ConfigMap", version="v1"
    )
    assert len(decoded.unknown) == schema.MAX_STRICT_ERRORS


def test_field_names_are_case_sensitive() -> None:
    decoded = schema.decode(CORE + "ConfigMap", {"Data": {"a": "b"}}, kind="ConfigMap", version="v1")
    assert decoded.object == {}
    assert decoded.unknown == ['unknown field "Data"']


def test_nulls_and_what_go_leaves_out_are_dropped() -> None:
    data = {"metadata": {"labels": {}, "annotations": None}, "data": {"a": None}, "immutable": None}
    assert decode("ConfigMap", data) == {"metadata": {}, "data": {"a": ""}}
    role = {"rules": [], "metadata": {"finalizers": []}}
    assert decode("Role", role, "io.k8s.api.rbac.v1.") == {"rules": [], "metadata": {}}
    slice_ = {"endpoints": [], "ports": []}
    assert decode("EndpointSlice", slice_, "io.k8s.api.discovery.v1.") == slice_


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (
            "ConfigMap",
            {"data": {"x": 1}},
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            "Pod",
            container(env=[{"name": "a", "value": True}]),
            f"{CANNOT} bool into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            "Pod",
            {"spec": {"containers": "x"}},
            f"{CANNOT} string into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            "Pod",
            {"spec": {"containers": [1]}},
            "json: cannot unmarshal number into Go struct field PodSpec.spec.containers of type v1.Container",
        ),
        (
            "Pod",
            {"spec": []},
            "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec",
        ),
        (
            "Pod",
            {"spec": {"hostNetwork": "yes"}},
            "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            "Pod",
            {"spec": {"priority": 1.5}},
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            "Pod",
            {"spec": {"priority": 2**31}},
            f"{CANNOT} number 2147483648 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            "Pod",
            {"metadata": {"labels": ["a"]}},
            "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type "
            "map[string]string",
        ),
        ("Pod", container(resources={"limits": {"cpu": "abc"}}), QUANTITY),
        ("Pod", container(resources={"limits": {"cpu": True}}), QUANTITY),
        (
            "Service",
            {"spec": {"ports": [{"targetPort": True}]}},
            "json: cannot unmarshal bool into Go value of type int32",
        ),
        (
            "Service",
            {"spec": {"ports": [{"targetPort": 2**31}]}},
            "json: cannot unmarshal number 2147483648 into Go value of type int32",
        ),
        ("Secret", {"data": {"a": "admin"}}, "illegal base64 data at input byte 4"),
        ("Secret", {"data": {"a": "aGk=x"}}, "illegal base64 data at input byte 4"),
        ("Secret", {"data": {"a": "aG="}}, "illegal base64 data at input byte 3"),
        ("Secret", {"data": {"a": "aG\nk=\n="}}, "illegal base64 data at input byte 6"),
        ("Secret", {"data": {"a": "a!k="}}, "illegal base64 data at input byte 1"),
        (
            "Secret",
            {"data": {"a": 1}},
            "json: cannot unmarshal number into Go struct field Secret.data of type []uint8",
        ),
        ("Pod", [], "json: cannot unmarshal array into Go value of type v1.Pod"),
        (
            "Pod",
            {"metadata": {"creationTimestamp": "yesterday"}},
            'parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006"',
        ),
        (
            "Pod",
            {"metadata": {"creationTimestamp": "2026-02-30T00:00:00Z"}},
            'parsing time "2026-02-30T00:00:00Z": day out of range',
        ),
        (
            "Pod",
            {"metadata": {"creationTimestamp": 5}},
            "json: cannot unmarshal number into Go value of type string",
        ),
    ],
)
def test_wrong_types_are_refused_as_go_does(kind: str, data: Any, message: str) -> None:
    assert refused(kind, data) == message


MICRO = '" as "2006-01-02T15:04:05.000000Z07:00": cannot parse '


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("2026-01-01T00:00:00Z", MICRO + '"Z" as ".000000"'),
        ("2026-01-01T00:00:00.123Z", MICRO + '".123Z" as ".000000"'),
        ("2026-01-01T00:00:00.123456789Z", MICRO + '"789Z" as "Z07:00"'),
        ("yesterday", MICRO + '"yesterday" as "2006"'),
    ],
)
def test_micro_time_needs_six_digits(time: str, message: str) -> None:
    shown = refused("Lease", {"spec": {"renewTime": time}}, "io.k8s.api.coordination.v1.")
    assert shown == f'parsing time "{time}{message}'


def test_scalars_are_kept_in_canonical_form() -> None:
    lease = {"spec": {"renewTime": "2026-01-01T01:00:00.000001+01:00"}}
    assert decode("Lease", lease, "io.k8s.api.coordination.v1.") == {
        "spec": {"renewTime": "2026-01-01T00:00:00.000001Z"}
    }
    pod = container(resources={"limits": {"cpu": "0.5", "memory": 1024}})
    assert decode("Pod", pod) == container(resources={"limits": {"cpu": "500m", "memory": "1024"}})
    meta = {"metadata": {"creationTimestamp": "0999-01-01T00:00:00.7+00:00"}}
    assert decode("Pod", meta) == {"metadata": {"creationTimestamp": "0999-01-01T00:00:00Z"}}
    service = {"spec": {"ports": [{"port": 1, "targetPort": "http"}, {"port": 2, "targetPort": 8}]}}
    assert decode("Service", service) == service
    assert decode("Secret", {"data": {"a": "aG\nk="}}) == {"data": {"a": "aGk="}}


def test_free_form_parts_are_kept_as_they_are() -> None:
    free = {"type": "object", "default": {"x": None, "y": []}, "items": {"type": "string"}}
    data = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": free}}]}}
    decoded = schema.decode(CRD, data, kind="CustomResourceDefinition", version="v1")
    assert decoded.object == data
    assert decoded.unknown == []


def test_decoding_changes_nothing_it_is_given() -> None:
    data = {"metadata": {"labels": None, "x": 1}, "data": {"a": None}}
    decode("ConfigMap", data)
    assert data == {"metadata": {"labels": None, "x": 1}, "data": {"a": None}}


def test_definitions_by_name_and_by_kind() -> None:
    assert schema.definition_of("apps", "v1", "Deployment") == "io.k8s.api.apps.v1.Deployment"
    assert schema.definition_of("", "v1", "Nope") == ""
    assert "spec" in schema.definition(CORE + "Pod")["properties"]
    with pytest.raises(KeyError):
        schema.definition("nope")


def test_duplicate_fields_are_named_with_their_path() -> None:
    body = b'{"kind": "W", "spec": {"mode": "a", "l": [{"x": 1, "x": 2}], "mode": "slow"}, "kind": "W"}'
    data, duplicates = schema.parse_json(body, "W")
    assert data["spec"] == {"mode": "slow", "l": [{"x": 2}]}
    assert duplicates == [
        'duplicate field "kind"',
        'duplicate field "spec.mode"',
        'duplicate field "spec.l[0].x"',
    ]


def test_a_key_counts_as_duplicate_once() -> None:
    assert schema.parse_json(b'{"a": 1, "a": 2, "a": 3}') == ({"a": 3}, ['duplicate field "a"'])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{bad json", "invalid character 'b' looking for beginning of object key string ({bad json)"),
        (b"", "unexpected end of JSON input (<empty>)"),
        (b"[1", "unexpected end of JSON input (5b31)"),
        (b'{"a": NaN}', "invalid character 'N' looking for beginning of value ({\"a\": NaN})"),
        (b"{} x", "invalid character 'x' after top-level value ({} x)"),
        (b'{"a" 1}', "invalid character '1' after object key ({\"a\" 1})"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string ({\"a\":1,})"),
        (b'{"a":"\\x"}', 'invalid character \'x\' in string escape code ({"a":"\\x"})'),
        (b'{"a":tru}', "invalid character '}' in literal true (expecting 'e') ({\"a\":tru})"),
        (b'{"a":01}', "invalid character '1' after object key:value pair ({\"a\":01})"),
        (b'{"a":-}', "invalid character '}' in numeric literal ({\"a\":-})"),
        (b'{"a":1.}', "invalid character '}' after decimal point in numeric literal ({\"a\":1.})"),
        (b'{"' + b"x" * 100, 'unexpected end of JSON input ({"' + "x" * 28 + " ...)"),
    ],
)
def test_what_is_not_json_is_400_with_gos_text(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        schema.parse_json(body, "Namespace")
    assert caught.value.code == 400
    assert caught.value.message == (
        "the object provided is unrecognized (must be of type Namespace): couldn't get version/kind; "
        f"json parse error: {message}"
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"\xff"}',
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 100_000,
        b"[" * 500 + b"x",
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":-Infinity}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_other_hostile_bodies_are_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        schema.parse_json(body)
    assert caught.value.code == 400


def test_numbers_beyond_64_bits_are_floating_point() -> None:
    body = b"[9223372036854775807, 9223372036854775808, -9223372036854775809, -0]"
    data, _ = schema.parse_json(body)
    assert data == [2**63 - 1, float(2**63), float(-(2**63) - 1), 0]
    assert [type(v) for v in data] == [int, float, float, int]
    assert schema.parse_yaml(b"a: 9223372036854775808") == {"a": float(2**63)}


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    data, duplicates = schema.parse_json(b'{"\\ud800": 1, "\\ud800": "\\ud83d\\ude00"}')
    assert data == {"\ufffd": "\U0001f600"}
    assert duplicates == ['duplicate field "\ufffd"']


def test_yaml_is_read_as_json_data() -> None:
    body = (
        b"apiVersion: v1\nwhen: 2026-01-01\n1: yes\nl: [0x10, 1.5, null, 22:22, =, '\\', \"\\ud800\"]\n---\n"
    )
    assert schema.parse_yaml(body) == {
        "apiVersion": "v1",
        "when": "2026-01-01",
        "1": True,
        "l": [16, 1.5, None, "22:22", "=", "\\", "\ufffd"],
    }


@pytest.mark.parametrize(
    "body",
    [
        b"a: 1\n---\nb: 2",
        b"a: &x [1]\nb: *x",
        b"a: .nan",
        b"a: 1\na: 2",
        b"!!python/object/apply:os.getcwd []",
        b"a: !!binary aGk=",
        b"? [1]\n: 2",
        b"a: [",
        b"a: \xff",
        b"[" * 5000,
        b"a: " + b"9" * 5000,
        b"a: !!bool maybe",
        b"a: !!int x",
        b"a: 1.0e+999",
        b"<<: {a: 1}",
    ],
)
def test_yaml_that_json_cannot_say_is_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        schema.parse_yaml(body, "Pod")
    assert caught.value.code == 400
    assert "unrecognized (must be of type Pod): couldn't get version/kind; yaml: " in caught.value.message
