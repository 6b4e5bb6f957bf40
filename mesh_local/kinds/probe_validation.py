"""What may be wrong with probes and lifecycle handlers."""

from mesh_local.kinds.checks import non_negative, one_of, port_number, port_number_or_name
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, forbidden_field, invalid_value, required
from mesh_local.machinery.objects import Object

_NUMBERS = (
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
)
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")


def validate_probes(container: Object, path: str) -> list[FieldError]:
    """The three probes of a container."""
    errors: list[FieldError] = []
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe, here = container.get(key), f"{path}.{key}"
        if probe is None:
            continue
        errors += _probe(probe, here)
        if key == "readinessProbe":
            if probe.get("terminationGracePeriodSeconds") is not None:
                detail = "must not be set for readinessProbes"
                value = probe["terminationGracePeriodSeconds"]
                errors.append(invalid_value(f"{here}.terminationGracePeriodSeconds", value, detail))
        elif probe.get("successThreshold") != 1:
            errors.append(
                invalid_value(f"{here}.successThreshold", probe.get("successThreshold"), "must be 1")
            )
    return errors


def validate_lifecycle(lifecycle: Object | None, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for key in ("postStart", "preStop"):
        handler = (lifecycle or {}).get(key)
        if handler is not None:
            errors += _handler(handler, f"{path}.{key}")
    return errors


def _probe(probe: Object, path: str) -> list[FieldError]:
    errors = _handler(probe, path)
    for key in _NUMBERS:
        errors += non_negative(f"{path}.{key}", probe.get(key))
    grace = probe.get("terminationGracePeriodSeconds")
    if grace is not None and grace <= 0:
        errors.append(invalid_value(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than 0"))
    return errors


def _handler(handler: Object, path: str) -> list[FieldError]:
    given = [key for key in _HANDLERS if handler.get(key) is not None]
    if not given:
        return [required(path, "must specify a handler type")]
    errors = _one_handler(given[0], handler[given[0]], f"{path}.{given[0]}")
    return errors + [
        forbidden_field(f"{path}.{key}", "may not specify more than 1 handler type") for key in given[1:]
    ]


def _one_handler(key: str, action: Object, path: str) -> list[FieldError]:
    match key:
        case "exec":
            return [] if action.get("command") else [required(f"{path}.command")]
        case "httpGet":
            return _http(action, path)
        case "tcpSocket":
            return port_number_or_name(f"{path}.port", action.get("port") or 0)
        case "grpc":
            return port_number(f"{path}.port", action.get("port") or 0)
    seconds = action.get("seconds") or 0
    if seconds >= 0:
        return []
    return [invalid_value(path, seconds, "must be non-negative and less than terminationGracePeriodSeconds")]


def _http(action: Object, path: str) -> list[FieldError]:
    errors = [] if action.get("path") else [required(f"{path}.path")]
    errors += port_number_or_name(f"{path}.port", action.get("port") or 0)
    errors += one_of(f"{path}.scheme", action.get("scheme"), ("HTTP", "HTTPS"))
    for header in action.get("httpHeaders") or ():
        name = header.get("name") or ""
        errors += [invalid_value(f"{path}.httpHeaders", name, m) for m in names.header_name(name)]
    return errors
