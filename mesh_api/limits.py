"""What one sidecar lets others make it hold or do: names, defaults, ranges and meaning, in one place.

An installation sets them by its values (`sidecar.limits.headBytes`), a pod by the annotation `proxy-limits`,
and a sidecar is told by variables (`TRIOMESH_LIMIT_HEAD_BYTES`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.inspect import FloatType, IntType, Metadata, StructType, type_info

VARIABLE_PREFIX: Final = "TRIOMESH_LIMIT_"
_NUMBER: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?", re.ASCII)
_KIB: Final = 1024
_MIB: Final = 1024 * _KIB


class LimitError(ValueError):
    """A limit that cannot be used; the message says what was expected."""


class Limits(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    """The limits of one sidecar."""

    connections: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Connections of clients at once, both directions together.")
    ] = 16384
    memory_percent: Annotated[
        int,
        Meta(ge=0, le=100, description="Of the memory limit; above it new connections are reset. 0: never."),
    ] = 90
    pending_bytes: Annotated[
        int,
        Meta(
            ge=64 * _KIB,
            le=1024 * _MIB,
            description="Of one HTTP/2 connection, waiting for slow readers before all streams wait.",
        ),
    ] = 2 * _MIB
    pending_total_bytes: Annotated[
        int, Meta(ge=_MIB, le=65536 * _MIB, description="The same for all HTTP/2 connections together.")
    ] = 32 * _MIB
    detect_seconds: Annotated[
        float, Meta(ge=0.1, le=3600, description="For a client's first bytes and its TLS handshake.")
    ] = 5.0
    head_seconds: Annotated[
        float, Meta(ge=0.1, le=3600, description="From the first byte of a request's head to its last.")
    ] = 60.0
    body_idle_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=86_400,
            description="Between parts of a request's body; not for gRPC, nor once answered in HTTP/2.",
        ),
    ] = 3600.0
    stall_seconds: Annotated[
        float, Meta(ge=0.1, le=86_400, description="For which a peer may take none of the bytes sent to it.")
    ] = 3600.0
    head_bytes: Annotated[
        int, Meta(ge=_KIB, le=_MIB, description="The whole head of a message; HTTP/2: its header list.")
    ] = 65536
    line_bytes: Annotated[
        int, Meta(ge=256, le=_MIB, description="The first line of a head, or one header line.")
    ] = 32768
    header_count: Annotated[
        int, Meta(ge=16, le=10_000, description="Header lines of a head, and likewise trailer lines.")
    ] = 200
    chunk_line_bytes: Annotated[
        int, Meta(ge=16, le=16 * _KIB, description="One chunk-size line with its extensions.")
    ] = 256
    trailer_bytes: Annotated[int, Meta(ge=256, le=_MIB, description="The whole trailer section.")] = 16384
    streams: Annotated[
        int, Meta(ge=1, le=10_000, description="Streams at once of one HTTP/2 connection, from each side.")
    ] = 100
    stream_window_bytes: Annotated[
        int, Meta(ge=16 * _KIB, le=64 * _MIB, description="Flow-control window of an HTTP/2 stream.")
    ] = 256 * _KIB
    connection_window_bytes: Annotated[
        int, Meta(ge=64 * _KIB, le=256 * _MIB, description="Flow-control window of an HTTP/2 connection.")
    ] = _MIB
    continuations: Annotated[
        int, Meta(ge=0, le=1000, description="CONTINUATION frames of one HTTP/2 header block.")
    ] = 8
    resets_burst: Annotated[
        int,
        Meta(
            ge=1, le=100_000, description="Streams that an HTTP/2 peer resets, or makes us reset, at once ..."
        ),
    ] = 1000
    resets_per_second: Annotated[
        int, Meta(ge=1, le=100_000, description="... and each second after that.")
    ] = 500
    control_burst: Annotated[
        int,
        Meta(
            ge=10,
            le=1_000_000,
            description="PING, SETTINGS, PRIORITY, WINDOW_UPDATE and empty DATA frames at once ...",
        ),
    ] = 1000
    control_per_second: Annotated[
        int, Meta(ge=1, le=1_000_000, description="... and each second after that.")
    ] = 500
    queued_control: Annotated[
        int,
        Meta(ge=10, le=100_000, description="Answers to such frames that wait for the HTTP/2 peer to read."),
    ] = 1000


DEFAULTS: Final = Limits()


class Limit(NamedTuple):
    """One of them."""

    field: str
    """As attribute of `Limits`."""
    key: str
    """In values and in the annotation."""
    variable: str
    default: float
    low: float
    high: float
    whole: bool
    """No fraction."""
    about: str

    def read(self, text: str) -> float:
        """The number that `text` is. Raises LimitError."""
        good = _NUMBER.fullmatch(text) and not (self.whole and "." in text)
        if not good or not self.low <= float(text) <= self.high:
            kind = "a whole number" if self.whole else "a number"
            raise LimitError(
                f"expected {kind} from {shown(self.low)} to {shown(self.high)}, got {text[:60]!r}"
            )
        return int(text) if self.whole else float(text)


def shown(number: float) -> str:
    """A limit as text, which `Limit.read` reads."""
    return str(int(number)) if number == int(number) else str(number)


@cache
def described() -> dict[str, Limit]:
    """All of them, by key."""
    info = type_info(Limits)
    assert isinstance(info, StructType)
    found = {}
    for field in info.fields:
        assert isinstance(field.type, Metadata)
        assert field.type.extra_json_schema is not None
        kind = field.type.type
        assert isinstance(kind, IntType | FloatType)
        assert kind.ge is not None
        assert kind.le is not None
        found[field.encode_name] = Limit(
            field.name,
            field.encode_name,
            VARIABLE_PREFIX + field.name.upper(),
            field.default,
            kind.ge,
            kind.le,
            isinstance(kind, IntType),
            field.type.extra_json_schema["description"],
        )
    return found


def changed(limits: Limits) -> dict[str, str]:
    """The variables that tell a sidecar what differs from the defaults."""
    return {
        limit.variable: shown(getattr(limits, limit.field))
        for limit in described().values()
        if getattr(limits, limit.field) != limit.default
    }


def parse_pairs(text: str) -> dict[str, float]:
    """Attributes of `Limits` out of `headBytes=32768,streams=50`. Raises LimitError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        limit = described().get(key)
        if not equals or limit is None:
            raise LimitError(f"{part.strip()[:60]!r} is no limit; these exist: {', '.join(described())}")
        if limit.field in found:
            raise LimitError(f"{key} is there twice")
        try:
            found[limit.field] = limit.read(value)
        except LimitError as exc:
            raise LimitError(f"{key}: {exc}") from None
    return found
