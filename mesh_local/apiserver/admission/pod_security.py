"""PodSecurity: the levels that a namespace's labels set (KEP-2579)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mesh_local.apiserver.admission.refusal import refused
from mesh_local.apiserver.types import Admission, Reader
from mesh_local.kinds.pod_security import (
    LEVELS,
    PRIVILEGED,
    RESTRICTED,
    Violation,
    describe,
    violations,
)
from mesh_local.machinery.errors import FieldError, go_quote, invalid, invalid_value
from mesh_local.machinery.objects import Object, dig, labels_of, name_of

PREFIX = "pod-security.kubernetes.io/"
_MODES = ("enforce", "audit", "warn")
_VERSION = re.compile(r"latest|v1\.(0|[1-9][0-9]*)")
_TEMPLATES = frozenset({"deployments.apps", "replicasets.apps", "jobs.batch"})
_SIGNIFICANT = ("name", "image", "securityContext")


@dataclass(frozen=True, slots=True)
class Policy:
    """A level of the Pod Security Standards, and the version of their definition that was asked for."""

    level: str = PRIVILEGED
    version: str = "latest"

    def __str__(self) -> str:
        return f"{self.level}:{self.version}"


def policy(labels: Mapping[str, str], mode: str) -> Policy:
    """The policy of a mode; `warn` follows `enforce` where it is not set; a bad level means restricted."""
    level = labels.get(f"{PREFIX}{mode}")
    if level is None:
        return policy(labels, "enforce") if mode == "warn" else Policy()
    version = labels.get(f"{PREFIX}{mode}-version", "latest")
    return Policy(level if level in LEVELS else RESTRICTED, version)


class PodSecurity:
    """Refuses Pods that violate `enforce`, warns of those and of templates that violate `warn`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def mutate(self, request: Admission) -> None: ...

    async def validate(self, request: Admission) -> None:
        obj = request.object
        if request.operation not in ("CREATE", "UPDATE") or request.subresource or obj is None:
            return
        if request.kind.resource == "namespaces":
            self._namespace(request, obj)
        elif request.kind.resource == "pods":
            if request.old is None or _significant(obj, request.old):
                self._pod(request, obj["spec"])
        elif request.kind.resource in _TEMPLATES:
            self._warn(request, dig(obj, "spec", "template", "spec", default={}))

    def _pod(self, request: Admission, spec: Object) -> None:
        enforced = policy(self._labels(request.namespace), "enforce")
        if found := violations(spec, enforced.level):
            detail = f"violates PodSecurity {go_quote(str(enforced))}: {describe(found)}"
            raise refused(request, detail)
        self._warn(request, spec)

    def _warn(self, request: Admission, spec: Object) -> None:
        warned = policy(self._labels(request.namespace), "warn")
        if found := violations(spec, warned.level):
            request.warnings.append(f"would violate PodSecurity {go_quote(str(warned))}: {describe(found)}")

    def _labels(self, namespace: str) -> dict[str, str]:
        return labels_of(self._reader.get("namespaces", namespace) or {})

    def _namespace(self, request: Admission, namespace: Object) -> None:
        labels = labels_of(namespace)
        old = labels_of(request.old or {})
        if faults := [f for mode in _MODES for f in _label_faults(labels, old, mode)]:
            raise invalid("Namespace", "", name_of(namespace), faults)
        now, before = policy(labels, "enforce"), policy(old, "enforce")
        stricter = LEVELS.index(now.level) > LEVELS.index(before.level)
        if request.operation == "UPDATE" and (stricter or now.version != before.version):
            self._warn_of_existing(request, now)

    def _warn_of_existing(self, request: Admission, now: Policy) -> None:
        """Say which Pods would not be admitted any more, those that fail alike together."""
        failing: dict[str, list[str]] = {}
        for pod in self._reader.list("pods", request.name):
            found: list[Violation] = violations(pod.get("spec") or {}, now.level)
            if found:
                failing.setdefault(", ".join(v.reason for v in found), []).append(name_of(pod))
        if not failing:
            return
        request.warnings.append(
            f"existing pods in namespace {go_quote(request.name)} violate the new PodSecurity enforce level "
            f"{go_quote(str(now))}"
        )
        for reasons, names in sorted(failing.items(), key=lambda item: item[1][0]):
            others = len(names) - 1
            more = f" (and {others} other pod{'s' if others > 1 else ''})" if others else ""
            request.warnings.append(f"{names[0]}{more}: {reasons}")


def _label_faults(labels: Mapping[str, str], old: Mapping[str, str], mode: str) -> list[FieldError]:
    """Bad levels and versions; those that the namespace already has may stay."""
    faults = []
    for key, valid, detail in (
        (f"{PREFIX}{mode}", lambda v: v in LEVELS, f"must be one of {', '.join(LEVELS)}"),
        (f"{PREFIX}{mode}-version", _VERSION.fullmatch, 'must be "latest" or "v1.x"'),
    ):
        value = labels.get(key)
        if value is not None and value != old.get(key) and not valid(value):
            faults.append(invalid_value(f"metadata.labels[{key}]", value, detail))
    return faults


def _significant(new: Object, old: Object) -> bool:
    """Whether an update of a Pod touches what the standards look at."""
    return _looked_at(new) != _looked_at(old)


def _looked_at(pod: Object) -> list[list[object]]:
    spec = pod.get("spec") or {}
    return [
        [container.get(key) for key in _SIGNIFICANT]
        for group in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(group) or ()
    ]
