"""What discovery says of the built-in kinds, and that their hooks fit together."""

from datetime import UTC, datetime

import pytest

from mesh_local.kinds.base import ALL_VERBS, Kind, find
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.machinery import schema
from mesh_local.machinery.objects import copy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = [kind for kind in BUILTIN if kind.columns]


def kind(resource: str) -> Kind:
    found = find(BUILTIN, resource)
    assert found is not None
    return found


def test_every_resource_is_there_once() -> None:
    resources = [k.resource for k in BUILTIN]
    assert len(resources) == len(set(resources))
    assert {"pods", "services", "deployments.apps", "jobs.batch", "leases.coordination.k8s.io"} <= {
        *resources
    }
    assert {"customresourcedefinitions.apiextensions.k8s.io", "roles.rbac.authorization.k8s.io"} <= {
        *resources
    }


def test_short_names_and_categories() -> None:
    shown = {k.resource: k.short_names for k in BUILTIN if k.short_names and not k.group}
    assert shown == {
        "configmaps": ("cm",),
        "endpoints": ("ep",),
        "events": ("ev",),
        "namespaces": ("ns",),
        "nodes": ("no",),
        "pods": ("po",),
        "serviceaccounts": ("sa",),
        "services": ("svc",),
    }
    assert [k.resource for k in BUILTIN if k.categories == ("all",)] == [
        "pods",
        "services",
        "deployments.apps",
        "replicasets.apps",
        "jobs.batch",
    ]


def test_verbs_and_subresources() -> None:
    assert set(ALL_VERBS) - set(kind("namespaces").verbs) == {"deletecollection"}
    token = kind("serviceaccounts").subresource("token")
    assert token is not None
    assert (token.group, token.kind, token.verbs) == ("authentication.k8s.io", "TokenRequest", ("create",))
    scale = kind("deployments.apps").subresource("scale")
    assert scale is not None
    assert (scale.group, scale.version, scale.kind) == ("autoscaling", "v1", "Scale")
    assert [s.name for s in kind("pods").subresources] == ["binding", "eviction", "log", "status"]


def test_what_a_delete_answers() -> None:
    assert {k.resource for k in BUILTIN if k.delete_returns_object} == {
        "namespaces",
        "pods",
        "serviceaccounts",
        "services",
    }
    assert {k.resource for k in BUILTIN if k.create_on_update} == {"leases.coordination.k8s.io"}


@pytest.mark.parametrize("table", TABLES, ids=lambda k: k.resource)
def test_an_empty_object_can_be_defaulted_and_printed(table: Kind) -> None:
    obj = schema.decode(table.definition, {"metadata": {"name": "x"}}, kind=table.kind, version="v1").object
    table.default(obj)
    assert len(table.row(obj, NOW) or [""] * len(table.columns)) == len(table.columns)


@pytest.mark.parametrize("table", TABLES, ids=lambda k: k.resource)
def test_defaulting_twice_changes_nothing(table: Kind) -> None:
    once: dict[str, object] = {"metadata": {"name": "x"}}
    table.default(once)
    twice = copy(once)
    table.default(twice)
    assert twice == once
