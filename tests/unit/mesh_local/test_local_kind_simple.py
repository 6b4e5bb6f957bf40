"""Namespaces, nodes, ConfigMaps, Secrets, Leases, ServiceCIDRs: what the API fills in, refuses and prints."""

import base64
from datetime import UTC, datetime

import pytest

from mesh_local.kinds.config import CONFIG_MAP, SECRET
from mesh_local.kinds.lease import LEASE
from mesh_local.kinds.namespace import NAMESPACE
from mesh_local.kinds.node import NODE
from mesh_local.kinds.service_cidr import SERVICE_CIDR
from mesh_local.machinery.objects import Object

NOW = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
CREATED = "2026-01-01T00:00:00Z"


def test_a_namespace_starts_active_with_its_finalizer_and_label() -> None:
    obj: Object = {"metadata": {"name": "t3"}, "status": {"phase": "Terminating"}}
    NAMESPACE.default(obj)
    NAMESPACE.prepare_create(obj)
    assert obj == {
        "metadata": {"name": "t3", "labels": {"kubernetes.io/metadata.name": "t3"}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def test_an_update_of_a_namespace_changes_neither_finalizers_nor_status() -> None:
    old: Object = {"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    new: Object = {"metadata": {}, "spec": {}, "status": {"phase": "Gone"}}
    NAMESPACE.prepare_update(new, old)
    assert (new["spec"], new["status"]) == (old["spec"], old["status"])


def test_the_row_of_a_node() -> None:
    node: Object = {
        "metadata": {
            "name": "n",
            "creationTimestamp": CREATED,
            "labels": {"node-role.kubernetes.io/control-plane": ""},
        },
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0"},
        },
    }
    assert NODE.row(node, NOW) == [
        "n",
        "Ready,SchedulingDisabled",
        "control-plane",
        "5s",
        "v1.36.0",
        "10.0.0.1",
        "<none>",
        "<unknown>",
        "<unknown>",
        "<unknown>",
    ]
    assert NODE.fields["spec.unschedulable"](node) == "true"
    assert NODE.fields["spec.unschedulable"]({}) == "false"


def test_config_map_keys_and_size() -> None:
    errors = CONFIG_MAP.validate({"data": {"a b": "1", "k": "2"}, "binaryData": {"k": ""}})
    assert [e.field for e in errors] == ["data[a b]", "data[k]"]
    assert errors[1].detail == "duplicate of key present in binaryData"
    [error] = CONFIG_MAP.validate({"data": {"a": "x" * (1024 * 1024 + 1)}})
    assert error.body() == "Too long: may not be more than 1048576 bytes"


def test_an_immutable_config_map_stays_as_it_is() -> None:
    old: Object = {"data": {"a": "1"}, "immutable": True}
    assert CONFIG_MAP.validate_update({"data": {"a": "1"}, "immutable": True}, old) == []
    errors = CONFIG_MAP.validate_update({"data": {"a": "2"}}, old)
    assert [str(e) for e in errors] == [
        "immutable: Forbidden: field is immutable when `immutable` is set",
        "data: Forbidden: field is immutable when `immutable` is set",
    ]


def test_string_data_of_a_secret_is_stored_encoded() -> None:
    secret: Object = {"metadata": {}, "data": {"k": "dg=="}, "stringData": {"l": "w"}}
    SECRET.default(secret)
    assert secret == {
        "metadata": {},
        "data": {"k": "dg==", "l": base64.b64encode(b"w").decode()},
        "type": "Opaque",
    }
    secret["metadata"] = {"name": "s", "creationTimestamp": CREATED}
    assert SECRET.row(secret, NOW) == ["s", "Opaque", 2, "5s"]


@pytest.mark.parametrize(
    ("type_", "missing"),
    [
        ("kubernetes.io/tls", ["data[tls.crt]", "data[tls.key]"]),
        ("kubernetes.io/basic-auth", ["data[username]", "data[password]"]),
        ("kubernetes.io/service-account-token", ["metadata.annotations[kubernetes.io/service-account.name]"]),
    ],
)
def test_a_secret_type_asks_for_its_keys(type_: str, missing: list[str]) -> None:
    errors = SECRET.validate({"type": type_})
    assert [(e.type, e.field) for e in errors] == [("FieldValueRequired", f) for f in missing]


def test_the_type_of_a_secret_is_immutable() -> None:
    [error] = SECRET.validate_update({"type": "a"}, {"type": "Opaque"})
    assert str(error) == 'type: Invalid value: "a": field is immutable'


def test_lease_numbers() -> None:
    errors = LEASE.validate({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}})
    assert [str(e) for e in errors] == [
        "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
    ]
    assert LEASE.validate({"spec": {"holderIdentity": "", "leaseDurationSeconds": 15}}) == []
    assert not LEASE.unconditional_update
    assert LEASE.row({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}, NOW)[:2] == ["l", "a"]


@pytest.mark.parametrize(
    ("cidrs", "expected"),
    [
        ([], "spec.cidrs: Required value: at least one CIDR required"),
        (["10.0.0.0/8", "11.0.0.0/8"], "may specify no more than one IP for each IP family"),
        (["10.0.0.0/8", "fd00::/112", "10.0.0.0/8"], "may only hold up to 2 values"),
        (["10.0.0.1"], 'spec.cidrs[0]: Invalid value: "10.0.0.1": must be a valid CIDR value'),
    ],
)
def test_a_service_cidr_names_one_range_of_a_family(cidrs: list[str], expected: str) -> None:
    [error] = SERVICE_CIDR.validate({"spec": {"cidrs": cidrs}})
    assert expected in str(error)


def test_the_range_of_a_service_cidr_stays() -> None:
    old: Object = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd10::/112"]}}
    assert SERVICE_CIDR.validate(old) == []
    assert SERVICE_CIDR.validate_update(old, old) == []
    [error] = SERVICE_CIDR.validate_update({"spec": {"cidrs": ["10.96.0.0/16"]}}, old)
    assert str(error).endswith("field is immutable")
    assert SERVICE_CIDR.row(old, NOW)[:2] == ["kubernetes", "10.96.0.0/16,fd10::/112"]
