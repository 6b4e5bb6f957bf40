"""rbac.authorization.k8s.io/v1: Role, ClusterRole, RoleBinding, ClusterRoleBinding."""

from datetime import datetime
from typing import Any

from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Column, Kind
from mesh_local.kinds.columns import AGE, NAME
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, invalid_value, not_supported, required
from mesh_local.machinery.objects import Object, dig, name_of

GROUP = "rbac.authorization.k8s.io"
ROLE_KINDS = ("Role", "ClusterRole")
SUBJECT_KINDS = ("ServiceAccount", "User", "Group")


def _validate_rule(rule: Object, namespaced: bool, path: str) -> list[FieldError]:
    found = []
    if not rule.get("verbs"):
        found.append(required(f"{path}.verbs", "verbs must contain at least one value"))
    urls = rule.get("nonResourceURLs")
    if urls:
        field = f"{path}.nonResourceURLs"
        if namespaced:
            found.append(invalid_value(field, urls, "namespaced rules cannot apply to non-resource URLs"))
        if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
            detail = "rules cannot apply to both regular resources and non-resource URLs"
            found.append(invalid_value(field, urls, detail))
        return found
    if not rule.get("apiGroups"):
        found.append(required(f"{path}.apiGroups", "resource rules must supply at least one api group"))
    if not rule.get("resources"):
        found.append(required(f"{path}.resources", "resource rules must supply at least one resource"))
    return found


def _validate_rules(obj: Object, namespaced: bool) -> list[FieldError]:
    rules: list[Object] = obj.get("rules") or []
    return [e for i, rule in enumerate(rules) for e in _validate_rule(rule, namespaced, f"rules[{i}]")]


def _validate_role(obj: Object) -> list[FieldError]:
    return _validate_rules(obj, namespaced=True)


def _validate_cluster_role(obj: Object) -> list[FieldError]:
    found = _validate_rules(obj, namespaced=False)
    aggregation = obj.get("aggregationRule")
    if aggregation is not None and not aggregation.get("clusterRoleSelectors"):
        detail = "at least one clusterRoleSelector required if aggregationRule is non-nil"
        found.append(required("aggregationRule.clusterRoleSelectors", detail))
    return found


def _default_role(obj: Object) -> None:
    """`rules` is shown even where there are none."""
    obj.setdefault("rules", None)


def _default_binding(obj: Object) -> None:
    """apiGroup is the RBAC group for users, groups and roles, and '' for service accounts."""
    ref = obj.get("roleRef")
    if isinstance(ref, dict) and not ref.get("apiGroup"):
        ref["apiGroup"] = GROUP
    for subject in obj.get("subjects") or []:
        if subject.get("kind") in ("User", "Group") and not subject.get("apiGroup"):
            subject["apiGroup"] = GROUP
        elif subject.get("apiGroup") == "":
            del subject["apiGroup"]


def _validate_subject(subject: Object, namespaced: bool, path: str) -> list[FieldError]:
    found = []
    name, kind, group = subject.get("name") or "", subject.get("kind") or "", subject.get("apiGroup") or ""
    if not name:
        found.append(required(f"{path}.name"))
    if kind == "ServiceAccount":
        if name:
            found += [invalid_value(f"{path}.name", name, text) for text in names.dns_subdomain(name)]
        if group:
            found.append(not_supported(f"{path}.apiGroup", group, [""]))
        if not namespaced and not subject.get("namespace"):
            found.append(required(f"{path}.namespace"))
    elif kind in SUBJECT_KINDS:
        if group != GROUP:
            found.append(not_supported(f"{path}.apiGroup", group, [GROUP]))
    else:
        found.append(not_supported(f"{path}.kind", kind, SUBJECT_KINDS))
    return found


def _validate_binding(obj: Object, namespaced: bool) -> list[FieldError]:
    found = []
    ref = obj.get("roleRef") or {}
    if ref.get("apiGroup") != GROUP:
        found.append(not_supported("roleRef.apiGroup", ref.get("apiGroup") or "", [GROUP]))
    allowed = ROLE_KINDS if namespaced else ("ClusterRole",)
    name = ref.get("name") or ""
    if ref.get("kind") not in allowed:
        found.append(not_supported("roleRef.kind", ref.get("kind") or "", allowed))
    elif not name:
        found.append(required("roleRef.name"))
    else:
        found += [invalid_value("roleRef.name", name, text) for text in names.path_segment_name(name)]
    for i, subject in enumerate(obj.get("subjects") or []):
        found += _validate_subject(subject, namespaced, f"subjects[{i}]")
    return found


