"""What may be wrong with the containers of a Pod or pod template (core validation of Kubernetes)."""

from collections.abc import Mapping, Sequence

from mesh_local.kinds.checks import PROTOCOLS, one_of, port_number
from mesh_local.kinds.pod_columns import is_sidecar
from mesh_local.kinds.probe_validation import validate_lifecycle, validate_probes
from mesh_local.machinery import names, quantity
from mesh_local.machinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_found_value,
    not_supported,
    required,
)
from mesh_local.machinery.objects import Object, dig

_PULL = ("Always", "IfNotPresent", "Never")
_MESSAGE_POLICIES = ("FallbackToLogsOnError", "File")
_RESTART = ("Always", "Never", "OnFailure")
_NOT_FOR_INIT = "may not be set for init containers without restartPolicy=Always"
_STANDARD_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_FIELD_PATHS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_RESOURCES = (
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
)
_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")


def validate_containers(spec: Object, volumes: Sequence[str], path: str) -> list[FieldError]:
    """`containers`: at least one, named apart, host ports apart."""
    containers = spec.get("containers") or []
    if not containers:
        return [required(path)]
    errors: list[FieldError] = []
    seen: set[str] = set()
    for i, container in enumerate(containers):
        here, name = f"{path}[{i}]", container.get("name") or ""
        errors += _common(container, volumes, here)
        if name in seen:
            errors.append(duplicate(f"{here}.name", name))
        seen.add(name)
        errors += validate_lifecycle(container.get("lifecycle"), f"{here}.lifecycle")
        errors += validate_probes(container, here)
        errors += _restart_policy(container, here)
    return errors + _host_ports(containers, path)


def validate_init_containers(spec: Object, volumes: Sequence[str], path: str) -> list[FieldError]:
    """`initContainers`: their names differ from each other and from those of the containers."""
    errors: list[FieldError] = []
    seen = {c.get("name") or "" for c in spec.get("containers") or ()}
    for i, container in enumerate(spec.get("initContainers") or ()):
        here, name = f"{path}[{i}]", container.get("name") or ""
        errors += _common(container, volumes, here)
        errors += _restart_policy(container, here)
        if name and name in seen:
            errors.append(duplicate(f"{here}.name", name))
        seen.add(name)
        errors += _host_ports([container], path)
        if is_sidecar(container):
            errors += validate_lifecycle(container.get("lifecycle"), f"{here}.lifecycle")
            errors += validate_probes(container, here)
            continue
        errors += [
            forbidden_field(f"{here}.{key}", _NOT_FOR_INIT)
            for key in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
            if container.get(key) is not None
        ]
    return errors


def _common(container: Object, volumes: Sequence[str], path: str) -> list[FieldError]:
    name, image = container.get("name") or "", container.get("image") or ""
    errors = []
    if not name:
        errors.append(required(f"{path}.name"))
    errors += [invalid_value(f"{path}.name", name, m) for m in (names.dns_label(name) if name else ())]
    if not image:
        errors.append(required(f"{path}.image"))
    elif image.strip() != image:
        errors.append(invalid_value(f"{path}.image", image, "must not have leading or trailing whitespace"))
    policy = container.get("terminationMessagePolicy")
    return [
        *errors,
        *one_of(f"{path}.terminationMessagePolicy", policy, _MESSAGE_POLICIES),
        *_ports(container.get("ports") or (), f"{path}.ports"),
        *_env(container.get("env") or (), f"{path}.env"),
        *_env_from(container.get("envFrom") or (), f"{path}.envFrom"),
        *_mounts(container.get("volumeMounts") or (), volumes, f"{path}.volumeMounts"),
        *one_of(f"{path}.imagePullPolicy", container.get("imagePullPolicy"), _PULL),
        *_resources(container.get("resources") or {}, f"{path}.resources"),
        *_security(container.get("securityContext") or {}, f"{path}.securityContext"),
    ]


def _restart_policy(container: Object, path: str) -> list[FieldError]:
    policy = container.get("restartPolicy")
    if policy is None or policy in _RESTART:
        return []
    return [not_supported(f"{path}.restartPolicy", policy, _RESTART)]


