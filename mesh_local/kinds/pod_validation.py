"""What may be wrong with a Pod, a pod template, or a change to a Pod."""

import difflib
import json
from collections.abc import Mapping, Sequence

from mesh_local.kinds.checks import MAX_INT32, one_of, optional_one_of
from mesh_local.kinds.container_validation import (
    seccomp,
    user_ids,
    validate_containers,
    validate_init_containers,
)
from mesh_local.kinds.volume_validation import validate_volumes
from mesh_local.machinery import names
from mesh_local.machinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
)
from mesh_local.machinery.metadata import validate_annotations, validate_labels
from mesh_local.machinery.objects import Object, copy

_RESTART = ("Always", "OnFailure", "Never")
_DNS = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_NAMESERVERS_MAX = 3
_PREEMPTION = ("PreemptLowerPriority", "Never")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_DIFF_LINES = 40
_UPDATE = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
    "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
    "previously negative)"
)


def validate_pod(pod: Object) -> list[FieldError]:
    return validate_spec(pod.get("spec") or {}, "spec")


def validate_template(template: Object, path: str) -> list[FieldError]:
    """A PodTemplateSpec: labels, annotations and the spec."""
    metadata = template.get("metadata") or {}
    return [
        *validate_labels(metadata.get("labels") or {}, f"{path}.labels"),
        *validate_annotations(metadata.get("annotations") or {}, f"{path}.annotations"),
        *validate_spec(template.get("spec") or {}, f"{path}.spec"),
    ]


def validate_spec(spec: Object, path: str) -> list[FieldError]:
    volumes, errors = validate_volumes(spec.get("volumes") or (), f"{path}.volumes")
    errors += validate_containers(spec, volumes, f"{path}.containers")
    errors += validate_init_containers(spec, volumes, f"{path}.initContainers")
    errors += one_of(f"{path}.restartPolicy", spec.get("restartPolicy"), _RESTART)
    errors += one_of(f"{path}.dnsPolicy", spec.get("dnsPolicy"), _DNS)
    errors += validate_labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")
    errors += _security(spec, f"{path}.securityContext")
    errors += _dns_config(spec, f"{path}.dnsConfig")
    errors += _gates(spec.get("readinessGates") or (), f"{path}.readinessGates")
    errors += _names(spec, path)
    errors += _deadline(spec.get("activeDeadlineSeconds"), f"{path}.activeDeadlineSeconds")
    errors += _tolerations(spec.get("tolerations") or (), f"{path}.tolerations")
    errors += _host_aliases(spec.get("hostAliases") or (), f"{path}.hostAliases")
    errors += optional_one_of(f"{path}.preemptionPolicy", spec.get("preemptionPolicy"), _PREEMPTION)
    return errors


def validate_pod_update(new: Object, old: Object) -> list[FieldError]:
    """Only images, a shorter deadline and more tolerations may come with an update."""
    after, before = copy(new.get("spec") or {}), old.get("spec") or {}
    errors: list[FieldError] = []
    for key in ("containers", "initContainers"):
        now, was = after.get(key) or [], before.get(key) or []
        if len(now) != len(was):
            return [forbidden_field(f"spec.{key}", "pod updates may not add or remove containers")]
        for i, (container, former) in enumerate(zip(now, was, strict=True)):
            image = container.get("image") or ""
            if not image:
                errors.append(required(f"spec.{key}[{i}].image"))
            elif image.strip() != image:
                detail = "must not have leading or trailing whitespace"
                errors.append(invalid_value(f"spec.{key}[{i}].image", image, detail))
            _restore(container, former, "image")
    errors += _deadline_update(after, before)
    errors += _toleration_update(after.get("tolerations") or [], before.get("tolerations") or [])
    if errors:
        return errors
    _restore(after, before, "activeDeadlineSeconds")
    _restore(after, before, "tolerations")
    if before.get("terminationGracePeriodSeconds", 0) < 0 and after.get("terminationGracePeriodSeconds") == 1:
        _restore(after, before, "terminationGracePeriodSeconds")
    if after != before:
        errors.append(forbidden_field("spec", f"{_UPDATE}\n{_difference(before, after)}"))
    return errors