def _validate_role_binding(obj: Object) -> list[FieldError]:
    return _validate_binding(obj, namespaced=True)


def _validate_cluster_role_binding(obj: Object) -> list[FieldError]:
    return _validate_binding(obj, namespaced=False)


def _role_ref_change(new: Object, old: Object) -> list[FieldError]:
    ref = new.get("roleRef") or {}
    if ref == old.get("roleRef"):
        return []
    shown = {
        go: ref.get(key) or "" for go, key in (("APIGroup", "apiGroup"), ("Kind", "kind"), ("Name", "name"))
    }
    return [invalid_value("roleRef", shown, "cannot change roleRef")]


def _update_role_binding(new: Object, old: Object) -> list[FieldError]:
    return _validate_role_binding(new) + _role_ref_change(new, old)


def _update_cluster_role_binding(new: Object, old: Object) -> list[FieldError]:
    return _validate_cluster_role_binding(new) + _role_ref_change(new, old)


def _subjects(obj: Object, kind: str) -> str:
    """What `-o wide` shows of the subjects of one kind; service accounts as `namespace/name`."""
    found = [s for s in obj.get("subjects") or [] if s.get("kind") == kind]
    if kind == "ServiceAccount":
        return ", ".join(f"{s.get('namespace') or ''}/{s.get('name') or ''}" for s in found)
    return ", ".join(str(s.get("name") or "") for s in found)


def _binding_row(obj: Object, now: datetime) -> list[Any]:
    role = f"{dig(obj, 'roleRef', 'kind', default='')}/{dig(obj, 'roleRef', 'name', default='')}"
    return [
        name_of(obj),
        role,
        age_of(obj, now),
        *(_subjects(obj, k) for k in ("User", "Group", "ServiceAccount")),
    ]


def _binding_columns(of: str) -> tuple[Column, ...]:
    role = Column(
        "Role",
        description=(
            "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. "
            "If the RoleRef cannot be resolved, the Authorizer must return an error. This field is immutable."
            if of == "roleBinding"
            else "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be "
            "resolved, the Authorizer must return an error. This field is immutable."
        ),
    )
    wide = ("Users", "Groups", "ServiceAccounts")
    return (NAME, role, AGE, *(Column(w, description=f"{w} in the {of}", priority=1) for w in wide))


ROLE = Kind(
    kind="Role",
    plural="roles",
    singular="role",
    group=GROUP,
    definition="io.k8s.api.rbac.v1.Role",
    name_rule=names.path_segment_name,
    spec_fields=(),
    default=_default_role,
    validate=_validate_role,
    validate_update=lambda new, _old: _validate_role(new),
)
CLUSTER_ROLE = Kind(
    kind="ClusterRole",
    plural="clusterroles",
    singular="clusterrole",
    group=GROUP,
    namespaced=False,
    definition="io.k8s.api.rbac.v1.ClusterRole",
    name_rule=names.path_segment_name,
    spec_fields=(),
    default=_default_role,
    validate=_validate_cluster_role,
    validate_update=lambda new, _old: _validate_cluster_role(new),
)
ROLE_BINDING = Kind(
    kind="RoleBinding",
    plural="rolebindings",
    singular="rolebinding",
    group=GROUP,
    definition="io.k8s.api.rbac.v1.RoleBinding",
    name_rule=names.path_segment_name,
    spec_fields=(),
    default=_default_binding,
    validate=_validate_role_binding,
    validate_update=_update_role_binding,
    columns=_binding_columns("roleBinding"),
    row=_binding_row,
)
CLUSTER_ROLE_BINDING = Kind(
    kind="ClusterRoleBinding",
    plural="clusterrolebindings",
    singular="clusterrolebinding",
    group=GROUP,
    namespaced=False,
    definition="io.k8s.api.rbac.v1.ClusterRoleBinding",
    name_rule=names.path_segment_name,
    spec_fields=(),
    default=_default_binding,
    validate=_validate_cluster_role_binding,
    validate_update=_update_cluster_role_binding,
    columns=_binding_columns("clusterRoleBinding"),
    row=_binding_row,
)
KINDS = (CLUSTER_ROLE_BINDING, CLUSTER_ROLE, ROLE_BINDING, ROLE)
