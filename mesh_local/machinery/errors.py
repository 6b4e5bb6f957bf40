"""API errors: each is a meta/v1 Status with Kubernetes' own texts.

Raised anywhere below the HTTP face and by the in-process client; the face turns it into the response.
Messages follow apimachinery's `errors` and `util/validation/field` packages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mesh_local.machinery.objects import Object


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field.

    Args:
        type: a key of `FIELD_TEXT`.
        field: path such as `spec.containers[0].name`.
        detail: what was expected; '' for none.
        value: the offending value; shown for the types in `SHOWS_VALUE` unless it is `OMIT`.
    """

    type: str
    field: str
    detail: str = ""
    value: Any = None

    def body(self) -> str:
        """The message without the field path."""
        text = FIELD_TEXT[self.type]
        if self.type in SHOWS_VALUE and self.value is not OMIT:
            text = f"{text}: {go_value(self.value)}"
        return f"{text}: {self.detail}" if self.detail else text

    def __str__(self) -> str:
        return f"{self.field}: {self.body()}"


# The value of a field error that names no value (a failed CEL rule over a whole object).
OMIT = object()
FIELD_TEXT = {
    "FieldValueRequired": "Required value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueNotFound": "Not found",
    "FieldValueNotSupported": "Unsupported value",
    "FieldValueTooLong": "Too long",
    "FieldValueTooMany": "Too many",
    "FieldValueTypeInvalid": "Invalid value",
    "InternalError": "Internal error",
}
SHOWS_VALUE = frozenset(
    {
        "FieldValueInvalid",
        "FieldValueDuplicate",
        "FieldValueNotFound",
        "FieldValueNotSupported",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    }
)


# What JSON escapes for HTML's sake in Go's encoder.
_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_QUOTED = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


def go_quote(text: str) -> str:
    """A string as Go's %q prints it."""
    return '"' + "".join(_QUOTED.get(c) or (c if c.isprintable() else _escaped(c)) for c in text) + '"'


def _escaped(char: str) -> str:
    point = ord(char)
    if point < 0x80:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def go_value(value: Any) -> str:
    """A value as the field package prints it: strings quoted, what is nested as JSON."""
    if isinstance(value, str):
        return go_quote(value)
    if isinstance(value, dict | list | tuple):
        return msgspec.json.encode(value, order="deterministic").decode().translate(_HTML)
    return msgspec.json.encode(value).decode()


def required(field: str, detail: str = "") -> FieldError:
    return FieldError("FieldValueRequired", field, detail)


def invalid_value(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueInvalid", field, detail, value)


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", field, "", value)


def forbidden_field(field: str, detail: str) -> FieldError:
    return FieldError("FieldValueForbidden", field, detail)


def not_found_value(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueNotFound", field, "", value)


def too_long_value(field: str, limit: int) -> FieldError:
    """A string of more than `limit` bytes; the value is not shown."""
    return FieldError("FieldValueTooLong", field, f"may not be more than {limit} bytes")


def too_many(field: str, count: int, limit: int) -> FieldError:
    """A list of `count` items where `limit` are allowed."""
    return FieldError("FieldValueTooMany", field, f"must have at most {limit} items", count)


def not_supported(field: str, value: Any, supported: Sequence[str]) -> FieldError:
    quoted = ", ".join(go_quote(s) for s in supported)
    return FieldError("FieldValueNotSupported", field, f"supported values: {quoted}", value)


class ApiError(Exception):
    """A failed request.

    Attributes:
        status: the meta/v1 Status that the caller receives.
        headers: extra response headers (Retry-After...).
    """

    def __init__(self, status: Object, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(status.get("message", ""))
        self.status = status
        self.headers = tuple(headers)

    @property
    def code(self) -> int:
        return int(self.status.get("code") or 500)

    @property
    def reason(self) -> str:
        return str(self.status.get("reason") or "")

    @property
    def message(self) -> str:
        return str(self.status.get("message") or "")


def failure(code: int, reason: str, message: str, details: Object | None = None) -> ApiError:
    """An ApiError with this Status; an empty reason is left out, as Kubernetes does."""
    status: Object = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
    }
    if reason:
        status["reason"] = reason
    if details is not None:
        status["details"] = details
    status["code"] = code
    return ApiError(status)


def qualified(plural: str, group: str) -> str:
    """`deployments.apps`, or `pods` in the core group."""
    return f"{plural}.{group}" if group else plural


def _details(name: str, group: str, kind: str) -> Object:
    details: Object = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    return details


def not_found(plural: str, group: str, name: str) -> ApiError:
    return failure(
        404, "NotFound", f'{qualified(plural, group)} "{name}" not found', _details(name, group, plural)
    )


def already_exists(plural: str, group: str, name: str) -> ApiError:
    return failure(
        409,
        "AlreadyExists",
        f'{qualified(plural, group)} "{name}" already exists',
        _details(name, group, plural),
    )


def conflict(plural: str, group: str, name: str, detail: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {detail}'
    return failure(409, "Conflict", message, _details(name, group, plural))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def joined(errors: Sequence[FieldError]) -> str:
    """Field errors as one text, each once; several stand in brackets."""
    texts = list(dict.fromkeys(str(e) for e in errors))
    return texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422 with one cause per field error."""
    details = _details(name, group, kind)
    details["causes"] = [{"reason": e.type, "message": e.body(), "field": e.field} for e in errors]
    return failure(422, "Invalid", f'{qualified(kind, group)} "{name}" is invalid: {joined(errors)}', details)


def bad_request(message: str) -> ApiError:
    return failure(400, "BadRequest", message)


def forbidden(plural: str, group: str, name: str, detail: str) -> ApiError:
    """403; an empty `plural` is a path that is not a resource."""
    shown = f' "{name}"' if name else ""
    subject = f"{qualified(plural, group)}{shown} is forbidden" if plural else "forbidden"
    return failure(403, "Forbidden", f"{subject}: {detail}", _details(name, group, plural))


def namespace_terminating(plural: str, group: str, name: str, namespace: str) -> ApiError:
    """403: something new in a namespace that is going away."""
    error = forbidden(
        plural,
        group,
        name,
        f"unable to create new content in namespace {namespace} because it is being terminated",
    )
    error.status["details"]["causes"] = [
        {
            "reason": "NamespaceTerminating",
            "message": f"namespace {namespace} is being terminated",
            "field": "metadata.namespace",
        }
    ]
    return error


def unauthorized() -> ApiError:
    return failure(401, "Unauthorized", "Unauthorized")


def too_large(detail: str) -> ApiError:
    """413: the request is larger than we accept; `detail` names the limit (`limit is 3145728`)."""
    return failure(413, "RequestEntityTooLarge", f"Request entity too large: {detail}")


def unprocessable() -> ApiError:
    """422: a patch that does not apply to the object."""
    return failure(422, "Invalid", "the server rejected our request due to an error in our request", {})


def internal(message: str) -> ApiError:
    return failure(
        500, "InternalError", f"Internal error occurred: {message}", {"causes": [{"message": message}]}
    )


def unreasoned(message: str) -> ApiError:
    """500 without a reason: what the real server does with a plain Go error."""
    return failure(500, "", message)


def expired(message: str) -> ApiError:
    return failure(410, "Expired", message)
