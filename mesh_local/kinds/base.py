"""What the API server needs to know about a kind: `Kind`, with hooks that are pure functions.

The hooks run in the order of the real server. Create: decode, `default`, mutating admission, `default` again,
`prepare_create`, `validate`, validating admission, store. Update: the same with `prepare_update` and
`validate_update`. They change the object given, which is theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mesh_local.machinery.errors import FieldError
from mesh_local.machinery.objects import Object

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the Table format (meta/v1 TableColumnDefinition); priority 1 shows in `-o wide` only."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Subresource:
    """`status`, `scale`, `log`, `token`, `proxy`... as discovery lists it.

    Args:
        group, version: set where the subresource's kind lives in another group (`autoscaling/v1` Scale).
    """

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ScalePaths:
    """Where `scale` reads and writes (paths such as `spec.replicas`, without a leading dot).

    `selector` may name a LabelSelector object or a string; '' for none.
    """

    spec: str = "spec.replicas"
    status: str = "status.replicas"
    selector: str = "spec.selector"


def _nothing(_obj: Object) -> None: ...


def _same(obj: Object) -> Object:
    return obj


def _nothing2(_new: Object, _old: Object) -> None: ...


def _no_errors(_obj: Object) -> list[FieldError]:
    return []


def _no_errors2(_new: Object, _old: Object) -> list[FieldError]:
    return []


def _no_warnings(_obj: Object) -> list[str]:
    return []


def _name_row(_obj: Object, _now: datetime) -> list[Any]:
    return []


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind in one version.

    Args:
        definition: key of its OpenAPI definition (`io.k8s.api.core.v1.Pod`), '' for custom resources.
        storage: `plural.group` under which objects are stored; differs from `resource` only where two
            groups serve one store (events, events.k8s.io).
        default: fills in what a client may leave out (API defaulting).
        prepare_create: drops what a client may not set on create (status...), sets what the server sets.
        prepare_update: `(new, old)`: carries over from `old` what a write to the main resource may not change
            (status) and normalises. metadata, generation and resourceVersion are the server's own work.
        prepare_status: `(new, old)`: the same for a write to `status`: everything but status comes from
            `old`.
        validate, validate_update: return everything that is wrong, in Kubernetes' order. metadata is
            validated by the server, with `name_rule`.
        name_rule: `(name, is_prefix) -> list of messages`; from machinery.names.
        spec_fields: top-level fields whose change raises metadata.generation; empty: the kind has no
            generation.
        columns, row: the Table format; `row(obj, now)` gives the cells.
        fields: field selectors beyond metadata.name and metadata.namespace: selector label -> value in the
            object.
        warnings: Warning header texts for an accepted create or update.
        deprecation: Warning header text for every request; '' for a kind with a future.
        graceful: deletion waits for the kubelet (pods).
        unconditional_update: a PUT without resourceVersion is accepted.
        create_on_update: a PUT of an absent object creates it.
        delete_returns_object: DELETE answers with the object rather than a Status.
        scale: set for kinds with a `scale` subresource.
        to_stored, from_stored: conversion between this kind and what `storage` holds (events.k8s.io).
        prune: custom resources: removes what the structural schema does not know and returns the paths
            removed; None: built-in, decoded by `definition`.
        openapi: custom resources: the OpenAPI v3 schema to publish.
    """

    kind: str
    plural: str
    singular: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    definition: str = ""
    storage: str = ""
    default: Callable[[Object], None] = _nothing
    prepare_create: Callable[[Object], None] = _nothing
    prepare_update: Callable[[Object, Object], None] = _nothing2
    prepare_status: Callable[[Object, Object], None] = _nothing2
    validate: Callable[[Object], list[FieldError]] = _no_errors
    validate_update: Callable[[Object, Object], list[FieldError]] = _no_errors2
    name_rule: Callable[[str, bool], list[str]] | None = None
    spec_fields: tuple[str, ...] = ("spec",)
    columns: tuple[Column, ...] = ()
    row: Callable[[Object, datetime], list[Any]] = _name_row
    fields: Mapping[str, Callable[[Object], str]] = field(default_factory=dict)
    warnings: Callable[[Object], list[str]] = _no_warnings
    deprecation: str = ""
    graceful: bool = False
    unconditional_update: bool = True
    create_on_update: bool = False
    delete_returns_object: bool = False
    scale: ScalePaths | None = None
    to_stored: Callable[[Object], Object] = _same
    from_stored: Callable[[Object], Object] = _same
    prune: Callable[[Object], list[str]] | None = None
    openapi: Mapping[str, Any] | None = None

    @property
    def resource(self) -> str:
        """`pods`, `deployments.apps`: how the rest of the code names a kind."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def stored_as(self) -> str:
        return self.storage or self.resource

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def subresource(self, name: str) -> Subresource | None:
        return next((s for s in self.subresources if s.name == name), None)


def find(kinds: Sequence[Kind], resource: str) -> Kind | None:
    """The kind named `resource` (`deployments.apps`)."""
    return next((k for k in kinds if k.resource == resource), None)
