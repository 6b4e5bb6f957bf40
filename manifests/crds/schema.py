"""A small vocabulary for structural schemas, in which nothing is without a bound.

A field has a default here only where nothing less specific can say it (a weight, a redirect's status): a
default filled in by the API server cannot be told from a user's word, and would win over a MeshPolicy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from manifests.names import GROUP

Schema = dict[str, Any]

LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_HOST_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_DURATION_PATTERN = r"^([0-9]{1,7}(ms|s|m|h)){1,4}$"
_HEADER_PATTERN = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
_PATH_PATTERN = r"^/[!-\"$->@-~]*$"
_METHOD_PATTERN = r"^[A-Z][A-Z-]*$"


def obj(properties: Mapping[str, Schema], *required: str, description: str = "") -> Schema:
    """An object with fixed fields."""
    schema: Schema = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return described(schema, description)


def described(schema: Schema, description: str) -> Schema:
    """`schema` with a description, which `kubectl explain` shows."""
    return {"description": description, **schema} if description else schema


def exactly_one(schema: Schema, *names: str) -> Schema:
    """`schema` where exactly one of the fields must be there."""
    return {**schema, "oneOf": [{"required": [name]} for name in names]}


def string(limit: int, *, pattern: str = "", least: int = 1, description: str = "") -> Schema:
    schema: Schema = {"type": "string", "minLength": least, "maxLength": limit}
    if pattern:
        schema["pattern"] = pattern
    return described(schema, description)


def enum(*values: str, default: str = "", description: str = "") -> Schema:
    schema: Schema = {"type": "string", "maxLength": max(map(len, values)), "enum": list(values)}
    if default:
        schema["default"] = default
    return described(schema, description)


def integer(least: int, most: int, *, default: int | None = None, description: str = "") -> Schema:
    schema: Schema = {"type": "integer", "format": "int32", "minimum": least, "maximum": most}
    if default is not None:
        schema["default"] = default
    return described(schema, description)


def number(least: float, most: float, description: str = "") -> Schema:
    return described({"type": "number", "minimum": least, "maximum": most}, description)


def percent(description: str = "") -> Schema:
    return number(0, 100, description)


def boolean(default: bool | None = None, description: str = "") -> Schema:
    schema: Schema = {"type": "boolean"}
    if default is not None:
        schema["default"] = default
    return described(schema, description)


def array(items: Schema, limit: int, *, least: int = 0, description: str = "") -> Schema:
    schema: Schema = {"type": "array", "maxItems": limit, "items": items}
    if least:
        schema["minItems"] = least
    return described(schema, description)


def mapping(values: Schema, limit: int, description: str = "") -> Schema:
    return described({"type": "object", "maxProperties": limit, "additionalProperties": values}, description)


def label_name(description: str = "") -> Schema:
    """A Service, Namespace or subset name (RFC 1123 label)."""
    return string(63, pattern=LABEL_PATTERN, description=description)


def subdomain(description: str = "") -> Schema:
    """A DNS name (RFC 1123 subdomain)."""
    return string(253, pattern=_HOST_PATTERN, description=description)


def service_reference(description: str) -> Schema:
    """A Service, or NAME.NAMESPACE."""
    return string(127, pattern=_HOST_PATTERN, description=description)


def duration(description: str = "") -> Schema:
    """Text like 500ms, 2s or 1m30s."""
    return string(32, pattern=_DURATION_PATTERN, description=description)


def port(description: str = "") -> Schema:
    return integer(1, 65535, description=description)


def method() -> Schema:
    return string(32, pattern=_METHOD_PATTERN)


def header_name() -> Schema:
    return string(256, pattern=_HEADER_PATTERN)


def labels(description: str = "") -> Schema:
    return mapping(string(63, least=0), 16, description)


def path() -> Schema:
    """A path in visible ASCII, without query."""
    return string(1024, pattern=_PATH_PATTERN)


def path_match() -> Schema:
    """Which paths: exact, by whole segments, or by a linear-time regular expression."""
    return exactly_one(
        obj({"exact": path(), "prefix": path(), "regex": string(1024)}), "exact", "prefix", "regex"
    )


def value_match() -> Schema:
    """Which values of a header or query parameter."""
    text = string(4096, least=0)
    fields = {"exact": text, "prefix": string(4096), "regex": string(1024), "present": boolean()}
    return exactly_one(obj(fields), *fields)


def _conditions() -> Schema:
    condition = obj(
        {
            "type": string(316),
            "status": enum("True", "False", "Unknown"),
            "reason": string(1024),
            "message": string(32768, least=0),
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "lastTransitionTime": {"type": "string", "format": "date-time", "maxLength": 40},
        },
        *("type", "status", "reason", "message", "lastTransitionTime"),
    )
    return {
        "type": "array",
        "maxItems": 8,
        "items": condition,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }


def status() -> Schema:
    """What the control plane says about an object."""
    return obj(
        {
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "conditions": _conditions(),
        },
        description="Written by the control plane: Accepted, Programmed, Conflicted.",
    )


def column(name: str, path: str, kind: str = "string") -> dict[str, str]:
    return {"name": name, "type": kind, "jsonPath": path}


def crd(
    kind: str,
    plural: str,
    short: str,
    description: str,
    spec: Schema,
    columns: Sequence[dict[str, str]],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """The CustomResourceDefinition of a namespaced kind with a status."""
    schema = obj(
        {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status(),
        },
        "spec",
        description=description,
    )
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "labels": dict(labels)},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["triomesh"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1alpha1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        *columns,
                        column("Accepted", '.status.conditions[?(@.type=="Accepted")].status'),
                        column("Age", ".metadata.creationTimestamp", "date"),
                    ],
                }
            ],
        },
    }
