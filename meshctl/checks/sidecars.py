"""Sidecars: in sync, of the right roots and version, and where they are missing."""

from certs.bundle import BundleError, fingerprint, parse_certificates
from manifests.names import CA_BUNDLE, INJECTION_LABEL
from mesh_api.admin import SidecarList, SyncState
from mesh_api.version import VERSION
from meshctl.admin import AdminUnavailable, ask
from meshctl.checks.model import Check, Result, Target, failed, passed, skipped, warning
from meshctl.pods import has_sidecar, lacks_sidecar, named, restart_commands

_LINES = 50
_FAST = "nghttp2"


def _list(target: Target) -> SidecarList:
    return ask(target.kube, target.namespace, "/sidecars", SidecarList)


def _in_sync(target: Target) -> Result:
    try:
        found = _list(target)
    except AdminUnavailable as exc:
        return skipped(str(exc))
    if found.answered < found.replicas:
        return skipped(f"only {found.answered} of {found.replicas} replicas of the control plane answered")
    behind = [
        f"{each.namespace}/{each.pod}: {each.state.value}{': ' + each.error if each.error else ''}"
        for each in found.sidecars
        if each.state is not SyncState.SYNCED
    ]
    known = {(each.namespace, each.pod) for each in found.sidecars}
    pods = [pod for pod in target.kube.items("v1", "Pod") if has_sidecar(pod) and _runs(pod)]
    behind += [
        f"{named(pod)}: no stream to the control plane"
        for pod in pods
        if (pod["metadata"]["namespace"], pod["metadata"]["name"]) not in known
    ]
    if behind:
        return failed(f"{len(behind)} sidecars are not in sync", behind[:_LINES])
    return passed(f"{len(found.sidecars)} sidecars")


def _runs(pod: dict[str, object]) -> bool:
    status = pod.get("status")
    return isinstance(status, dict) and status.get("phase") == "Running"


def _same_roots(target: Target) -> Result:
    try:
        found = _list(target)
    except AdminUnavailable as exc:
        return skipped(str(exc))
    bundle = target.kube.find("v1", "ConfigMap", CA_BUNDLE, target.namespace) or {}
    text = (bundle.get("data") or {}).get("bundle.pem", "")
    try:
        roots = {fingerprint(cert) for cert in parse_certificates(text.encode(), f"ConfigMap {CA_BUNDLE}")}
    except BundleError as exc:
        return failed(str(exc))
    other = [
        f"{each.namespace}/{each.pod}: trusts {', '.join(r[:12] for r in each.root_sha256) or 'nothing'}"
        for each in found.sidecars
        if set(each.root_sha256) != roots
    ]
    if other:
        return failed(f"{len(other)} sidecars trust other roots than the mesh's", other[:_LINES])
    return passed(f"{len(found.sidecars)} sidecars, {len(roots)} roots")


def _one_version(target: Target) -> Result:
    try:
        found = _list(target)
    except AdminUnavailable as exc:
        return skipped(str(exc))
    other = [f"{s.namespace}/{s.pod}: {s.version}" for s in found.sidecars if s.version != VERSION]
    if other:
        return warning(f"{len(other)} sidecars are not of version {VERSION}", other[:_LINES])
    return passed(f"{len(found.sidecars)} sidecars")


def _one_engine(target: Target) -> Result:
    """The other engine costs several times as much by request: nobody should have it without knowing."""
    try:
        found = _list(target)
    except AdminUnavailable as exc:
        return skipped(str(exc))
    slow = [
        f"{s.namespace}/{s.pod}: {s.http2 or 'does not say'}"
        for s in found.sidecars
        if not s.http2.startswith(_FAST)
    ]
    if slow:
        return warning(f"{len(slow)} sidecars do not use {_FAST}", slow[:_LINES])
    engines = sorted({s.http2 for s in found.sidecars})
    return passed(f"{len(found.sidecars)} sidecars{': ' if engines else ''}{', '.join(engines)}")


def _missing(target: Target) -> Result:
    labelled = target.kube.items("v1", "Namespace", labels=f"{INJECTION_LABEL}=enabled")
    pods = [
        pod
        for namespace in labelled
        for pod in target.kube.items("v1", "Pod", namespace["metadata"]["name"])
        if lacks_sidecar(pod)
    ]
    if pods:
        lines = [*(f"{named(pod)} has none" for pod in pods[:_LINES]), *restart_commands(pods)]
        return warning(f"{len(pods)} pods of labelled namespaces have no sidecar", lines)
    return passed(f"{len(labelled)} labelled namespaces")


IN_SYNC = Check(
    "sidecars-in-sync",
    "every sidecar has what it should have",
    "see `meshctl proxy-status`, and `meshctl logs NAMESPACE/POD`",
    _in_sync,
)
SAME_ROOTS = Check(
    "sidecar-roots",
    "every sidecar trusts the mesh's roots",
    "a sidecar that stays behind: restart its pod",
    _same_roots,
)
ONE_VERSION = Check(
    "sidecar-versions",
    "sidecars have this version",
    "restart their workloads: `kubectl rollout restart`",
    _one_version,
)
ENGINE = Check(
    "sidecar-http2",
    "sidecars use the fast HTTP/2 engine",
    "an image without it, or a setting; see `meshctl logs NAMESPACE/POD` for why",
    _one_engine,
)
MISSING = Check(
    "pods-without-sidecar",
    "pods of labelled namespaces have a sidecar",
    "they were there before the label; run the commands above",
    _missing,
)