def pod_warnings(spec: Object, path: str) -> list[str]:
    """What is allowed but most likely a mistake."""
    warnings: list[str] = []
    for key in ("initContainers", "containers"):
        for i, container in enumerate(spec.get(key) or ()):
            warnings += _container_warnings(container, f"{path}.{key}[{i}]")
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        warnings.append(
            f"{path}.terminationGracePeriodSeconds: must be >= 0; "
            "negative values are invalid and will be treated as 1"
        )
    return warnings


def _container_warnings(container: Object, path: str) -> list[str]:
    warnings: list[str] = []
    names_seen: set[str] = set()
    for j, variable in enumerate(container.get("env") or ()):
        name = variable.get("name") or ""
        if name in names_seen:
            warnings.append(
                f'{path}.env[{j}]: hides previous definition of "{name}", '
                "which may be dropped when using apply"
            )
        names_seen.add(name)
    ports_seen: dict[tuple[int, str], int] = {}
    for j, port in enumerate(container.get("ports") or ()):
        key = (port.get("containerPort") or 0, port.get("protocol") or "TCP")
        if key in ports_seen:
            warnings.append(
                f"{path}.ports[{j}]: duplicate port definition with {path}.ports[{ports_seen[key]}]"
            )
        ports_seen.setdefault(key, j)
    return warnings


def _security(spec: Object, path: str) -> list[FieldError]:
    context = spec.get("securityContext") or {}
    errors = user_ids(context, path)
    errors += [
        invalid_value(f"{path}.supplementalGroups[{i}]", gid, names.between(0, MAX_INT32))
        for i, gid in enumerate(context.get("supplementalGroups") or ())
        if not 0 <= gid <= MAX_INT32
    ]
    errors += seccomp(context.get("seccompProfile"), f"{path}.seccompProfile")
    policy = context.get("fsGroupChangePolicy")
    errors += optional_one_of(f"{path}.fsGroupChangePolicy", policy, ("Always", "OnRootMismatch"))
    seen: set[str] = set()
    for i, setting in enumerate(context.get("sysctls") or ()):
        name = setting.get("name") or ""
        if not name:
            errors.append(required(f"{path}.sysctls[{i}].name"))
        elif name in seen:
            errors.append(duplicate(f"{path}.sysctls[{i}].name", name))
        seen.add(name)
    return errors + _host_network_ports(spec, path)


def _host_network_ports(spec: Object, path: str) -> list[FieldError]:
    """With the host's network a container's port is the host's."""
    if not spec.get("hostNetwork"):
        return []
    root = path.removesuffix(".securityContext")
    return [
        invalid_value(
            f"{root}.containers[{i}].ports[{j}].containerPort",
            port.get("containerPort"),
            "must match `hostPort` when `hostNetwork` is true",
        )
        for i, container in enumerate(spec.get("containers") or ())
        for j, port in enumerate(container.get("ports") or ())
        if port.get("hostPort") and port["hostPort"] != port.get("containerPort")
    ]


def _dns_config(spec: Object, path: str) -> list[FieldError]:
    config = spec.get("dnsConfig")
    servers = (config or {}).get("nameservers") or []
    errors: list[FieldError] = []
    if spec.get("dnsPolicy") == "None":
        if config is None:
            return [required(path, "must provide `dnsConfig` when `dnsPolicy` is None")]
        if not servers:
            detail = "must provide at least one DNS nameserver when `dnsPolicy` is None"
            errors.append(required(f"{path}.nameservers", detail))
    if len(servers) > _NAMESERVERS_MAX:
        detail = f"must not have more than {_NAMESERVERS_MAX} nameservers"
        errors.append(invalid_value(f"{path}.nameservers", servers, detail))
    for i, server in enumerate(servers):
        errors += [invalid_value(f"{path}.nameservers[{i}]", server, m) for m in names.ip_address(server)]
    return errors


