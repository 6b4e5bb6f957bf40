"""Bring objects into a cluster, and take them out again."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from manifests.names import CONTROL, GROUP, INSTALL_LABEL, INSTALL_LABEL_VALUE, VALUES_ANNOTATION
from meshctl.errors import KubeError, MeshctlError
from meshctl.kube import Kube, Resource
from meshctl.merge import annotated, merged
from meshctl.wait import poll

Object = dict[str, Any]
Say = Callable[[str], None]
INSTALLED = f"{INSTALL_LABEL}={INSTALL_LABEL_VALUE}"
_TRIES = 5

INSTALLED_KINDS = (
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("v1", "ServiceAccount"),
)
"""In the order of removal: first what the API server asks, last what the rest needs."""


def title(obj: Object) -> str:
    """As kubectl names an object."""
    group = obj["apiVersion"].partition("/")[0] if "/" in obj["apiVersion"] else ""
    kind = obj["kind"].lower() + (f".{group}" if group else "")
    return f"{kind}/{obj['metadata']['name']}"


def supported(kube: Kube, objects: Iterable[Object], say: Say) -> list[Object]:
    """The objects whose kind the server has; says which it leaves out.

    Raises:
        MeshctlError: the server lacks a kind that the mesh cannot do without.
    """
    optional = {"PodDisruptionBudget", "NetworkPolicy"}
    found = []
    for obj in objects:
        if kube.resource(obj["apiVersion"], obj["kind"]) is not None:
            found.append(obj)
        elif obj["kind"] in optional:
            say(f"{title(obj)} skipped: the server has no {obj['kind']} ({obj['apiVersion']})")
        else:
            raise MeshctlError(f"the server has no {obj['kind']} ({obj['apiVersion']}), which the mesh needs")
    return found


def require(kube: Kube, objects: Iterable[Object], verbs: Sequence[str]) -> None:
    """Ask for the needed permissions before anything is written.

    Raises:
        MeshctlError: names every verb and resource that is missing.
    """
    asked: dict[tuple[str, Resource, str | None], bool] = {}
    for obj in objects:
        resource = kube.needed(obj["apiVersion"], obj["kind"])
        namespace = obj["metadata"].get("namespace")
        for verb in verbs:
            if (verb, resource, namespace) not in asked:
                asked[verb, resource, namespace] = kube.allowed(verb, resource, namespace)
    missing: dict[str, list[str]] = {}
    for (verb, resource, namespace), yes in asked.items():
        if not yes:
            missing.setdefault(described(resource, namespace), []).append(verb)
    if missing:
        lines = "".join(f"\n  {', '.join(verbs)} {what}" for what, verbs in missing.items())
        raise MeshctlError(f"nothing was changed: you are not allowed to{lines}")


def described(resource: Resource, namespace: str | None) -> str:
    name = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
    return f"{name} in namespace {namespace}" if namespace and resource.namespaced else name


def apply(kube: Kube, obj: Object) -> str:
    """Create an object or bring it to what it should be; says created, configured or unchanged."""
    name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace")
    for _ in range(_TRIES):
        live = kube.find(obj["apiVersion"], obj["kind"], name, namespace)
        try:
            if live is None:
                kube.create(annotated(obj))
                return "created"
            seen = _with_policies(live, {})
            wanted = merged(obj, seen)
            if wanted == seen:
                return "unchanged"
            # The server takes a write that changes nothing without a new version.
            made = kube.replace(_with_policies(wanted, _proved(live)))
        except KubeError as exc:
            if exc.status == 409:
                continue  # Somebody else wrote in between: look again.
            raise KubeError(f"{title(obj)}: {exc}", exc.status, exc.reason) from None
        same = made["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
        return "unchanged" if same else "configured"
    raise KubeError(f"{title(obj)}: others keep changing it; {_TRIES} tries", 409)


def _proved(live: Object) -> dict[str, str]:
    """Webhooks for policies that the control plane has made Fail, after it saw them refuse a bad one."""
    if live["kind"] != "ValidatingWebhookConfiguration":
        return {}
    return {h["name"]: "Fail" for h in live.get("webhooks") or [] if h.get("failurePolicy") == "Fail"}


def _with_policies(obj: Object, policies: dict[str, str]) -> Object:
    """A configuration for policies as it is installed, but for these decisions of the control plane."""
    if obj["kind"] != "ValidatingWebhookConfiguration":
        return obj
    hooks = [
        {**hook, "failurePolicy": policies.get(hook["name"], "Ignore")} for hook in obj.get("webhooks") or []
    ]
    return {**obj, "webhooks": hooks}


@dataclass(frozen=True)
class Existing:
    """An installation that is there."""

    namespace: str
    deployment: Object


def existing(kube: Kube) -> Existing | None:
    """The installation of this cluster, found by its Deployment."""
    for found in kube.items("apps/v1", "Deployment", labels=INSTALLED):
        if found["metadata"]["name"] == CONTROL:
            return Existing(found["metadata"]["namespace"], found)
    return None


def check_crds(kube: Kube, crds: Iterable[Object]) -> None:
    """Refuse to touch definitions that keep objects in versions which this program does not have.

    Raises:
        MeshctlError: names the definition and the versions.
    """
    for crd in crds:
        name = crd["metadata"]["name"]
        live = kube.find(crd["apiVersion"], crd["kind"], name)
        if live is None:
            continue
        ours = {version["name"] for version in crd["spec"]["versions"]}
        stored = set((live.get("status") or {}).get("storedVersions") or [])
        stored |= {v["name"] for v in live["spec"]["versions"] if v.get("storage")}
        if stored - ours:
            raise MeshctlError(
                f"nothing was changed: the CRD {name} stores objects as {', '.join(sorted(stored))}, "
                f"this meshctl knows {', '.join(sorted(ours))}; use the meshctl that installed it"
            )


def wait_established(kube: Kube, crds: Iterable[Object], limit_s: float) -> None:
    """Wait until the server serves the custom resources.

    Raises:
        MeshctlError: not in time; says what the server says.
    """
    for crd in crds:
        name, why = crd["metadata"]["name"], "not there"
        for _ in poll(limit_s):
            live = kube.find(crd["apiVersion"], crd["kind"], name) or {}
            conditions = {c["type"]: c for c in (live.get("status") or {}).get("conditions") or []}
            if conditions.get("Established", {}).get("status") == "True":
                break
            bad = [c for c in conditions.values() if c["status"] == "False"]
            why = "; ".join(f"{c['type']}: {c.get('message') or c.get('reason')}" for c in bad) or why
        else:
            raise MeshctlError(f"the CRD {name} was not established within {limit_s:.0f} s: {why}")


def leftovers(kube: Kube, rendered: Iterable[Object]) -> list[Object]:
    """Installed objects that are not rendered, such as those of an older version."""
    wanted = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in rendered}
    return [obj for obj in installed(kube) if _key(obj) not in wanted]


def installed(kube: Kube) -> list[Object]:
    """What an installation consists of, CRDs and the namespace left out, in the order of removal."""
    return [
        obj
        for api_version, kind in INSTALLED_KINDS
        for obj in kube.items(api_version, kind, labels=INSTALLED)
    ]


def installed_crds(kube: Kube) -> list[Object]:
    found = kube.items("apiextensions.k8s.io/v1", "CustomResourceDefinition", labels=INSTALLED)
    return [crd for crd in found if crd["spec"]["group"] == GROUP]


def _key(obj: Object) -> tuple[str, str | None, str]:
    return obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]


def stored_values(there: Existing) -> Object:
    """The values that an installation was made with.

    Raises:
        MeshctlError: its annotation is not readable.
    """
    metadata = there.deployment["metadata"]
    text = (metadata.get("annotations") or {}).get(VALUES_ANNOTATION, "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise MeshctlError(
            f"deployment {CONTROL} in {there.namespace}: annotation {VALUES_ANNOTATION}: "
            "expected a mapping in JSON"
        )
    return found
