"""AccessPolicy: who may call what."""

from collections.abc import Mapping
from typing import Any

from manifests.crds.schema import (
    Schema,
    array,
    boolean,
    column,
    crd,
    enum,
    exactly_one,
    label_name,
    labels,
    method,
    obj,
    path_match,
    port,
    string,
)

_IDENTITY = r"^(\*|spiffe://[^/*]+/[^*]*\*?)$"
_CIDR = r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"


def access_policy(object_labels: Mapping[str, str]) -> dict[str, Any]:
    """The CustomResourceDefinition."""
    return crd(
        "AccessPolicy",
        "accesspolicies",
        "ap",
        "Who may call the pods of a Service, of some labels, or of the whole namespace.",
        _spec(),
        [
            column("Action", ".spec.action"),
            column("Service", ".spec.target.service"),
            column("Dry-run", ".spec.dryRun", "boolean"),
        ],
        object_labels,
    )


def _spec() -> Schema:
    target = exactly_one(
        obj({"service": label_name("A Service of this namespace."), "labels": labels("Labels of pods.")}),
        "service",
        "labels",
    )
    rule = obj(
        {
            "from": array(_source(), 64, least=1, description="One must match. Without: every caller."),
            "to": array(_operation(), 64, least=1, description="One must match. Without: everything."),
        }
    )
    return obj(
        {
            "target": {**target, "description": "Without: every pod of the namespace."},
            "action": enum(
                "ALLOW",
                "DENY",
                default="ALLOW",
                description="A DENY that matches refuses. Where an ALLOW exists, one must match.",
            ),
            "rules": array(rule, 256, description="One must match. ALLOW without a rule allows nobody."),
            "dryRun": boolean(False, "Only count and log what it would refuse."),
        }
    )


def _source() -> Schema:
    identity = string(
        2048,
        pattern=_IDENTITY,
        description="A SPIFFE id, its beginning and *, or * for any caller of the mesh.",
    )
    return obj(
        {
            "identities": array(identity, 64, least=1),
            "namespaces": array(label_name(), 64, least=1),
            "cidrs": array(string(49, pattern=_CIDR), 64, least=1),
        },
        description="All fields must match; in a field one value.",
    )


def _operation() -> Schema:
    return obj(
        {
            "ports": array(port(), 64, least=1, description="Ports of the pod, not of the Service."),
            "methods": array(method(), 16, least=1),
            "paths": array(path_match(), 64, least=1),
        },
        description="All fields must match; in a field one value.",
    )
