"""Nobody may grant what they do not hold: RBAC's escalation checks on writes to roles and bindings."""

from collections.abc import Iterator, Sequence
from typing import Any

from mesh_local.apiserver.auth.rbac import GROUP, MASTERS, RbacAuthorizer, quote
from mesh_local.apiserver.auth.tokens import quoted
from mesh_local.apiserver.types import Admission, Attributes, User
from mesh_local.machinery.errors import forbidden
from mesh_local.machinery.objects import Object

ROLE_KINDS = ("Role", "ClusterRole")
BINDING_KINDS = ("RoleBinding", "ClusterRoleBinding")
EVERYTHING: Sequence[Object] = (
    {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
    {"verbs": ["*"], "nonResourceURLs": ["*"]},
)
# The parts of one permission and their Go names, in the order in which rules are shown.
_FIELDS = {
    "apiGroups": "APIGroups",
    "resources": "Resources",
    "nonResourceURLs": "NonResourceURLs",
    "resourceNames": "ResourceNames",
    "verbs": "Verbs",
}


class EscalationCheck:
    """An `AdmissionPlugin`; it changes nothing and refuses grants beyond the caller's own rights."""

    def __init__(self, authorizer: RbacAuthorizer) -> None:
        self._authorizer = authorizer

    async def mutate(self, request: Admission) -> None:
        """Change nothing."""

    async def validate(self, request: Admission) -> None:
        """Check a created or updated role or binding. Raises ApiError 403, or 404 for an absent role."""
        new = request.object
        if request.kind.group != GROUP or new is None or MASTERS in request.user.groups:
            return
        if request.old is not None and _ungoverned(new) == _ungoverned(request.old):
            return
        if request.kind.kind in ROLE_KINDS:
            if not self._may(request.user, "escalate", request.kind.plural, request.name, request.namespace):
                # What an aggregated role will hold is not known: it takes the right to do everything.
                aggregated = any((o or {}).get("aggregationRule") for o in (new, request.old))
                self._confirm(request, EVERYTHING if aggregated else new.get("rules") or ())
        elif request.kind.kind in BINDING_KINDS:
            ref = new.get("roleRef") or {}
            plural = "roles" if ref.get("kind") == "Role" else "clusterroles"
            if not self._may(request.user, "bind", plural, str(ref.get("name")), request.namespace):
                self._confirm(request, self._authorizer.role_rules(ref, request.namespace))

    def _may(self, user: User, verb: str, plural: str, name: str, namespace: str) -> bool:
        wanted = Attributes(verb, GROUP, "v1", plural, namespace=namespace, name=name)
        return self._authorizer.authorize(user, wanted).allowed

    def _confirm(self, request: Admission, rules: Sequence[Object]) -> None:
        held = self._authorizer.rules_for(request.user, request.namespace)
        missing = [p for rule in rules for p in _permissions(rule) if not _covered(p, held)]
        if not missing:
            return
        lines = "\n".join(sorted({_shown(rule) for rule in _compact(missing)}))
        user = request.user
        detail = (
            f"user {quote(user.name)} (groups={quoted(user.groups)}) is attempting to grant RBAC permissions "
            f"not currently held:\n{lines}"
        )
        raise forbidden(request.kind.plural, request.kind.group, request.name, detail)


def _ungoverned(obj: Object) -> Object:
    """The object without what the garbage collector and the server itself change."""
    metadata = obj.get("metadata") or {}
    ours = ("ownerReferences", "finalizers", "resourceVersion", "generation", "managedFields")
    return {**obj, "metadata": {k: v for k, v in metadata.items() if k not in ours}}


def _permissions(rule: Object) -> Iterator[Object]:
    """The single permissions of a rule: one verb on one URL, or one resource (and name) of one group."""
    verbs = rule.get("verbs") or ()
    for url in rule.get("nonResourceURLs") or ():
        for verb in verbs:
            yield {"nonResourceURLs": [url], "verbs": [verb]}
    for group in rule.get("apiGroups") or ():
        for resource in rule.get("resources") or ():
            for verb in verbs:
                single = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
                names = rule.get("resourceNames") or ()
                if not names:
                    yield single
                for name in names:
                    yield single | {"resourceNames": [name]}


def _covered(wanted: Object, held: Sequence[Object]) -> bool:
    return any(_covers(rule, wanted) for rule in held)


def _covers(rule: Object, wanted: Object) -> bool:
    """Whether a held rule includes a single permission; a wildcard is only covered by a wildcard."""
    if not _within(wanted["verbs"][0], rule.get("verbs")):
        return False
    if "nonResourceURLs" in wanted:
        url = wanted["nonResourceURLs"][0]
        patterns = rule.get("nonResourceURLs") or ()
        return any(p == url or (p.endswith("*") and url.startswith(p.rstrip("*"))) for p in patterns)
    if not _within(wanted["apiGroups"][0], rule.get("apiGroups")):
        return False
    names = rule.get("resourceNames") or ()
    if names and (wanted.get("resourceNames") or [""])[0] not in names:
        return False
    resource = wanted["resources"][0]
    subresource = resource.partition("/")[2]
    resources = rule.get("resources") or ()
    return _within(resource, resources) or (subresource != "" and f"*/{subresource}" in resources)


def _within(value: str, values: Sequence[str] | None) -> bool:
    return values is not None and ("*" in values or value in values)


def _compact(permissions: Sequence[Object]) -> list[Object]:
    """Join single permissions that differ only in their verb."""
    found: dict[tuple[Any, ...], Object] = {}
    for permission in permissions:
        key = tuple(tuple(permission.get(f) or ()) for f in _FIELDS if f != "verbs")
        rule = found.setdefault(key, {**permission, "verbs": []})
        if permission["verbs"][0] not in rule["verbs"]:
            rule["verbs"].append(permission["verbs"][0])
    return list(found.values())


def _shown(rule: Object) -> str:
    return "{" + ", ".join(f"{go}:{quoted(rule[f])}" for f, go in _FIELDS.items() if rule.get(f)) + "}"
