"""RBAC: which rules a caller has, and whether they allow a request (rbac.authorization.k8s.io/v1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from mesh_local.apiserver.types import Attributes, Decision, Reader, User
from mesh_local.machinery.errors import failure
from mesh_local.machinery.objects import Object, meta, name_of, namespace_of
from mesh_local.machinery.selectors import LabelSelector

GROUP = "rbac.authorization.k8s.io"
MASTERS = "system:masters"
ROLES, CLUSTER_ROLES = f"roles.{GROUP}", f"clusterroles.{GROUP}"
ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS = f"rolebindings.{GROUP}", f"clusterrolebindings.{GROUP}"
RESOURCES = (ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS)


def quote(text: str) -> str:
    """Go's %q, for the texts that occur here."""
    return msgspec.json.encode(text).decode()


def rule_allows(rule: Object, wanted: Attributes) -> bool:
    """Whether one PolicyRule allows a request."""
    if not _has(rule.get("verbs"), wanted.verb):
        return False
    if wanted.path:
        return any(_url_matches(url, wanted.path) for url in rule.get("nonResourceURLs") or ())
    if not _has(rule.get("apiGroups"), wanted.group):
        return False
    names = rule.get("resourceNames")
    if names and wanted.name not in names:
        return False
    return any(resource_matches(r, wanted.resource, wanted.subresource) for r in rule.get("resources") or ())


def resource_matches(rule_resource: str, resource: str, subresource: str) -> bool:
    """`*`, `pods`, `pods/log` and `*/log`, as rules name resources."""
    combined = f"{resource}/{subresource}" if subresource else resource
    return rule_resource in ("*", combined) or (bool(subresource) and rule_resource == f"*/{subresource}")


def _has(values: Sequence[str] | None, wanted: str) -> bool:
    return values is not None and ("*" in values or wanted in values)


def _url_matches(pattern: str, path: str) -> bool:
    if pattern in ("*", path):
        return True
    return pattern.endswith("*") and path.startswith(pattern.rstrip("*"))


@dataclass(frozen=True, slots=True)
class _Grant:
    """One binding: whom it names and what it gives them.

    Args:
        subjects: user names, `group:` + group names, each with the subject as reasons describe it.
        rules: None where the role does not exist.
    """

    subjects: dict[str, str]
    rules: Sequence[Object] | None
    role_kind: str
    role_name: str
    shown: str

    def subject(self, user: User) -> str | None:
        """The first subject that names the user, described."""
        for key, described in self.subjects.items():
            if key == f"user:{user.name}" or (key.startswith("group:") and key[6:] in user.groups):
                return described
        return None


@dataclass(slots=True)
class _Index:
    """All grants: those of the whole cluster, and those of each namespace."""

    cluster: list[_Grant] = field(default_factory=list)
    namespaces: dict[str, list[_Grant]] = field(default_factory=dict)


