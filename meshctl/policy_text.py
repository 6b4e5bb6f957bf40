"""Parts of policies as a reader would write them. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

import msgspec

from mesh_api import policy_types as written
from mesh_api import traffic
from mesh_api.policy_types import Part
from mesh_api.policy_values import Duration, duration_text


def said(part: Part, path: str) -> Iterator[tuple[str, str]]:
    """The fields that a part sets, by path, as text."""
    for field in msgspec.structs.fields(part):
        value = getattr(part, field.name)
        at = f"{path}.{field.encode_name}"
        if isinstance(value, Part):
            yield from said(value, at)
        elif value not in (None, {}, ()):
            yield at, shown(value)


def shown(value: object) -> str:
    """A value as one would write it; a duration of 0 is off."""
    if isinstance(value, Duration):
        return duration_text(value) if value else "off"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {shown(each)}" for key, each in value.items())
    if isinstance(value, tuple):
        return ", ".join(shown(each) for each in value)
    return str(value)


def labels(wanted: Mapping[str, str]) -> str:
    """As a label selector."""
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def match(wanted: written.Match) -> str:
    """What one match asks of a request."""
    parts = []
    if wanted.path is not None:
        path = wanted.path
        parts.append(
            f"path {path.exact}"
            if path.exact
            else f"path below {path.prefix}"
            if path.prefix
            else f"path like {path.regex}"
        )
    if wanted.method:
        parts.append(f"method {wanted.method}")
    parts += [f"header {name} {value_text(each)}" for name, each in wanted.headers.items()]
    parts += [f"query {name} {value_text(each)}" for name, each in wanted.query.items()]
    source = wanted.source
    if source.namespace:
        parts.append(f"from namespace {source.namespace}")
    if source.service_account:
        parts.append(f"from account {source.service_account}")
    if source.labels:
        parts.append(f"from pods {labels(source.labels)}")
    return " and ".join(parts) or "every request"


def value_text(value: written.ValueMatch) -> str:
    """What is asked of a value."""
    if value.exact is not None:
        return f"= {value.exact!r}"
    if value.prefix is not None:
        return f"begins with {value.prefix!r}"
    if value.regex is not None:
        return f"like {value.regex}"
    return "is there" if value.present else "is not there"


def split(arms: tuple[written.WeightedBackend, ...]) -> str:
    """Where requests go, in percent."""
    total = sum(arm.weight for arm in arms)
    return ", ".join(f"{100 * arm.weight / total:g} % {backend(arm)}" for arm in arms)


def backend(arm: written.WeightedBackend) -> str:
    """One arm of a split."""
    if arm.subset is not None:
        return f"subset {arm.subset}"
    port = f" port {arm.port}" if arm.port is not None else ""
    return f"service {arm.service}{port}" if arm.service is not None else f"every endpoint{port}"


def aborted(abort: traffic.Abort) -> str:
    """What a fault answers: a status of HTTP or of gRPC."""
    return str(abort.status) if abort.grpc_status is None else f"grpc-status {abort.grpc_status}"


def outcome(route: written.Route) -> str:
    """What a route does with a request, in short."""
    if route.redirect is not None:
        parts = [text for _, text in said(route.redirect, "")]
        return f"redirect: {' '.join(parts)}"
    if route.respond is not None:
        return f"respond: {route.respond.status}"
    return split(route.to or ())
