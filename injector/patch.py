"""The one decision about a pod: a sidecar by this patch, none for this reason, or no pod at all. Pure.

A run over a pod that is injected already brings it up to date: ours go back to the front, checks of
containers that came later are led through the sidecar, and what others added to our containers stays. A run
that has nothing to do yields an empty patch. The sidecar is a native one (KEP-753).
"""

from __future__ import annotations

import copy

import msgspec

from injector import containers, metrics, probes
from injector.annotations import AnnotationError, effective
from injector.decision import (
    INIT,
    OURS,
    PROXY,
    Decision,
    Inject,
    Namespace,
    Object,
    Reason,
    Refuse,
)
from injector.eligible import injected_by_us, obstacle
from injector.json_patch import diff
from injector.overlay import overlay
from injector.pod import Pod, PodError, read
from injector.probes import Originals
from injector.values import Values
from mesh_api.application import METRICS_VARIABLE, PROBES_VARIABLE, AppMetrics
from mesh_api.names import INJECTED


def decide(pod: Object, namespace: Namespace, values: Values) -> Decision:
    """Decide about `pod`, which is not changed."""
    try:
        seen = read(pod)
        if stop := obstacle(seen, namespace, values):
            return stop
        values, unknown = effective(seen.annotations, values)
        wanted, warnings = _injected(pod, seen, values)
    except AnnotationError as exc:
        return Refuse(Reason.INVALID_ANNOTATION, str(exc))
    except PodError as exc:
        return Refuse(Reason.INVALID_POD, str(exc))
    return Inject(wanted, diff(pod, wanted), (*unknown, *warnings, *_warnings(seen)))


def _injected(pod: Object, seen: Pod, values: Values) -> tuple[Object, list[str]]:
    wanted = copy.deepcopy(pod)
    metadata = wanted["metadata"] = wanted.get("metadata") or {}
    annotations = metadata["annotations"] = metadata.get("annotations") or {}
    spec = wanted["spec"]
    checks, said, warnings = _through_sidecar(spec, annotations, seen, values)
    annotations[INJECTED] = values.version
    names = containers.volume_names(seen, injected_by_us(seen))
    proxy = containers.proxy_container(values, names, _json(checks), _json(said))
    _place_containers(spec, [containers.init_container(values), proxy])
    _place_volumes(spec, containers.volumes(values, names))
    return wanted, warnings


def _through_sidecar(
    spec: Object, annotations: Object, seen: Pod, values: Values
) -> tuple[Originals, AppMetrics | None, list[str]]:
    """Lead checks and metrics through the sidecar, or back if that is not wanted (any more)."""
    checks, said = _remembered(seen)
    warnings: list[str] = []
    if values.rewrite_probes:
        checks, warnings = probes.rewrite(spec, checks)
    else:
        probes.restore(spec, checks)
        checks = {}
    if values.merge_metrics:
        said, more = metrics.merge(annotations, said, seen)
        warnings = [*warnings, *more]
    else:
        metrics.restore(annotations, said)
        said = None
    return checks, said, warnings


def _remembered(seen: Pod) -> tuple[Originals, AppMetrics | None]:
    """What an earlier run has left. A pod with our name for a container of its own never gets here."""
    checks = containers.remembered(seen, PROBES_VARIABLE, Originals)
    return checks or {}, containers.remembered(seen, METRICS_VARIABLE, AppMetrics)


def _place_containers(spec: Object, ours: list[Object]) -> None:
    inits = spec.get("initContainers") or []
    there = {container["name"]: container for container in inits}
    others = [container for container in inits if container["name"] not in OURS]
    spec["initContainers"] = [
        *(overlay(there.get(container["name"], {}), container) for container in ours),
        *others,
    ]


def _place_volumes(spec: Object, ours: list[Object]) -> None:
    volumes = list(spec.get("volumes") or ())
    places = {volume["name"]: place for place, volume in enumerate(volumes)}
    for volume in ours:
        if volume["name"] in places:
            place = places[volume["name"]]
            volumes[place] = overlay(volumes[place], volume)
        else:
            volumes.append(volume)
    spec["volumes"] = volumes


def _json(value: Originals | AppMetrics | None) -> str:
    return msgspec.json.encode(value, order="deterministic").decode() if value else ""


def _warnings(seen: Pod) -> list[str]:
    warnings = []
    if seen.spec.share_process_namespace:
        warnings.append(
            "shareProcessNamespace: containers of this pod that run as root or as uid 1337 can look into "
            f"{PROXY}, its key and its token included"
        )
    if seen.spec.dns_policy in ("Default", "None"):
        warnings.append(
            f"dnsPolicy {seen.spec.dns_policy}: {PROXY} finds the control plane by its cluster DNS name, "
            "which this pod may not be able to resolve"
        )
    return warnings


def remove(pod: Object) -> Object:
    """`pod` without what the injector added; as it is if that is nothing.

    Raises:
        PodError: it is not a pod, or what the injector left behind in it is damaged.
    """
    seen = read(pod)
    if not injected_by_us(seen):
        return pod
    before = copy.deepcopy(pod)
    spec, metadata = before["spec"], before["metadata"]
    checks, said = _remembered(seen)
    probes.restore(spec, checks)
    metrics.restore(metadata["annotations"], said)
    del metadata["annotations"][INJECTED]
    names = set(containers.volume_names(seen, ours=True).values())
    kept = {
        "initContainers": [one for one in spec["initContainers"] if one["name"] not in (INIT, PROXY)],
        "volumes": [one for one in spec.get("volumes") or () if one["name"] not in names],
    }
    for key, items in kept.items():
        spec[key] = items
        if not items:
            del spec[key]
    if not metadata["annotations"]:
        del metadata["annotations"]
    if not metadata:
        del before["metadata"]
    return before
