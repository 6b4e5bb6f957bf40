"""batch/v1 Job."""

from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age, age_of
from mesh_local.kinds.base import Kind
from mesh_local.kinds.checks import immutable, non_negative, one_of
from mesh_local.kinds.hooks import field, keep_all_but_status, keep_status, status_subresource
from mesh_local.kinds.pod_defaults import default_template
from mesh_local.kinds.pod_validation import validate_template
from mesh_local.kinds.template import (
    TEMPLATE,
    selector_text,
    selects_template,
    template_cells,
    template_warnings,
)
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, invalid_value, not_supported, required
from mesh_local.machinery.objects import (
    Object,
    condition,
    copy,
    dig,
    is_deleting,
    meta,
    name_of,
    parse_time,
    uid_of,
)
from mesh_local.machinery.selectors import validate_label_selector

_UID_LABEL = "batch.kubernetes.io/controller-uid"
_NAME_LABELS = ("job-name", "batch.kubernetes.io/job-name")
_UID_LABELS = ("controller-uid", _UID_LABEL)
_COUNTS = ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished")
_FIXED = ("completions", "selector", "template", "completionMode", "podFailurePolicy", "backoffLimitPerIndex")


def _default(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if spec.get("parallelism") is None:
        spec["parallelism"] = 1
        spec.setdefault("completions", 1)
    spec.setdefault("backoffLimit", 6 if spec.get("backoffLimitPerIndex") is None else 2**31 - 1)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("manualSelector", False)
    failed = spec.get("podFailurePolicy") is not None
    spec.setdefault("podReplacementPolicy", "Failed" if failed else "TerminatingOrFailed")
    default_template(spec.setdefault("template", {}))
    _labels_from_template(obj)


def _labels_from_template(obj: Object) -> None:
    """A Job without labels takes those of its template."""
    labels = dig(obj, "spec", "template", "metadata", "labels")
    if labels and not meta(obj).get("labels"):
        meta(obj)["labels"] = copy(labels)


def _prepare_create(obj: Object) -> None:
    """Give the Pods labels of their own, and select them by the Job's uid."""
    obj["status"] = {}
    spec = obj["spec"]
    if not spec.get("manualSelector"):
        labels = spec["template"]["metadata"].setdefault("labels", {})
        for key, value in _own_labels(obj).items():
            labels.setdefault(key, value)
        selector = spec.setdefault("selector", {}).setdefault("matchLabels", {})
        selector.setdefault(_UID_LABEL, uid_of(obj))
    _labels_from_template(obj)


def _own_labels(obj: Object) -> dict[str, str]:
    return {**dict.fromkeys(_UID_LABELS, uid_of(obj)), **dict.fromkeys(_NAME_LABELS, name_of(obj))}


def _validate(obj: Object) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = _generated(obj)
    for key in _COUNTS:
        errors += non_negative(f"spec.{key}", spec.get(key))
    errors += one_of("spec.completionMode", spec.get("completionMode"), ("Indexed", "NonIndexed"))
    errors += validate_template(spec.get("template") or {}, TEMPLATE)
    policy = dig(spec, "template", "spec", "restartPolicy")
    if policy not in ("OnFailure", "Never"):
        errors.append(not_supported(f"{TEMPLATE}.spec.restartPolicy", policy, ("OnFailure", "Never")))
    selector = spec.get("selector")
    if selector is None:
        return [*errors, required("spec.selector")]
    wrong = validate_label_selector(selector, "spec.selector")
    return errors + (wrong or selects_template(spec))


def _generated(obj: Object) -> list[FieldError]:
    """With a generated selector the template's labels must be the generated ones."""
    spec = obj.get("spec") or {}
    if spec.get("manualSelector") or spec.get("selector") is None:
        return []
    labels = dig(spec, "template", "metadata", "labels", default={})
    path = f"{TEMPLATE}.metadata.labels"
    errors = [
        invalid_value(path, dict(sorted(labels.items())), f"must be '{expected}'")
        for key, expected in _own_labels(obj).items()
        if labels.get(key) != expected
    ]
    if dig(spec, "selector", "matchLabels", _UID_LABEL) != uid_of(obj):
        errors.append(invalid_value("spec.selector", spec["selector"], "`selector` not auto-generated"))
    return errors


def _validate_update(new: Object, old: Object) -> list[FieldError]:
    errors = _validate(new)
    for key in _FIXED:
        errors += immutable(f"spec.{key}", dig(new, "spec", key), dig(old, "spec", key))
    return errors


def _status(obj: Object) -> str:
    for type_ in ("Complete", "Failed"):
        if _holds(obj, type_):
            return type_
    if is_deleting(obj):
        return "Terminating"
    return next(
        (t for t in ("Suspended", "FailureTarget", "SuccessCriteriaMet") if _holds(obj, t)), "Running"
    )


def _holds(obj: Object, type_: str) -> bool:
    return (condition(obj, type_) or {}).get("status") == "True"


def _completions(obj: Object) -> str:
    spec, done = obj.get("spec") or {}, dig(obj, "status", "succeeded", default=0)
    if spec.get("completions") is not None:
        return f"{done}/{spec['completions']}"
    parallelism = spec.get("parallelism") or 0
    return f"{done}/1 of {parallelism}" if parallelism > 1 else f"{done}/1"


def _duration(obj: Object, now: datetime) -> str:
    started, ended = dig(obj, "status", "startTime"), dig(obj, "status", "completionTime")
    if not started:
        return ""
    return age((parse_time(ended) if ended else now) - parse_time(started))


def _row(obj: Object, now: datetime) -> list[Any]:
    return [
        name_of(obj),
        _status(obj),
        _completions(obj),
        _duration(obj, now),
        age_of(obj, now),
        *template_cells(obj),
        selector_text(obj) or "<none>",
    ]


JOB = Kind(
    kind="Job",
    plural="jobs",
    singular="job",
    group="batch",
    categories=("all",),
    subresources=(status_subresource("Job"),),
    definition="io.k8s.api.batch.v1.Job",
    default=_default,
    prepare_create=_prepare_create,
    prepare_update=keep_status,
    prepare_status=keep_all_but_status,
    validate=_validate,
    validate_update=_validate_update,
    name_rule=names.dns_subdomain,
    columns=columns.JOB,
    row=_row,
    fields={"status.successful": field("status", "succeeded", default="0")},
    warnings=template_warnings,
)

KINDS = (JOB,)
