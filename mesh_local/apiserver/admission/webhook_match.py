"""Which webhooks want to see a request, and in which version of its kind. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cel

from mesh_local.apiserver.types import Admission
from mesh_local.kinds.base import Kind
from mesh_local.machinery.errors import ApiError, forbidden, not_found
from mesh_local.machinery.objects import Object, labels_of, name_of
from mesh_local.machinery.selectors import LabelSelector

ADMISSION_GROUP = "admissionregistration.k8s.io"


@dataclass(frozen=True, slots=True)
class Hook:
    """One webhook of a configuration, with its place in the order of calls."""

    configuration: str
    spec: Object

    @property
    def name(self) -> str:
        return str(self.spec.get("name") or "")

    @property
    def ignores_failure(self) -> bool:
        return self.spec.get("failurePolicy") == "Ignore"

    @property
    def timeout_s(self) -> int:
        return int(self.spec.get("timeoutSeconds") or 10)


def hooks_of(configurations: Sequence[Object]) -> list[Hook]:
    """The webhooks in the order in which they are called: by the name of the configuration."""
    ordered = sorted(configurations, key=name_of)
    return [Hook(name_of(c), spec) for c in ordered for spec in c.get("webhooks") or ()]


def exempt(request: Admission) -> bool:
    """Whether webhooks are not asked at all: about the configurations of webhooks."""
    return request.kind.group == ADMISSION_GROUP


def namespace_in(request: Admission) -> str:
    """The namespace of a request; that of a Namespace object is its own name."""
    is_namespace = request.kind.resource == "namespaces"
    return request.namespace or (request.name if is_namespace else "")


def view_of(hook: Hook, request: Admission, kinds: Sequence[Kind]) -> Kind | None:
    """The kind in whose form a hook wants the request; None where no rule of it matches.

    Args:
        kinds: all kinds: with matchPolicy Equivalent, a rule on one of those that are stored together
            matches requests to all of them.
    """
    rules: Sequence[Object] = hook.spec.get("rules") or ()
    if any(_matches(rule, request, request.kind) for rule in rules):
        return request.kind
    if hook.spec.get("matchPolicy") == "Exact":
        return None
    for rule in rules:
        for kind in kinds:
            if kind.stored_as == request.kind.stored_as and _matches(rule, request, kind):
                return kind
    return None


def _matches(rule: Object, request: Admission, kind: Kind) -> bool:
    """operations, groups, versions, resources and scope of one rule."""
    scope = rule.get("scope") or "*"
    return (
        _has(rule.get("operations"), request.operation)
        and _has(rule.get("apiGroups"), kind.group)
        and _has(rule.get("apiVersions"), kind.version)
        and (scope == "*" or (scope == "Namespaced") == kind.namespaced)
        and any(_names(r, kind.plural, request.subresource) for r in rule.get("resources") or ())
    )


def _has(values: Sequence[str] | None, wanted: str) -> bool:
    return values is not None and ("*" in values or wanted in values)


def _names(pattern: str, plural: str, subresource: str) -> bool:
    """`pods`, `pods/log`, `pods/*`, `*/log`, `*/*`, and `*`, which means no subresource."""
    resource, _, sub = pattern.partition("/")
    return resource in ("*", plural) and sub in ("*", subresource)


def selected(hook: Hook, request: Admission, namespace: Callable[[str], Object | None]) -> bool:
    """Whether namespaceSelector and objectSelector match.

    Args:
        namespace: the Namespace object with a name.

    Raises:
        ApiError: 404, where the namespace of the request does not exist.
    """
    return _namespace_selected(hook, request, namespace) and _object_selected(hook, request)


def _namespace_selected(hook: Hook, request: Admission, namespace: Callable[[str], Object | None]) -> bool:
    selector = LabelSelector.from_object(hook.spec.get("namespaceSelector") or {})
    name = namespace_in(request)
    if selector.empty or not name:
        return True
    own = request.kind.resource == "namespaces" and not request.subresource
    written = own and request.operation in ("CREATE", "UPDATE")
    found = request.object if written else namespace(name)
    if found is None:
        raise not_found("namespaces", "", name)
    return selector.matches(labels_of(found))


def _object_selected(hook: Hook, request: Admission) -> bool:
    """The new or the old object matches."""
    selector = LabelSelector.from_object(hook.spec.get("objectSelector") or {})
    if selector.empty:
        return True
    return any(o is not None and selector.matches(labels_of(o)) for o in (request.object, request.old))


def conditions_met(hook: Hook, request: Admission, variables: Mapping[str, Any]) -> bool:
    """Whether all matchConditions hold.

    Args:
        variables: object, oldObject and request.

    Raises:
        ApiError: 403, where one cannot be evaluated, none is false, and the hook does not ignore failures.
    """
    problem = ""
    for condition in hook.spec.get("matchConditions") or ():
        name = condition.get("name")
        try:
            result = compiled(condition["expression"]).execute(dict(variables))
        except (ValueError, RuntimeError, TypeError) as e:
            problem = problem or f"expression '{condition['expression']}' resulted in error: {e}"
            continue
        except KeyError as e:
            key = e.args[0] if e.args else ""
            problem = (
                problem or f"expression '{condition['expression']}' resulted in error: no such key: {key}"
            )
            continue
        if result is False:
            return False
        if result is not True:
            problem = problem or f"match condition {name} did not evaluate to a boolean"
    if not problem:
        return True
    if hook.ignores_failure:
        return False
    raise _refused(request, problem)


def _refused(request: Admission, problem: str) -> ApiError:
    return forbidden(request.kind.plural, request.kind.group, request.name, problem)


@lru_cache(maxsize=256)
def compiled(expression: str) -> cel.Program:
    """A CEL program. Raises ValueError."""
    return cel.compile(expression)
