"""Who the control plane is and what it may do; nothing may be asked of the API server that is not here."""

from typing import Any

from manifests.names import (
    ADMIN_PORT,
    CA_BUNDLE,
    CA_SECRET,
    CONTROL,
    GROUP,
    INJECTOR,
    LEASE,
    OPERATOR_ROLE,
    VALIDATOR,
    labels,
)
from manifests.values import Values

Object = dict[str, Any]
_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]


def _rule(group: str, resources: list[str], verbs: list[str], names: list[str] | None = None) -> Object:
    rule: Object = {"apiGroups": [group], "resources": resources}
    if names:
        rule["resourceNames"] = names
    return {**rule, "verbs": verbs}


def service_account(values: Values) -> Object:
    metadata = {"name": CONTROL, "namespace": values.namespace, "labels": labels("control")}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def control_cluster_role() -> Object:
    """What is watched in the whole cluster, and the little that is written outside our namespace."""
    kinds = ["trafficpolicies", "accesspolicies", "meshpolicies"]
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": CONTROL, "labels": labels("control")},
        "rules": [
            _rule("", ["namespaces", "nodes", "pods", "serviceaccounts", "services"], _READ),
            _rule("discovery.k8s.io", ["endpointslices"], _READ),
            _rule(GROUP, kinds, _READ),
            _rule(GROUP, [f"{kind}/status" for kind in kinds], ["patch", "update"]),
            _rule("authentication.k8s.io", ["tokenreviews"], ["create"]),
            _rule("", ["events"], ["create", "patch"]),
            # A create cannot be limited to a name; what follows it can.
            _rule("", ["configmaps"], ["create"]),
            _rule("", ["configmaps"], [*_READ, "patch", "update"], [CA_BUNDLE]),
            _rule(
                "admissionregistration.k8s.io",
                ["mutatingwebhookconfigurations"],
                [*_READ, "patch"],
                [INJECTOR],
            ),
            _rule(
                "admissionregistration.k8s.io",
                ["validatingwebhookconfigurations"],
                [*_READ, "patch"],
                [VALIDATOR],
            ),
        ],
    }


def control_role(values: Values) -> Object:
    """What is kept in our own namespace: the CA's key, and which replica writes."""
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "Role",
        "metadata": {"name": CONTROL, "namespace": values.namespace, "labels": labels("control")},
        "rules": [
            _rule("", ["secrets"], ["create"]),
            _rule("", ["secrets"], [*_READ, "patch", "update"], [CA_SECRET]),
            _rule("coordination.k8s.io", ["leases"], ["create"]),
            _rule("coordination.k8s.io", ["leases"], [*_READ, "patch", "update"], [LEASE]),
        ],
    }


def operator_role() -> Object:
    """Read the control plane's admin pages through the API server; bind it in our namespace."""
    names = [f"{CONTROL}:admin", f"{CONTROL}:{ADMIN_PORT}"]
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": OPERATOR_ROLE, "labels": labels("operator")},
        "rules": [_rule("", ["services/proxy"], ["get"], names)],
    }


def _binding(kind: str, role: str, metadata: Object, values: Values) -> Object:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": kind,
        "metadata": metadata,
        "roleRef": {"apiGroup": _RBAC, "kind": role, "name": CONTROL},
        "subjects": [{"kind": "ServiceAccount", "name": CONTROL, "namespace": values.namespace}],
    }


def rbac(values: Values) -> list[Object]:
    """All of it, roles before the bindings that name them."""
    in_namespace = {"name": CONTROL, "namespace": values.namespace, "labels": labels("control")}
    everywhere = {"name": CONTROL, "labels": labels("control")}
    return [
        service_account(values),
        control_cluster_role(),
        operator_role(),
        _binding("ClusterRoleBinding", "ClusterRole", everywhere, values),
        control_role(values),
        _binding("RoleBinding", "Role", in_namespace, values),
    ]