def _ports(ports: Sequence[Object], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for i, port in enumerate(ports):
        here, name = f"{path}[{i}]", port.get("name") or ""
        wrong = names.port_name(name) if name else []
        errors += [invalid_value(f"{here}.name", name, m) for m in wrong]
        if name and not wrong:
            if name in seen:
                errors.append(duplicate(f"{here}.name", name))
            seen.add(name)
        if not port.get("containerPort"):
            errors.append(required(f"{here}.containerPort"))
        else:
            errors += port_number(f"{here}.containerPort", port["containerPort"])
        if port.get("hostPort"):
            errors += port_number(f"{here}.hostPort", port["hostPort"])
        errors += one_of(f"{here}.protocol", port.get("protocol"), PROTOCOLS)
    return errors


def _host_ports(containers: Sequence[Object], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for i, container in enumerate(containers):
        for j, port in enumerate(container.get("ports") or ()):
            if not port.get("hostPort"):
                continue
            key = f"{port.get('protocol')}/{port.get('hostIP') or ''}/{port['hostPort']}"
            if key in seen:
                errors.append(duplicate(f"{path}[{i}].ports[{j}].hostPort", key))
            seen.add(key)
    return errors


def _env(variables: Sequence[Object], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, variable in enumerate(variables):
        here, name = f"{path}[{i}]", variable.get("name") or ""
        if not name:
            errors.append(required(f"{here}.name"))
        else:
            errors += [invalid_value(f"{here}.name", name, m) for m in names.env_var_name(name)]
        if (source := variable.get("valueFrom")) is not None:
            errors += _value_from(source, variable.get("value") or "", f"{here}.valueFrom")
    return errors


def _value_from(source: Object, value: str, path: str) -> list[FieldError]:
    given = [key for key in _SOURCES if source.get(key) is not None]
    errors: list[FieldError] = []
    for key in given:
        if key == "fieldRef":
            errors += validate_field_ref(source[key], f"{path}.{key}", _FIELD_PATHS)
        elif key == "resourceFieldRef":
            errors += validate_resource_ref(source[key], f"{path}.{key}")
        elif key in ("configMapKeyRef", "secretKeyRef"):
            errors += _key_ref(source[key], f"{path}.{key}")
    if not given:
        options = "`fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        errors.append(invalid_value(path, "", f"must specify one of: {options}"))
    elif value:
        errors.append(invalid_value(path, "", "may not be specified when `value` is not empty"))
    elif len(given) > 1:
        errors.append(invalid_value(path, "", "may not have more than one field specified at a time"))
    return errors


def validate_field_ref(reference: Object, path: str, allowed: Sequence[str]) -> list[FieldError]:
    """A downward API field: one of `allowed`, or a label or annotation by key."""
    target = reference.get("fieldPath") or ""
    if not target:
        return [required(f"{path}.fieldPath")]
    base, bracket, key = target.partition("['")
    if bracket and key.endswith("']") and base in ("metadata.labels", "metadata.annotations"):
        text = key[:-2] if base == "metadata.labels" else key[:-2].lower()
        return [invalid_value(path, text, m) for m in names.qualified_name(text)]
    if target in allowed:
        return []
    if target in (*_FIELD_PATHS, "metadata.labels", "metadata.annotations"):
        return [not_supported(f"{path}.fieldPath", target, sorted(allowed))]
    detail = f"error converting fieldPath: field label not supported: {target}"
    return [invalid_value(f"{path}.fieldPath", target, detail)]


def validate_resource_ref(reference: Object, path: str, *, needs_container: bool = False) -> list[FieldError]:
    if needs_container and not reference.get("containerName"):
        return [required(f"{path}.containerName")]
    resource = reference.get("resource") or ""
    if not resource:
        return [required(f"{path}.resource")]
    if resource in _RESOURCES or resource.startswith(("limits.hugepages-", "requests.hugepages-")):
        return []
    return [not_supported(f"{path}.resource", resource, _RESOURCES)]


def _key_ref(reference: Object, path: str) -> list[FieldError]:
    key = reference.get("key") or ""
    if not key:
        return [required(f"{path}.key")]
    return [invalid_value(f"{path}.key", key, m) for m in names.config_key(key)]


def _env_from(sources: Sequence[Object], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, source in enumerate(sources):
        here, prefix = f"{path}[{i}]", source.get("prefix") or ""
        if prefix:
            errors += [invalid_value(f"{here}.prefix", prefix, m) for m in names.env_var_name(prefix)]
        given = [key for key in ("configMapRef", "secretRef") if source.get(key) is not None]
        errors += [required(f"{here}.{key}.name") for key in given if not source[key].get("name")]
        if not given:
            errors.append(invalid_value(path, "", "must specify one of: `configMapRef` or `secretRef`"))
        elif len(given) > 1:
            errors.append(invalid_value(path, "", "may not have more than one field specified at a time"))
    return errors


def _mounts(mounts: Sequence[Object], volumes: Sequence[str], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for i, mount in enumerate(mounts):
        here, name, target = f"{path}[{i}]", mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            errors.append(required(f"{here}.name"))
        if name not in volumes:
            errors.append(not_found_value(f"{here}.name", name))
        if not target:
            errors.append(required(f"{here}.mountPath"))
        if target in seen:
            errors.append(invalid_value(f"{here}.mountPath", target, "must be unique"))
        seen.add(target)
        for key in ("subPath", "subPathExpr"):
            if below := mount.get(key):
                errors += descending_path(below, f"{here}.{key}")
        if mount.get("subPath") and mount.get("subPathExpr"):
            detail = "subPathExpr and subPath are mutually exclusive"
            errors.append(invalid_value(f"{here}.subPathExpr", mount["subPathExpr"], detail))
    return errors


def descending_path(target: str, path: str) -> list[FieldError]:
    """A relative path that never leaves its directory."""
    if target.startswith("/"):
        return [invalid_value(path, target, "must be a relative path")]
    if ".." in target.split("/"):
        return [invalid_value(path, target, "must not contain '..'")]
    return []


def _resources(resources: Object, path: str) -> list[FieldError]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    errors = _amounts(limits, f"{path}.limits")
    errors += _amounts(requests, f"{path}.requests")
    for name, amount in sorted(requests.items()):
        limit = limits.get(name)
        if limit is None:
            if not _may_overcommit(name):
                errors.append(
                    required(f"{path}.limits", "Limit must be set for non overcommitable resources")
                )
        elif not _may_overcommit(name) and quantity.parse(amount) != quantity.parse(limit):
            errors.append(
                invalid_value(f"{path}.requests", amount, f"must be equal to {name} limit of {limit}")
            )
        elif quantity.parse(amount) > quantity.parse(limit):
            detail = f"must be less than or equal to {name} limit of {limit}"
            errors.append(invalid_value(f"{path}.requests", amount, detail))
    return errors


def _may_overcommit(name: str) -> bool:
    """Only native resources may be requested below their limit, and no huge pages."""
    native = "/" not in name or "kubernetes.io/" in name
    return native and not name.startswith("hugepages-")


def _amounts(amounts: Mapping[str, str], path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for name, amount in sorted(amounts.items()):
        here = f"{path}[{name}]"
        wrong = names.qualified_name(name)
        errors += [invalid_value(here, name, m) for m in wrong]
        if not wrong and "/" not in name and not _standard(name):
            errors.append(invalid_value(here, name, "must be a standard resource for containers"))
        if quantity.parse(amount).value < 0:
            errors.append(invalid_value(here, amount, "must be greater than or equal to 0"))
    return errors


def _standard(name: str) -> bool:
    return name in _STANDARD_RESOURCES or name.startswith("hugepages-")


def _security(context: Object, path: str) -> list[FieldError]:
    errors = user_ids(context, path)
    errors += seccomp(context.get("seccompProfile"), f"{path}.seccompProfile")
    if context.get("allowPrivilegeEscalation") is False:
        start = "cannot set `allowPrivilegeEscalation` to false and"
        if context.get("privileged"):
            errors.append(invalid_value(path, context, f"{start} `privileged` to true"))
        if "CAP_SYS_ADMIN" in dig(context, "capabilities", "add", default=[]):
            errors.append(invalid_value(path, context, f"{start} `capabilities.Add` CAP_SYS_ADMIN"))
    return errors


def user_ids(context: Object, path: str) -> list[FieldError]:
    """User and group ids are what a signed 32-bit number can hold."""
    return [
        invalid_value(f"{path}.{key}", context[key], names.between(0, 2**31 - 1))
        for key in ("runAsUser", "runAsGroup", "fsGroup")
        if context.get(key) is not None and not 0 <= context[key] < 2**31
    ]


def seccomp(profile: Object | None, path: str) -> list[FieldError]:
    if profile is None:
        return []
    errors = one_of(f"{path}.type", profile.get("type"), ("Localhost", "RuntimeDefault", "Unconfined"))
    local = profile.get("localhostProfile")
    if profile.get("type") == "Localhost":
        if not local:
            errors.append(required(f"{path}.localhostProfile", "must be set when seccomp type is Localhost"))
        else:
            errors += descending_path(local, f"{path}.localhostProfile")
    elif local is not None:
        detail = "can only be set when seccomp type is Localhost"
        errors.append(invalid_value(f"{path}.localhostProfile", local, detail))
    return errors
