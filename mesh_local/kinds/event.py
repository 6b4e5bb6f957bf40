"""Events: core/v1 and events.k8s.io/v1 are two views of one store, which holds the core form."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import since
from mesh_local.kinds.base import Kind
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, invalid_value, required
from mesh_local.machinery.objects import Object, dig, name_of, namespace_of, parse_time

_CORE_DEFAULTS: Object = {
    "involvedObject": {},
    "source": {},
    "firstTimestamp": None,
    "lastTimestamp": None,
    "eventTime": None,
    "reportingComponent": "",
    "reportingInstance": "",
}
_NEW_DEFAULTS: Object = {
    "regarding": {},
    "eventTime": None,
    "deprecatedSource": {},
    "deprecatedFirstTimestamp": None,
    "deprecatedLastTimestamp": None,
}
# events.k8s.io name -> core name
_RENAMED = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_CORE_NAMES = {core: new for new, core in _RENAMED.items()}
_REFERENCE = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_NAME_MAX = 128
_NOTE_MAX = 1024


def to_core(obj: Object) -> Object:
    """The core/v1 form of an event of either version."""
    if obj.get("apiVersion") != "events.k8s.io/v1":
        return obj
    core = {_RENAMED.get(k, k): v for k, v in obj.items()}
    core["apiVersion"] = "v1"
    for key, value in _CORE_DEFAULTS.items():
        core.setdefault(key, value)
    return core


def from_core(obj: Object) -> Object:
    """The events.k8s.io/v1 form of a stored event."""
    new = {_CORE_NAMES.get(k, k): v for k, v in obj.items()}
    new["apiVersion"] = "events.k8s.io/v1"
    return {k: v for k, v in new.items() if v != "" and (v is not None or k in _NEW_DEFAULTS)}


def last_seen(core: Object, now: datetime) -> datetime:
    """When a stored event last happened; times in the future do not count."""
    given = (
        dig(core, "series", "lastObservedTime"),
        core.get("lastTimestamp"),
        core.get("eventTime"),
        core["metadata"]["creationTimestamp"],
    )
    return max((moment for text in given if text and (moment := parse_time(text)) <= now), default=now)


def _fill(defaults: Object) -> Callable[[Object], None]:
    def default(obj: Object) -> None:
        for key, value in defaults.items():
            if obj.get(key) is None:
                obj[key] = dict(value) if isinstance(value, dict) else value

    return default


def _validate_core(obj: Object, controller_field: str) -> list[FieldError]:
    involved = dig(obj, "involvedObject", "namespace", default="")
    namespace = namespace_of(obj)
    # Events about cluster-scoped objects live in `default`.
    agrees = namespace in ("", "default") if not involved else involved == namespace
    errors = []
    if not agrees:
        errors.append(invalid_value("involvedObject.namespace", involved, "does not match event.namespace"))
    if obj.get("eventTime"):
        errors += _new_style(obj, controller_field)
    return errors


def _new_style(core: Object, controller_field: str) -> list[FieldError]:
    """What an event with an eventTime must say about its reporter."""
    errors = []
    controller, instance = core.get("reportingComponent") or "", core.get("reportingInstance") or ""
    if not controller:
        errors.append(required(controller_field))
    else:
        errors += [invalid_value(controller_field, controller, m) for m in names.qualified_name(controller)]
    for path, value in (
        ("reportingInstance", instance),
        ("action", core.get("action") or ""),
        ("reason", core.get("reason") or ""),
    ):
        if not value:
            errors.append(required(path))
        if len(value) > _NAME_MAX:
            errors.append(invalid_value(path, "", f"can have at most {_NAME_MAX} characters"))
    if len((core.get("message") or "").encode()) > _NOTE_MAX:
        errors.append(invalid_value("message", "", f"can have at most {_NOTE_MAX} characters"))
    return errors


def _validate_new(obj: Object) -> list[FieldError]:
    errors = _validate_core(to_core(obj), "reportingController")
    if not obj.get("eventTime"):
        errors.append(required("eventTime"))
    type_ = obj.get("type") or ""
    if type_ not in ("Normal", "Warning"):
        errors.append(invalid_value("type", "", f"has invalid value: {type_}"))
    for key in ("deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource"):
        if obj.get(key):
            errors.append(invalid_value(key, "", "needs to be unset"))
    return errors


def _validate_v1(obj: Object) -> list[FieldError]:
    return _validate_core(obj, "reportingComponent")


def _update_core(new: Object, _old: Object) -> list[FieldError]:
    return _validate_v1(new)


def _update_new(new: Object, old: Object) -> list[FieldError]:
    """Only the series and annotations of a new event change (KEP-383)."""
    fixed = ("reportingController", "reportingInstance", "action", "reason", "regarding", "related", "type")
    return _validate_core(to_core(new), "reportingController") + [
        invalid_value(key, new.get(key), "field is immutable")
        for key in (*fixed, "note", "eventTime")
        if (new.get(key) or None) != (old.get(key) or None)
    ]


def _target(core: Object) -> str:
    kind = str(dig(core, "involvedObject", "kind", default="")).lower()
    name = dig(core, "involvedObject", "name", default="")
    return f"{kind}/{name}" if name else kind


def _source(core: Object) -> str:
    component = dig(core, "source", "component") or core.get("reportingComponent") or ""
    instance = dig(core, "source", "host") or core.get("reportingInstance") or ""
    return f"{component}, {instance}" if instance else component


def _row(obj: Object, now: datetime) -> list[Any]:
    core = to_core(obj)
    first = since(core.get("firstTimestamp") or core.get("eventTime"), now)
    last = since(core["lastTimestamp"], now) if core.get("lastTimestamp") else first
    count = core.get("count") or 1  # an event of the new API that happened once has no count
    if series := core.get("series"):
        last = since(series.get("lastObservedTime"), now)
        count = series.get("count") or 0
    return [
        last,
        core.get("type") or "",
        core.get("reason") or "",
        _target(core),
        dig(core, "involvedObject", "fieldPath", default=""),
        _source(core),
        (core.get("message") or "").strip(),
        first,
        count,
        name_of(core),
    ]


def _reader(*path: str) -> Callable[[Object], str]:
    def read(obj: Object) -> str:
        return str(dig(to_core(obj), *path, default=""))

    return read


def _source_field(obj: Object) -> str:
    core = to_core(obj)
    return str(dig(core, "source", "component") or core.get("reportingComponent") or "")


_COMMON_FIELDS: dict[str, Callable[[Object], str]] = {
    "reason": _reader("reason"),
    "type": _reader("type"),
}

EVENT = Kind(
    kind="Event",
    plural="events",
    singular="event",
    short_names=("ev",),
    definition="io.k8s.api.core.v1.Event",
    default=_fill(_CORE_DEFAULTS),
    validate=_validate_v1,
    validate_update=_update_core,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.EVENT,
    row=_row,
    fields={
        **{f"involvedObject.{key}": _reader("involvedObject", key) for key in _REFERENCE},
        **_COMMON_FIELDS,
        "reportingComponent": _reader("reportingComponent"),
        "source": _source_field,
    },
)
EVENTS_EVENT = Kind(
    kind="Event",
    plural="events",
    singular="event",
    group="events.k8s.io",
    short_names=("ev",),
    definition="io.k8s.api.events.v1.Event",
    storage="events",
    default=_fill(_NEW_DEFAULTS),
    validate=_validate_new,
    validate_update=_update_new,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.EVENT,
    row=_row,
    fields={
        **{f"regarding.{key}": _reader("involvedObject", key) for key in _REFERENCE},
        **_COMMON_FIELDS,
        "reportingController": _reader("reportingComponent"),
    },
    to_stored=to_core,
    from_stored=from_core,
)

KINDS = (EVENT, EVENTS_EVENT)
