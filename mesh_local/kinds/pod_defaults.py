"""What the API fills into a Pod or a pod template."""

from collections.abc import Iterator
from typing import Any

from mesh_local.machinery import quantity
from mesh_local.machinery.objects import Object, copy, dig

_MODE = 0o644
_TOKEN_SECONDS = 3600
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_PROBE_DEFAULTS = (
    ("timeoutSeconds", 1),
    ("periodSeconds", 10),
    ("successThreshold", 1),
    ("failureThreshold", 3),
)


def default_pod(pod: Object) -> None:
    """API defaulting of a Pod: that of its spec, and what a template does not get."""
    spec = pod.setdefault("spec", {})
    default_spec(spec)
    spec.setdefault("enableServiceLinks", True)
    for container in all_containers(spec):
        resources = container["resources"]
        for name, value in (resources.get("limits") or {}).items():
            resources.setdefault("requests", {}).setdefault(name, value)
        if spec.get("hostNetwork"):
            for port in container.get("ports") or ():
                port["hostPort"] = port.get("hostPort") or port.get("containerPort")


def default_template(template: Object) -> None:
    """API defaulting of a pod template."""
    template.setdefault("metadata", {})
    default_spec(template.setdefault("spec", {}))


def default_spec(spec: Object) -> None:
    _mirror_service_account(spec)
    _set(spec, "restartPolicy", "Always")
    _set(spec, "terminationGracePeriodSeconds", 30)
    _set(spec, "dnsPolicy", "ClusterFirst")
    _set(spec, "securityContext", {})
    _set(spec, "schedulerName", "default-scheduler")
    for container in all_containers(spec):
        _container(container)
    for volume in spec.get("volumes") or ():
        _volume(volume)


def all_containers(spec: Object) -> Iterator[Object]:
    """Init containers, then the others."""
    yield from spec.get("initContainers") or ()
    yield from spec.get("containers") or ()


def image_pull_policy(image: str) -> str:
    """`Always` for the tag `latest`, which an image without tag and digest has."""
    if "@" in image:
        return "IfNotPresent"
    tag = image.rpartition("/")[2].partition(":")[2] or "latest"
    return "Always" if tag == "latest" else "IfNotPresent"


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort, from what containers request and are limited to."""
    requests: dict[str, quantity.Quantity] = {}
    limits: dict[str, quantity.Quantity] = {}
    guaranteed = True
    for container in all_containers(spec):
        resources = container.get("resources") or {}
        _add(requests, resources.get("requests") or {})
        if _add(limits, resources.get("limits") or {}) < 2:
            guaranteed = False
    if not requests and not limits:
        return "BestEffort"
    return "Guaranteed" if guaranteed and requests == limits else "Burstable"


def _add(totals: dict[str, quantity.Quantity], amounts: dict[str, str]) -> int:
    """Add cpu and memory to `totals`; returns how many of the two there were."""
    found = 0
    for name in ("cpu", "memory"):
        if name not in amounts:
            continue
        amount = quantity.parse(amounts[name])
        if amount.value > 0:
            found += 1
            known = totals.get(name)
            total = amount.value + known.value if known else amount.value
            totals[name] = quantity.Quantity(total, amount.style)
    return found


def _set(obj: Object, key: str, value: Any) -> None:
    """Set a field that is absent, null or empty."""
    if obj.get(key) is None or obj[key] == "":
        obj[key] = copy(value)


def _mirror_service_account(spec: Object) -> None:
    """`serviceAccount` is the deprecated name of `serviceAccountName`."""
    name = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if name:
        spec["serviceAccountName"] = spec["serviceAccount"] = name


def _container(container: Object) -> None:
    _set(container, "terminationMessagePath", "/dev/termination-log")
    _set(container, "terminationMessagePolicy", "File")
    _set(container, "imagePullPolicy", image_pull_policy(container.get("image") or ""))
    _set(container, "resources", {})
    for port in container.get("ports") or ():
        _set(port, "protocol", "TCP")
    for key in _PROBES:
        if (probe := container.get(key)) is not None:
            _probe(probe)
    for key in ("postStart", "preStop"):
        _http_get(dig(container, "lifecycle", key))
    for variable in container.get("env") or ():
        _field_reference(variable.get("valueFrom"))


def _probe(probe: Object) -> None:
    for key, value in _PROBE_DEFAULTS:  # 0 counts as absent
        probe[key] = probe.get(key) or value
    _http_get(probe)
    if (grpc := probe.get("grpc")) is not None:
        grpc.setdefault("service", "")


def _http_get(handler: Object | None) -> None:
    request = (handler or {}).get("httpGet")
    if request is not None:
        _set(request, "path", "/")
        _set(request, "scheme", "HTTP")


def _field_reference(source: Object | None) -> None:
    """The `fieldRef` and `resourceFieldRef` of an env value or of a downward API item."""
    if not source:
        return
    if (reference := source.get("fieldRef")) is not None:
        _set(reference, "apiVersion", "v1")
    if (resource := source.get("resourceFieldRef")) is not None:
        _set(resource, "divisor", "0")


def _volume(volume: Object) -> None:
    if all(value is None for key, value in volume.items() if key != "name"):
        volume["emptyDir"] = {}
    for key in ("configMap", "secret", "downwardAPI", "projected"):
        if (source := volume.get(key)) is not None:
            _set(source, "defaultMode", _MODE)
    if (path := volume.get("hostPath")) is not None:
        path.setdefault("type", "")
    for item in dig(volume, "downwardAPI", "items", default=[]):
        _field_reference(item)
    for source in dig(volume, "projected", "sources", default=[]):
        if (token := source.get("serviceAccountToken")) is not None:
            _set(token, "expirationSeconds", _TOKEN_SECONDS)
        for item in dig(source, "downwardAPI", "items", default=[]):
            _field_reference(item)
