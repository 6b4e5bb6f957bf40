"""The control plane: its definitions, its pods, its webhook and its certificates."""

import base64
import binascii
from datetime import timedelta
from typing import Any

from cryptography import x509

from certs.bundle import BundleError, fingerprint, parse_certificates
from manifests.names import (
    CA_BUNDLE,
    CA_SECRET,
    CONTROL,
    INJECT_LABEL,
    INJECTION_LABEL,
    INJECTOR,
)
from manifests.render import crds
from mesh_api.admin import ControlVersion
from mesh_api.names import PROXY_CONTAINER
from mesh_api.version import VERSION
from meshctl.admin import AdminUnavailable, ask
from meshctl.checks.model import Check, Result, Target, failed, passed, skipped, warning
from meshctl.errors import KubeError
from meshctl.wait import deployed

MIN_DAYS = 60
_PROBE = "triomesh-check"


def _definitions(target: Target) -> Result:
    wrong = []
    for crd in crds():
        name = crd["metadata"]["name"]
        live = target.kube.find(crd["apiVersion"], crd["kind"], name)
        if live is None:
            wrong.append(f"{name} is missing")
            continue
        conditions = {c["type"]: c["status"] for c in live.get("status", {}).get("conditions") or []}
        if conditions.get("Established") != "True":
            wrong.append(f"{name} is not established")
        served = {v["name"] for v in live["spec"]["versions"] if v.get("served")}
        ours = {version["name"] for version in crd["spec"]["versions"]}
        wrong += [f"{name} does not serve {version}" for version in sorted(ours - served)]
    return failed("custom resources are not as installed", wrong) if wrong else passed()


def _installed(target: Target) -> Result:
    if target.kube.find("apps/v1", "Deployment", CONTROL, target.namespace) is None:
        return failed(f"there is no deployment {CONTROL} in namespace {target.namespace}")
    return passed(f"in namespace {target.namespace}")


def _deployed(target: Target) -> Result:
    found = deployed(target.kube, target.namespace)
    counts = {
        name: ((each.get("status") or {}).get("readyReplicas", 0), each["spec"].get("replicas", 1))
        for name, each in found.items()
    }
    text = ", ".join(
        f"{ready} of {wanted} replicas ready" + (f" of {name}" if len(counts) > 1 else "")
        for name, (ready, wanted) in counts.items()
    )
    if not all(ready for ready, _ in counts.values()):
        return failed(text)
    return passed(text) if all(ready >= wanted for ready, wanted in counts.values()) else warning(text)


def _bundle(target: Target) -> tuple[x509.Certificate, ...]:
    """The roots that are handed to pods. Raises KubeError or BundleError."""
    found = target.kube.find("v1", "ConfigMap", CA_BUNDLE, target.namespace)
    if found is None:
        raise BundleError(f"ConfigMap {CA_BUNDLE} in {target.namespace}: it is not there")
    text = (found.get("data") or {}).get("bundle.pem", "")
    return parse_certificates(text.encode(), f"ConfigMap {CA_BUNDLE} in {target.namespace}: bundle.pem")


def _webhook_bundle(target: Target) -> Result:
    found = target.kube.find("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", INJECTOR)
    if found is None:
        return failed(f"there is no MutatingWebhookConfiguration {INJECTOR}")
    try:
        roots = {fingerprint(cert) for cert in _bundle(target)}
        for hook in found.get("webhooks") or []:
            pem = base64.b64decode(hook["clientConfig"].get("caBundle") or "", validate=True)
            certificates = parse_certificates(pem, f"{hook['name']}: caBundle")
            if not {fingerprint(cert) for cert in certificates} & roots:
                return failed(f"{hook['name']}: caBundle has no root of ConfigMap {CA_BUNDLE}")
    except (BundleError, binascii.Error) as exc:
        return failed(str(exc))
    return passed(f"{len(found.get('webhooks') or [])} entries")


