"""Who the control plane is and what it may do; nothing may be asked of the API server that is not here."""

from typing import Any

from manifests.names import (
    CA_BUNDLE,
    CA_SECRET,
    CONTROL,
    GROUP,
    INJECTOR,
    LEASE,
    VALIDATOR,
    labels,
)
from manifests.parts import parts
from manifests.values import Values
from mesh_api.admin import OPERATOR, VIEWER

Object = dict[str, Any]
_RBAC = "rbac.authorization.k8s.io"
_FOLLOW = ["list", "watch"]


def _rule(group: str, resources: list[str], verbs: list[str], names: list[str] | None = None) -> Object:
    rule: Object = {"apiGroups": [group], "resources": resources}
    if names:
        rule["resourceNames"] = names
    return {**rule, "verbs": verbs}


def service_account(values: Values, name: str, component: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": values.namespace, "labels": labels(component)},
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
            _rule("", ["nodes", "pods", "serviceaccounts", "services"], _FOLLOW),
            _rule("", ["namespaces"], ["get", *_FOLLOW]),
            _rule("discovery.k8s.io", ["endpointslices"], _FOLLOW),
            _rule("networking.k8s.io", ["servicecidrs"], _FOLLOW),
            _rule(GROUP, kinds, _FOLLOW),
            _rule(GROUP, [f"{kind}/status" for kind in kinds], ["patch"]),
            _rule("authentication.k8s.io", ["tokenreviews"], ["create"]),
            _rule("", ["events"], ["create", "patch"]),
            # A create cannot be limited to a name; what follows it can.
            _rule("", ["configmaps"], ["create"]),
            _rule("", ["configmaps"], [*_FOLLOW, "patch"], [CA_BUNDLE]),
            _rule(
                "admissionregistration.k8s.io",
                ["mutatingwebhookconfigurations"],
                [*_FOLLOW, "patch"],
                [INJECTOR],
            ),
            _rule(
                "admissionregistration.k8s.io",
                ["validatingwebhookconfigurations"],
                ["get", *_FOLLOW, "patch"],
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
            # Dry runs of a bad policy, to see that the webhook refuses it.
            _rule(GROUP, ["trafficpolicies"], ["create"]),
            _rule("", ["secrets"], ["create"]),
            _rule("", ["secrets"], ["get", *_FOLLOW], [CA_SECRET]),
            _rule("coordination.k8s.io", ["leases"], ["create"]),
            _rule("coordination.k8s.io", ["leases"], ["get", "update"], _leases(values)),
        ],
    }


def _leases(values: Values) -> list[str]:
    """As `mesh_control.settings` names them: parts with different roles elect their leaders apart."""
    if values.topology == "combined":
        return [LEASE]
    return [f"{LEASE}-{role}" for part in parts(values) for role in part.roles]


def admin_role(name: str, accounts: list[str], verbs: list[str]) -> Object:
    """Use the control plane's admin port through the API server; bind it in our namespace.

    The port believes tokens of `accounts` only (see `mesh_api.admin`): this is who may have them made.
    """
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name, "labels": labels("admin")},
        "rules": [
            _rule("", ["services/proxy"], verbs, [f"https:{CONTROL}:admin"]),
            _rule("", ["serviceaccounts/token"], ["create"], accounts),
        ],
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
        service_account(values, CONTROL, "control"),
        service_account(values, VIEWER, "admin"),
        service_account(values, OPERATOR, "admin"),
        control_cluster_role(),
        admin_role(VIEWER, [VIEWER], ["get"]),
        admin_role(OPERATOR, [VIEWER, OPERATOR], ["get", "update"]),
        _binding("ClusterRoleBinding", "ClusterRole", everywhere, values),
        control_role(values),
        _binding("RoleBinding", "Role", in_namespace, values),
    ]
