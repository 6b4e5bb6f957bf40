"""admissionregistration.k8s.io/v1: MutatingWebhookConfiguration and ValidatingWebhookConfiguration."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import cel

from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Column, Kind
from mesh_local.kinds.columns import AGE, NAME
from mesh_local.machinery import names, selectors
from mesh_local.machinery.errors import (
    FieldError,
    duplicate,
    invalid_value,
    not_supported,
    required,
)
from mesh_local.machinery.objects import Object, name_of

GROUP = "admissionregistration.k8s.io"
REVIEW_VERSIONS = ("v1", "v1beta1")
SIDE_EFFECTS = ("None", "NoneOnDryRun")
OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
SCOPES = ("*", "Cluster", "Namespaced")
MAX_MATCH_CONDITIONS = 64
URL_FORM = "; desired format: https://host[/path]"


def _default_hook(hook: Object) -> None:
    hook.setdefault("failurePolicy", "Fail")
    hook.setdefault("matchPolicy", "Equivalent")
    for key in ("namespaceSelector", "objectSelector"):
        if hook.get(key) is None:
            hook[key] = {}
    if hook.get("timeoutSeconds") is None:
        hook["timeoutSeconds"] = 10
    for rule in hook.get("rules") or []:
        rule.setdefault("scope", "*")
    service = (hook.get("clientConfig") or {}).get("service")
    if service is not None and service.get("port") is None:
        service["port"] = 443


def _default_validating(obj: Object) -> None:
    for hook in obj.get("webhooks") or []:
        _default_hook(hook)


def _default_mutating(obj: Object) -> None:
    _default_validating(obj)
    for hook in obj.get("webhooks") or []:
        hook.setdefault("reinvocationPolicy", "Never")


def _qualified_name(name: str, path: str) -> list[FieldError]:
    if not name:
        return [required(path)]
    found = [invalid_value(path, name, text) for text in names.dns_subdomain(name)]
    if not found and name.count(".") < 2:
        detail = "should be a domain with at least three segments separated by dots"
        found.append(invalid_value(path, name, detail))
    return found


def _wildcard_alone(values: Sequence[str], path: str, what: str) -> list[FieldError]:
    if len(values) > 1 and "*" in values:
        return [invalid_value(path, values, f"if '*' is present, must not specify other {what}")]
    return []


def _validate_resources(resources: Sequence[str], path: str) -> list[FieldError]:
    """The rules for `pods`, `pods/log`, `pods/*`, `*/log`, `*` and `*/*` beside each other."""
    if not resources:
        return [required(path)]
    found = []
    every_sub: set[str] = set()
    every_resource: set[str] = set()
    for i, entry in enumerate(resources):
        field = f"{path}[{i}]"
        if not entry:
            found.append(required(field))
            continue
        resource, slash, sub = entry.partition("/")
        if not slash:
            continue
        if resource in every_sub:
            found.append(
                invalid_value(field, entry, f"if '{resource}/*' is present, must not specify {entry}")
            )
        if sub in every_resource:
            found.append(invalid_value(field, entry, f"if '*/{sub}' is present, must not specify {entry}"))
        if sub == "*":
            every_sub.add(resource)
        if resource == "*":
            every_resource.add(sub)
    if len(resources) > 1 and "*/*" in resources:
        found.append(invalid_value(path, resources, "if '*/*' is present, must not specify other resources"))
    if "*" in resources and any(r != "*" and "/" not in r for r in resources):
        detail = "if '*' is present, must not specify other resources without subresources"
        found.append(invalid_value(path, resources, detail))
    return found


def _validate_rule(rule: Object, path: str) -> list[FieldError]:
    found = []
    operations = rule.get("operations") or []
    if not operations:
        found.append(required(f"{path}.operations"))
    found += _wildcard_alone(operations, f"{path}.operations", "operations")
    for i, operation in enumerate(operations):
        if operation not in OPERATIONS:
            found.append(not_supported(f"{path}.operations[{i}]", operation, OPERATIONS))
    groups, versions = rule.get("apiGroups") or [], rule.get("apiVersions") or []
    if not groups:
        found.append(required(f"{path}.apiGroups"))
    found += _wildcard_alone(groups, f"{path}.apiGroups", "API groups")
    if not versions:
        found.append(required(f"{path}.apiVersions"))
    found += _wildcard_alone(versions, f"{path}.apiVersions", "API versions")
    found += [required(f"{path}.apiVersions[{i}]") for i, v in enumerate(versions) if not v]
    found += _validate_resources(rule.get("resources") or [], f"{path}.resources")
    if rule.get("scope") not in (None, *SCOPES):
        found.append(not_supported(f"{path}.scope", rule["scope"], SCOPES))
    return found


def _validate_url(url: str, path: str) -> list[FieldError]:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where the port is no number
    except ValueError as e:
        return [required(path, f"url must be a valid URL: {e}{URL_FORM}")]
    found = []
    if parts.scheme != "https":
        detail = f"'https' is the only allowed URL scheme{URL_FORM}"
        found.append(invalid_value(path, parts.scheme, detail))
    host = parts.netloc.rpartition("@")[2]
    if not host:
        found.append(invalid_value(path, host, f"host must be specified{URL_FORM}"))
    if "@" in parts.netloc:
        user = parts.netloc.rpartition("@")[0]
        found.append(invalid_value(path, user, "user information is not permitted in the URL"))
    if parts.fragment:
        found.append(invalid_value(path, parts.fragment, "fragments are not permitted in the URL"))
    if parts.query:
        found.append(invalid_value(path, parts.query, "query parameters are not permitted in the URL"))
    return found


def _validate_service_path(path: str, field: str) -> list[FieldError]:
    if path in ("", "/"):
        return []
    if path == "//":
        return [invalid_value(field, path, "segment[0] may not be empty")]
    found = []
    if not path.startswith("/"):
        found.append(invalid_value(field, path, "must start with a '/'"))
    for i, step in enumerate(path[1:].removesuffix("/").split("/")):
        if not step:
            found.append(invalid_value(field, path, f"segment[{i}] may not be empty"))
            continue
        found += [invalid_value(field, path, f"segment[{i}]: {t}") for t in names.dns_subdomain(step)]
    return found


def _validate_client_config(config: Object, path: str) -> list[FieldError]:
    """clientConfig, as every kind of webhook (admission, conversion) has it."""
    url, service = config.get("url"), config.get("service")
    if (url is None) == (service is None):
        return [required(path, "exactly one of url or service is required")]
    if service is None:
        return _validate_url(str(url), f"{path}.url")
    found = [
        required(f"{path}.service.{key}", f"service {key} is required")
        for key in ("name", "namespace")
        if not service.get(key)
    ]
    port = service.get("port", 443)
    if not 1 <= port <= 65535:
        detail = "port is not valid: must be between 1 and 65535, inclusive"
        found.append(invalid_value(f"{path}.service.port", port, detail))
    return found + _validate_service_path(service.get("path") or "", f"{path}.service.path")


def _validate_match_conditions(conditions: Sequence[Object], path: str) -> list[FieldError]:
    found = []
    if len(conditions) > MAX_MATCH_CONDITIONS:
        detail = f"must have at most {MAX_MATCH_CONDITIONS} items"
        found.append(FieldError("FieldValueTooMany", path, detail, len(conditions)))
    seen: set[str] = set()
    for i, condition in enumerate(conditions):
        expression, name = condition.get("expression") or "", condition.get("name") or ""
        field = f"{path}[{i}]"
        if not expression.strip():
            found.append(required(f"{field}.expression"))
        else:
            try:
                cel.compile(expression)
            except ValueError as e:
                detail = f"compilation failed: {e}"
                found.append(invalid_value(f"{field}.expression", expression, detail))
        if not name:
            found.append(required(f"{field}.name"))
        else:
            found += [invalid_value(f"{field}.name", name, t) for t in names.qualified_name(name)]
        if name and name in seen:
            found.append(duplicate(f"{field}.name", name))
        seen.add(name)
    return found


def _validate_hook(hook: Object, path: str, *, mutating: bool) -> list[FieldError]:
    found = _qualified_name(hook.get("name") or "", f"{path}.name")
    for i, rule in enumerate(hook.get("rules") or []):
        found += _validate_rule(rule, f"{path}.rules[{i}]")
    choices = {"failurePolicy": ("Fail", "Ignore"), "matchPolicy": ("Equivalent", "Exact")}
    for key, supported in choices.items():
        if hook.get(key) not in (None, *supported):
            found.append(not_supported(f"{path}.{key}", hook[key], supported))
    effects = hook.get("sideEffects")
    if effects is None:
        found.append(required(f"{path}.sideEffects", f"must specify one of {', '.join(SIDE_EFFECTS)}"))
    elif effects not in SIDE_EFFECTS:
        found.append(not_supported(f"{path}.sideEffects", effects, SIDE_EFFECTS))
    timeout = hook.get("timeoutSeconds", 10)
    if not 1 <= timeout <= 30:
        detail = "the timeout value must be between 1 and 30 seconds"
        found.append(invalid_value(f"{path}.timeoutSeconds", timeout, detail))
    for key in ("namespaceSelector", "objectSelector"):
        found += selectors.validate_label_selector(hook.get(key) or {}, f"{path}.{key}")
    if mutating and hook.get("reinvocationPolicy") not in (None, "IfNeeded", "Never"):
        policies = ("IfNeeded", "Never")
        found.append(not_supported(f"{path}.reinvocationPolicy", hook["reinvocationPolicy"], policies))
    found += _validate_client_config(hook.get("clientConfig") or {}, f"{path}.clientConfig")
    return found + _validate_match_conditions(hook.get("matchConditions") or [], f"{path}.matchConditions")


def _validate_review_versions(versions: Sequence[str], path: str) -> list[FieldError]:
    accepted = ", ".join(REVIEW_VERSIONS)
    if not versions:
        return [required(path, f"must specify one of {accepted}")]
    found = []
    for i, version in enumerate(versions):
        if version in versions[:i]:
            found.append(invalid_value(f"{path}[{i}]", version, "duplicate version"))
            continue
        found += [invalid_value(f"{path}[{i}]", version, t) for t in names.dns1035_label(version)]
    if not set(versions) & set(REVIEW_VERSIONS):
        found.append(invalid_value(path, list(versions), f"must include at least one of {accepted}"))
    return found


def _validate(obj: Object, *, mutating: bool) -> list[FieldError]:
    found = []
    seen: set[str] = set()
    for i, hook in enumerate(obj.get("webhooks") or []):
        path = f"webhooks[{i}]"
        found += _validate_hook(hook, path, mutating=mutating)
        versions = hook.get("admissionReviewVersions") or []
        found += _validate_review_versions(versions, f"{path}.admissionReviewVersions")
        name = hook.get("name") or ""
        if name and name in seen:
            found.append(duplicate(f"{path}.name", name))
        seen.add(name)
    return found


def _row(obj: Object, now: datetime) -> list[Any]:
    return [name_of(obj), len(obj.get("webhooks") or []), age_of(obj, now)]


COLUMNS = (
    NAME,
    Column(
        "Webhooks",
        type="integer",
        description="Webhooks indicates the number of webhooks registered in this configuration",
    ),
    AGE,
)


def _kind(prefix: str, *, mutating: bool, default: Callable[[Object], None]) -> Kind:
    kind = f"{prefix}WebhookConfiguration"
    return Kind(
        kind=kind,
        plural=f"{kind.lower()}s",
        singular=kind.lower(),
        group=GROUP,
        namespaced=False,
        categories=("api-extensions",),
        definition=f"io.k8s.api.admissionregistration.v1.{kind}",
        spec_fields=("webhooks",),
        default=default,
        validate=lambda obj: _validate(obj, mutating=mutating),
        validate_update=lambda new, _old: _validate(new, mutating=mutating),
        columns=COLUMNS,
        row=_row,
    )


MUTATING = _kind("Mutating", mutating=True, default=_default_mutating)
VALIDATING = _kind("Validating", mutating=False, default=_default_validating)
KINDS = (MUTATING, VALIDATING)