def _webhook_answers(target: Target) -> Result:
    """Ask the API server for a pod, without making one, and look what the webhook did."""
    labelled = target.kube.items("v1", "Namespace", labels=f"{INJECTION_LABEL}=enabled")
    namespace = labelled[0]["metadata"]["name"] if labelled else "default"
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _PROBE, "namespace": namespace, "labels": {INJECT_LABEL: "true"}},
        "spec": {"containers": [{"name": "app", "image": "none"}]},
    }
    try:
        made = target.kube.request("POST", f"/api/v1/namespaces/{namespace}/pods", {"dryRun": "All"}, pod)
    except KubeError as exc:
        if exc.status == 403 and "is forbidden: User" in str(exc):
            raise
        return failed(f"a pod in namespace {namespace} would be refused: {exc}")
    spec = made["spec"]
    names = {c["name"] for c in [*(spec.get("initContainers") or []), *spec["containers"]]}
    if PROXY_CONTAINER not in names:
        return failed(f"a pod in namespace {namespace} would start without a sidecar")
    return passed(f"a pod in namespace {namespace} would get its sidecar")


def _days_left(target: Target) -> Result:
    try:
        held = [(f"root {fingerprint(cert)[:12]}", cert) for cert in _bundle(target)]
        note = ""
        try:
            held += _signers(target)
        except KubeError as exc:
            if exc.status != 403:
                raise
            note = f"; the signer was not looked at: not allowed to read Secret {CA_SECRET}"
    except (BundleError, binascii.Error) as exc:
        return failed(str(exc))
    now = target.now()
    soon = []
    for name, cert in held:
        left = cert.not_valid_after_utc - now
        if left < timedelta(days=MIN_DAYS):
            soon.append((left, f"{name}: {_left(left)}, until {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"))
    lines = [text for _, text in soon]
    if any(left <= timedelta(0) for left, _ in soon):
        return failed("a certificate of the CA has ended", lines)
    if soon:
        return warning(f"less than {MIN_DAYS} days left{note}", lines)
    shortest = min(cert.not_valid_after_utc for _, cert in held) - now
    return passed(f"{_left(shortest)}{note}")


def _left(left: timedelta) -> str:
    if left <= timedelta(0):
        return "has ended"
    return f"{left.days} days left" if left.days else f"{left.seconds // 3600} hours left"


def _signers(target: Target) -> list[tuple[str, x509.Certificate]]:
    secret = target.kube.find("v1", "Secret", CA_SECRET, target.namespace)
    data = (secret or {}).get("data") or {}
    if "signer.pem" not in data:
        raise BundleError(f"Secret {CA_SECRET} in {target.namespace}: it has no signer.pem")
    chain = parse_certificates(base64.b64decode(data["signer.pem"], validate=True), f"Secret {CA_SECRET}")
    return [("signer", chain[0])]


def _versions(target: Target) -> Result:
    try:
        found = ask(target.kube, target.namespace, "/version", ControlVersion)
    except AdminUnavailable as exc:
        return skipped(str(exc))
    if found.version != VERSION:
        return warning(f"this meshctl is {VERSION}, the control plane {found.version}")
    return passed(VERSION)


DEFINITIONS = Check("crds", "the custom resources are served", "run `meshctl install`", _definitions)
INSTALLED = Check("installed", "the mesh is installed", "run `meshctl install`", _installed, fatal=True)
DEPLOYED = Check(
    "control-plane",
    "the control plane runs",
    "run `meshctl upgrade --wait`, which says why it does not start",
    _deployed,
)
WEBHOOK_BUNDLE = Check(
    "webhook-bundle",
    "the webhook has the mesh's roots",
    "the control plane writes them; see `meshctl logs`",
    _webhook_bundle,
)
WEBHOOK_ANSWERS = Check(
    "webhook-answers",
    "the webhook answers and adds the sidecar",
    "see `meshctl logs`, and that the API server reaches port 15017 of the control plane's pods",
    _webhook_answers,
)
DAYS_LEFT = Check(
    "ca-expiry",
    "the CA's certificates last",
    "`meshctl ca rotate` in time, or `meshctl ca import` of a new intermediate",
    _days_left,
)
VERSIONS = Check("versions", "client and control plane have one version", "run `meshctl upgrade`", _versions)
