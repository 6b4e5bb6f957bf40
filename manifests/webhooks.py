"""What the API server asks us about: pods that are to have a sidecar, and policies.

`caBundle` is left out: the control plane writes it, and repairs it.
"""

from typing import Any

from manifests.names import (
    GROUP,
    INJECT_LABEL,
    INJECTION_LABEL,
    INJECTOR,
    UNINJECTED_NAMESPACES,
    VALIDATOR,
    labels,
)
from manifests.values import Values

Object = dict[str, Any]


def _client(values: Values, path: str) -> Object:
    return {"service": {"name": INJECTOR, "namespace": values.namespace, "path": path, "port": 443}}


def _requirement(key: str, operator: str, *names: str) -> Object:
    return {"key": key, "operator": operator, "values": list(names)}


def injector(values: Values) -> Object:
    """Two entries, so that each pod is asked about at most once, and most pods never."""
    elsewhere = _requirement("kubernetes.io/metadata.name", "NotIn", *UNINJECTED_NAMESPACES, values.namespace)
    by_namespace = (
        [elsewhere, _requirement(INJECTION_LABEL, "In", "enabled")],
        [_requirement(INJECT_LABEL, "NotIn", "false")],
    )
    by_pod = (
        [elsewhere, _requirement(INJECTION_LABEL, "NotIn", "enabled")],
        [_requirement(INJECT_LABEL, "In", "true")],
    )
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": INJECTOR, "labels": labels("injector")},
        "webhooks": [
            _injector_entry(values, "namespace", *by_namespace),
            _injector_entry(values, "pod", *by_pod),
        ],
    }


def _injector_entry(values: Values, name: str, namespaces: list[Object], pods: list[Object]) -> Object:
    return {
        "name": f"{name}.injector.{GROUP}",
        "clientConfig": _client(values, "/inject"),
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }
        ],
        "namespaceSelector": {"matchExpressions": namespaces},
        "objectSelector": {"matchExpressions": pods},
        "failurePolicy": values.webhook.failure_policy,
        "matchPolicy": "Equivalent",
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "NoneOnDryRun",
        "timeoutSeconds": 5,
        "admissionReviewVersions": ["v1"],
    }


def validator(values: Values) -> Object:
    """Starts as Ignore; the control plane makes it Fail once it has seen it refuse a bad policy."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": VALIDATOR, "labels": labels("validator")},
        "webhooks": [
            {
                "name": f"policy.validator.{GROUP}",
                "clientConfig": _client(values, "/validate"),
                "rules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": ["v1alpha1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["trafficpolicies", "accesspolicies", "meshpolicies"],
                        "scope": "Namespaced",
                    }
                ],
                "failurePolicy": "Ignore",
                "matchPolicy": "Equivalent",
                "sideEffects": "None",
                "timeoutSeconds": 5,
                "admissionReviewVersions": ["v1"],
            }
        ],
    }