def _gates(gates: Sequence[Object], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, gate in enumerate(gates):
        kind = gate.get("conditionType") or ""
        errors += [invalid_value(f"{path}[{i}].conditionType", kind, m) for m in names.qualified_name(kind)]
    return errors


def _names(spec: Object, path: str) -> list[FieldError]:
    """The fields that name something."""
    rules = (
        ("serviceAccountName", names.dns_subdomain),
        ("nodeName", names.dns_subdomain),
        ("hostname", names.dns_label),
        ("subdomain", names.dns_label),
        ("priorityClassName", names.dns_subdomain),
        ("runtimeClassName", names.dns_subdomain),
    )
    return [
        invalid_value(f"{path}.{key}", spec[key], message)
        for key, rule in rules
        if spec.get(key)
        for message in rule(spec[key])
    ]


def _deadline(seconds: int | None, path: str) -> list[FieldError]:
    if seconds is None or 1 <= seconds <= MAX_INT32:
        return []
    return [invalid_value(path, seconds, names.between(1, MAX_INT32))]


def _deadline_update(after: Object, before: Object) -> list[FieldError]:
    path, now, was = "spec.activeDeadlineSeconds", *(s.get("activeDeadlineSeconds") for s in (after, before))
    if now is not None:
        if not 0 <= now <= MAX_INT32:
            return [invalid_value(path, now, names.between(0, MAX_INT32))]
        if was is not None and was < now:
            return [invalid_value(path, now, "must be less than or equal to previous value")]
    elif was is not None:
        return [invalid_value(path, None, "must not update from a positive integer to nil value")]
    return []


def _tolerations(tolerations: Sequence[Object], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, toleration in enumerate(tolerations):
        here, key = f"{path}[{i}]", toleration.get("key") or ""
        operator, value = toleration.get("operator") or "Equal", toleration.get("value") or ""
        effect = toleration.get("effect") or ""
        errors += [invalid_value(f"{here}.key", key, m) for m in (names.qualified_name(key) if key else ())]
        if not key and operator != "Exists":
            detail = (
                "operator must be Exists when `key` is empty, which means `match all values and all keys`"
            )
            errors.append(invalid_value(f"{here}.operator", operator, detail))
        if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
            detail = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            errors.append(invalid_value(f"{here}.effect", effect, detail))
        errors += one_of(f"{here}.operator", operator, ("Equal", "Exists"))
        if operator == "Exists" and value:
            detail = "value must be empty when `operator` is 'Exists'"
            errors.append(invalid_value(f"{here}.operator", toleration, detail))
        elif operator == "Equal":
            errors += [invalid_value(f"{here}.operator", value, m) for m in names.label_value(value)]
        if effect:
            errors += one_of(f"{here}.effect", effect, _EFFECTS)
    return errors


def _toleration_update(after: Sequence[Object], before: Sequence[Object]) -> list[FieldError]:
    detail = "existing toleration can not be modified except its tolerationSeconds"
    kept = [_identity(t) for t in after]
    if all(_identity(t) in kept for t in before):
        return []
    return [forbidden_field("spec.tolerations", detail)]


def _identity(toleration: Object) -> Object:
    return {k: v for k, v in toleration.items() if k != "tolerationSeconds"}


def _host_aliases(aliases: Sequence[Object], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, alias in enumerate(aliases):
        ip = alias.get("ip") or ""
        errors += [invalid_value(f"{path}[{i}].ip", ip, m) for m in names.ip_address(ip)]
        for j, name in enumerate(alias.get("hostnames") or ()):
            here = f"{path}[{i}].hostnames[{j}]"
            errors += [invalid_value(here, name, m) for m in names.dns_subdomain(name)]
    return errors


def _restore(new: Object, old: Mapping[str, object], key: str) -> None:
    if key in old:
        new[key] = old[key]
    else:
        new.pop(key, None)


def _difference(before: Object, after: Object) -> str:
    """A unified diff of the two specs, for the message; Kubernetes shows one of its internal type."""
    old, new = (json.dumps(s, indent=2, sort_keys=True).splitlines() for s in (before, after))
    lines = list(difflib.unified_diff(old, new, n=3, lineterm=""))[2:]
    return "\n".join(lines[:_DIFF_LINES]) + "\n"