class RbacAuthorizer:
    """The `Authorizer` of the cluster. `system:masters` may do everything.

    Args:
        version: the store's version; RBAC objects are looked at again only after it changed.
    """

    def __init__(self, reader: Reader, version: Callable[[], int]) -> None:
        self._reader = reader
        self._version = version
        self._seen = -1
        self._state: object = None
        self._index = _Index()

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        """See `Authorizer`; the reason names the binding that allows, or the roles that are missing."""
        if MASTERS in user.groups:
            return Decision(True)
        missing = []
        for grant, described in self._grants(user, attributes.namespace):
            if grant.rules is None:
                missing.append(f"{grant.role_kind.lower()}.{GROUP} {quote(grant.role_name)} not found")
            elif any(rule_allows(rule, attributes) for rule in grant.rules):
                return Decision(True, f"RBAC: allowed by {grant.shown} to {described}")
        if not missing:
            return Decision(False)
        unique = list(dict.fromkeys(missing))
        text = unique[0] if len(unique) == 1 else f"[{', '.join(unique)}]"
        return Decision(False, f"RBAC: {text}")

    def rules_for(self, user: User, namespace: str) -> list[Object]:
        """Every rule that holds for the user in a namespace, those of the cluster first."""
        return [rule for grant, _ in self._grants(user, namespace) for rule in grant.rules or ()]

    def role_rules(self, ref: Object, namespace: str) -> Sequence[Object]:
        """The rules of the role that a roleRef names. Raises ApiError 404."""
        kind, name = str(ref.get("kind")), str(ref.get("name"))
        rules = _role_rules(self._reader, kind, name, namespace)
        if rules is None:
            plural = "roles" if kind == "Role" else "clusterroles"
            details: Object = {"name": name, "group": GROUP, "kind": plural}
            raise failure(404, "NotFound", f"{plural}.{GROUP} {quote(name)} not found", details)
        return rules

    def _grants(self, user: User, namespace: str) -> Iterator[tuple[_Grant, str]]:
        index = self._current()
        in_namespace = index.namespaces.get(namespace, []) if namespace else []
        for grant in (*index.cluster, *in_namespace):
            described = grant.subject(user)
            if described is not None:
                yield grant, described

    def _current(self) -> _Index:
        """The index, made anew where an RBAC object changed since it was made."""
        version = self._version()
        if version != self._seen:
            objects = [self._reader.list(resource) for resource in RESOURCES]
            state = [[meta(o).get("resourceVersion") for o in found] for found in objects]
            if state != self._state:
                self._index = _build(self._reader)
                self._state = state
            self._seen = version
        return self._index


def _build(reader: Reader) -> _Index:
    index = _Index()
    for binding in reader.list(CLUSTER_ROLE_BINDINGS):
        index.cluster.append(_grant(reader, binding, "ClusterRoleBinding"))
    for binding in reader.list(ROLE_BINDINGS):
        grants = index.namespaces.setdefault(namespace_of(binding), [])
        grants.append(_grant(reader, binding, "RoleBinding"))
    return index


def _grant(reader: Reader, binding: Object, kind: str) -> _Grant:
    namespace, ref = namespace_of(binding), binding["roleRef"]
    role_kind, role_name = ref["kind"], ref["name"]
    name = f"{name_of(binding)}/{namespace}" if namespace else name_of(binding)
    subjects: dict[str, str] = {}
    for subject in binding.get("subjects") or ():
        match subject.get("kind"):
            case "User":
                key, shown = f"user:{subject['name']}", subject["name"]
            case "Group":
                key, shown = f"group:{subject['name']}", subject["name"]
            case "ServiceAccount":
                of = subject.get("namespace") or namespace
                key, shown = f"user:system:serviceaccount:{of}:{subject['name']}", f"{subject['name']}/{of}"
            case _:
                continue
        subjects.setdefault(key, f"{subject['kind']} {quote(shown)}")
    return _Grant(
        subjects,
        _role_rules(reader, role_kind, role_name, namespace),
        role_kind,
        role_name,
        f"{kind} {quote(name)} of {role_kind} {quote(role_name)}",
    )


def _role_rules(reader: Reader, kind: str, name: str, namespace: str) -> Sequence[Object] | None:
    """The rules of a role; those of an aggregated ClusterRole come from the roles that it selects."""
    if kind == "Role":
        role = reader.get(ROLES, name, namespace)
        return None if role is None else role.get("rules") or ()
    role = reader.get(CLUSTER_ROLES, name)
    if role is None:
        return None
    aggregation = role.get("aggregationRule")
    if aggregation is None:
        return role.get("rules") or ()
    selectors = [LabelSelector.from_object(s) for s in aggregation.get("clusterRoleSelectors") or ()]
    rules: list[Object] = []
    for other in reader.list(CLUSTER_ROLES):
        labels = meta(other).get("labels") or {}
        if name_of(other) != name and any(s.matches(labels) for s in selectors):
            rules += [r for r in other.get("rules") or () if r not in rules]
    return rules
