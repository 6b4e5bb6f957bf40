"""What may be wrong with a Deployment or a ReplicaSet."""

from mesh_local.kinds.checks import immutable, non_negative
from mesh_local.kinds.pod_validation import validate_template
from mesh_local.kinds.template import TEMPLATE, selects_template
from mesh_local.machinery import names
from mesh_local.machinery.errors import (
    FieldError,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from mesh_local.machinery.objects import Object, dig
from mesh_local.machinery.selectors import validate_label_selector

_STRATEGIES = ("Recreate", "RollingUpdate")


def validate_deployment(obj: Object) -> list[FieldError]:
    spec = obj.get("spec") or {}
    return [
        *non_negative("spec.replicas", spec.get("replicas")),
        *_selector_and_template(spec),
        *_strategy(spec.get("strategy") or {}, "spec.strategy"),
        *non_negative("spec.minReadySeconds", spec.get("minReadySeconds")),
        *non_negative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit")),
        *_progress_deadline(spec),
    ]


def validate_replica_set(obj: Object) -> list[FieldError]:
    spec = obj.get("spec") or {}
    return [
        *non_negative("spec.replicas", spec.get("replicas")),
        *non_negative("spec.minReadySeconds", spec.get("minReadySeconds")),
        *_selector_and_template(spec),
    ]


def update_deployment(new: Object, old: Object) -> list[FieldError]:
    return validate_deployment(new) + _same_selector(new, old)


def update_replica_set(new: Object, old: Object) -> list[FieldError]:
    return validate_replica_set(new) + _same_selector(new, old)


def _same_selector(new: Object, old: Object) -> list[FieldError]:
    return immutable("spec.selector", dig(new, "spec", "selector"), dig(old, "spec", "selector"))


def _selector_and_template(spec: Object) -> list[FieldError]:
    selector = spec.get("selector")
    if selector is None:
        errors = [required("spec.selector")]
    else:
        errors = validate_label_selector(selector, "spec.selector")
        if errors:
            return [*errors, invalid_value("spec.selector", selector, "invalid label selector")]
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            detail = "empty selector is invalid for deployment"
            errors.append(invalid_value("spec.selector", selector, detail))
    return errors + selects_template(spec) + _template(spec.get("template") or {})


def _template(template: Object) -> list[FieldError]:
    errors = validate_template(template, TEMPLATE)
    pod = template.get("spec") or {}
    if pod.get("restartPolicy") != "Always":
        path = f"{TEMPLATE}.spec.restartPolicy"
        errors.append(not_supported(path, pod.get("restartPolicy"), ("Always",)))
    if pod.get("activeDeadlineSeconds") is not None:
        detail = "activeDeadlineSeconds in ReplicaSet is not Supported"
        errors.append(forbidden_field(f"{TEMPLATE}.spec.activeDeadlineSeconds", detail))
    return errors


def _strategy(strategy: Object, path: str) -> list[FieldError]:
    kind, rolling = strategy.get("type") or "", strategy.get("rollingUpdate")
    if kind not in _STRATEGIES:
        return [not_supported(f"{path}.type", kind, _STRATEGIES)]
    if kind == "Recreate":
        detail = "may not be specified when strategy `type` is 'Recreate'"
        return [forbidden_field(f"{path}.rollingUpdate", detail)] if rolling is not None else []
    return _rolling_update(rolling or {}, f"{path}.rollingUpdate")


def _rolling_update(rolling: Object, path: str) -> list[FieldError]:
    unavailable, surge = rolling.get("maxUnavailable") or 0, rolling.get("maxSurge") or 0
    errors = _count_or_percent(unavailable, f"{path}.maxUnavailable")
    errors += _count_or_percent(surge, f"{path}.maxSurge")
    if _number(unavailable) == 0 and _number(surge) == 0:
        detail = "may not be 0 when `maxSurge` is 0"
        errors.append(invalid_value(f"{path}.maxUnavailable", unavailable, detail))
    if isinstance(unavailable, str) and _number(unavailable) > 100:
        errors.append(invalid_value(f"{path}.maxUnavailable", unavailable, "must not be greater than 100%"))
    return errors


def _count_or_percent(value: int | str, path: str) -> list[FieldError]:
    if isinstance(value, str):
        return [invalid_value(path, value, m) for m in names.percent(value)]
    return non_negative(path, value)


def _number(value: int | str) -> int:
    """The number in `25%` or `3`; text that is neither counts as 0, as it is an error already."""
    if isinstance(value, int):
        return value
    return 0 if names.percent(value) else int(value.removesuffix("%"))


def _progress_deadline(spec: Object) -> list[FieldError]:
    seconds = spec.get("progressDeadlineSeconds")
    if seconds is None:
        return []
    path = "spec.progressDeadlineSeconds"
    errors = non_negative(path, seconds)
    if seconds <= (spec.get("minReadySeconds") or 0):
        errors.append(invalid_value(path, seconds, "must be greater than minReadySeconds"))
    return errors
