"""What every verb needs: the store, the kinds, who may do what, and what plugs into a write."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mesh_local.apiserver.registry import Registry
from mesh_local.apiserver.store import Store
from mesh_local.apiserver.types import (
    Admission,
    AdmissionPlugin,
    Attributes,
    Authorizer,
    Endpoint,
    LogSource,
    User,
)
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object

_INTEGER = re.compile("[+-]?[0-9]+")
_INT64 = range(-(2**63), 2**63)
_DIGITS = 40
_NOSNIFF = (("X-Content-Type-Options", "nosniff"),)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about; an empty name is the collection, an empty namespace all or none."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    def not_found(self) -> ApiError:
        return errors.not_found(self.kind.plural, self.kind.group, self.name)

    def stale(self) -> ApiError:
        return errors.conflict(self.kind.plural, self.kind.group, self.name, errors.STALE)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """CreateOptions, UpdateOptions and PatchOptions."""

    dry_run: bool = False
    field_manager: str = ""
    field_validation: str = "Warn"

    def as_object(self, kind: str) -> Object:
        """The form in which admission sees them."""
        options: Object = {"kind": kind, "apiVersion": "meta.k8s.io/v1"}
        if self.dry_run:
            options["dryRun"] = ["All"]
        if self.field_manager:
            options["fieldManager"] = self.field_manager
        return options


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of a write: what to answer, and the Warning header texts."""

    object: Object
    created: bool = False
    warnings: tuple[str, ...] = ()


@dataclass
class Core:
    """One API server without its faces.

    Args:
        now: the wall clock.
    """

    store: Store
    registry: Registry
    authorizer: Authorizer
    plugins: Sequence[AdmissionPlugin]
    now: Callable[[], datetime]
    rng: random.Random
    log_source: LogSource | None = None
    endpoints: dict[tuple[str, str], Endpoint] = field(default_factory=dict)

    def authorize(self, user: User, verb: str, target: Target) -> None:
        """Raise the 403 of the real server unless `user` may do this."""
        kind, name = target.kind, target.name
        # A namespace counts as being in itself.
        namespace = name if kind.resource == "namespaces" else target.namespace
        wanted = Attributes(verb, kind.group, kind.version, kind.plural, target.subresource, namespace, name)
        self.authorize_attributes(user, wanted)

    def authorize_attributes(self, user: User, wanted: Attributes) -> None:
        """Raise the 403 of the real server unless `user` may do this."""
        decision = self.authorizer.authorize(user, wanted)
        if not decision.allowed:
            raise denied(user, wanted, decision.reason)

    def stored(self, target: Target) -> Object | None:
        """The object as it is stored now (shared)."""
        return self.store.get(target.kind.stored_as, target.name, target.namespace)

    async def mutate(self, request: Admission) -> None:
        for plugin in self.plugins:
            await plugin.mutate(request)

    async def admit(self, request: Admission) -> None:
        """The validating half of admission."""
        for plugin in self.plugins:
            await plugin.validate(request)


def denied(user: User, wanted: Attributes, reason: str) -> ApiError:
    """The Forbidden of apiserver's `responsewriters.Forbidden`."""
    if wanted.path:
        text = f'User "{user.name}" cannot {wanted.verb} path "{wanted.path}"'
        message = f"forbidden: {text}" + (f": {reason}" if reason else "")
        return ApiError(errors.failure(403, "Forbidden", message, {}).status, _NOSNIFF)
    resource = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    scope = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
    text = (
        f'User "{user.name}" cannot {wanted.verb} resource "{resource}" in API group "{wanted.group}" {scope}'
    )
    refusal = errors.forbidden(
        wanted.resource, wanted.group, wanted.name, f"{text}: {reason}" if reason else text
    )
    return ApiError(refusal.status, _NOSNIFF)


def query_integer(query: Mapping[str, str], name: str) -> int | None:
    """An int64 of a query string; None where it is absent or empty. Raises ApiError 400."""
    text = query.get(name, "")
    if not text:
        return None
    wrong = "invalid syntax"
    if _INTEGER.fullmatch(text):
        wrong = "value out of range"
        # Python reads no number of thousands of digits.
        if len(text) <= _DIGITS and (value := int(text)) in _INT64:
            return value
    raise errors.bad_request(f"strconv.ParseInt: parsing {errors.go_value(text)}: {wrong} (parameter {name})")


def version_number(text: str) -> int:
    """A resourceVersion of a query string. Raises ValueError with the text of Go."""
    wrong = "invalid syntax"
    if text.isascii() and text.isdigit():
        wrong = "value out of range"
        if len(text) <= _DIGITS and int(text) < 2**64:
            return int(text)
    shown = errors.go_value(text)
    raise ValueError(f"resourceVersion: Invalid value: {shown}: strconv.ParseUint: parsing {shown}: {wrong}")


def query_flag(query: Mapping[str, str], name: str) -> bool:
    """A boolean of a query string as apimachinery reads it: anything but '', 0 and false is true."""
    return query.get(name, "").lower() not in ("", "0", "false")
