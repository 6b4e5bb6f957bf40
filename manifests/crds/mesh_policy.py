"""MeshPolicy: what holds for a namespace, or in the control plane's namespace for the mesh."""

from collections.abc import Mapping
from typing import Any

from manifests.crds.schema import (
    Schema,
    array,
    column,
    crd,
    enum,
    label_name,
    mapping,
    obj,
    percent,
    string,
    subdomain,
)
from manifests.crds.settings import retries_with_budget, timeouts


def mesh_policy(object_labels: Mapping[str, str]) -> dict[str, Any]:
    """The CustomResourceDefinition."""
    return crd(
        "MeshPolicy",
        "meshpolicies",
        "mp",
        "Settings of a namespace; of the whole mesh in the control plane's namespace.",
        _spec(),
        [
            column("mTLS", ".spec.defaults.mtls.mode"),
            column("mTLS-override", ".spec.overrides.mtls.mode"),
            column("Egress", ".spec.defaults.egress.mode"),
        ],
        object_labels,
    )


def _spec() -> Schema:
    reference = obj({"group": string(253, least=0), "kind": string(63), "name": subdomain()}, "kind", "name")
    return obj(
        {
            "targetRefs": array(reference, 16, least=1, description="Without: the whole namespace."),
            "defaults": {**_settings(), "description": "A more specific policy wins over these."},
            "overrides": {**_settings(), "description": "These win over a more specific policy."},
        }
    )


def _settings() -> Schema:
    mode = enum("PERMISSIVE", "STRICT", "DISABLE", description="Inbound. Without: PERMISSIVE.")
    return obj(
        {
            "mtls": obj({"mode": mode, "ports": mapping(mode, 64, "By port of the pod.")}),
            "egress": obj(
                {"mode": enum("passthrough", "refuse", description="Of addresses outside the mesh.")}, "mode"
            ),
            "timeouts": timeouts(),
            "retries": retries_with_budget(),
            "pathNormalization": enum(
                *("none", "base", "merge-slashes", "decode-and-merge"),
                description="Of requests' paths. Without: base.",
            ),
            "accessLog": enum("errors", "all", description="Without: errors."),
            "tracing": obj(
                {
                    "samplingPercent": percent(),
                    "collector": obj({"service": label_name(), "namespace": label_name()}, "service"),
                }
            ),
        }
    )
