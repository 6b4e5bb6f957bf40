"""What a sidecar is told about requests to a destination: routes, and how its endpoints are used.

This is the compiled form of policies: names are resolved, defaults filled in, times are seconds (`_s`).
Fields and semantics follow the policy reference (docs/policy.md).
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Weight = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Limit = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Status = Annotated[int, msgspec.Meta(ge=200, le=599)]
Label = Annotated[str, msgspec.Meta(max_length=317)]
Labels = dict[Label, Label]
MAX_ROUTES = 1024
"""Of one destination."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """Base of every part: immutable, strict, camelCase on the wire."""


class PathNormalization(enum.Enum):
    """What a sidecar does to a request's path before it is routed, decided about and passed on.

    Each mode does what the one before does, and more; all but `none` refuse what they cannot make plain.
    """

    NONE = "none"
    """Nothing: the path goes on as the client wrote it."""
    BASE = "base"
    """Dot segments are resolved, unreserved characters are written plainly, `\\` is `/` (RFC 3986, 6.2.2)."""
    MERGE_SLASHES = "merge-slashes"
    """Also several slashes in a row are one."""
    DECODE_AND_MERGE = "decode-and-merge"
    """Also `%2F` and `%5C` are slashes."""


# -- how endpoints are used ---------------------------------------------------------------------------------


class Algorithm(enum.Enum):
    """Load-balancing algorithm."""

    LEAST_LATENCY = "least-latency"
    LEAST_REQUEST = "least-request"
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"


class Timeouts(Message, frozen=True):
    """Deadlines of one destination, in seconds; None means off."""

    connect_s: Seconds = 1.0
    """TCP and TLS together."""
    request_s: Seconds | None = None
    """Whole request, retries included."""
    stream_idle_s: Seconds | None = None
    """A request or response without a byte in either direction."""
    pool_idle_s: Seconds = 60.0
    tcp_idle_s: Seconds = 3600.0


class Breaker(Message, frozen=True):
    """Circuit-breaker thresholds of this sidecar towards a destination or subset; None does not limit."""

    max_connections: Limit | None = None
    max_pending: Limit = 1024
    """Requests that wait for a connection."""
    max_requests: Limit | None = None
    """Requests under way."""
    max_requests_per_connection: Limit = 0
    """0: no limit."""


class Outliers(Message, frozen=True):
    """When an endpoint is ejected; a threshold of 0 is off."""

    consecutive_5xx: Limit = msgspec.field(default=5, name="consecutive5xx")
    """Answers of 500 to 599, and failures without an answer."""
    consecutive_gateway: Limit = 0
    """Answers of 502, 503, 504, and failures without an answer."""
    consecutive_local: Limit = 5
    """Failures without an answer: no connection, reset, time-out."""
    interval_s: Seconds = 10.0
    """A success-free stretch of counting lasts at most until none came for so long."""
    base_ejection_s: Seconds = 30.0
    """Of the first ejection; the next ones in a row grow with their number, to at most 300 s or this."""
    max_ejection_percent: Percent = 50.0
    """Most endpoints ejected at once; one may always be, the last never is."""
    min_health_percent: Percent = 0.0
    """Below this share of endpoints in use nothing is ejected and ejected ones are used."""


class HttpVersion(enum.Enum):
    """What endpoints are asked in."""

    CLIENT = ""
    """As the port is declared, else as the client speaks."""
    HTTP1 = "1.1"
    HTTP2 = "2"


class Settings(Message, frozen=True):
    """How the endpoints of a destination, or of one subset, are used."""

    http_version: HttpVersion = HttpVersion.CLIENT
    timeouts: Timeouts = Timeouts()
    algorithm: Algorithm = Algorithm.LEAST_LATENCY
    warmup_s: Seconds | None = None
    """A new endpoint's share grows over so long."""
    breaker: Breaker = Breaker()
    outliers: Outliers = Outliers()
    affinity_s: Seconds | None = None
    """This pod stays with one endpoint until it has not asked for so long (sessionAffinity ClientIP)."""


class Subset(Message, frozen=True):
    """Endpoints of a destination that carry all of `labels`."""

    labels: Labels
    settings: Settings | None = None
    """None: as the destination."""


# -- retries ------------------------------------------------------------------------------------------------


class RetryOn(enum.Enum):
    """The first three cannot have been processed and always are, the others for `methods`."""

    CONNECT_FAILURE = "connect-failure"
    REFUSED_STREAM = "refused-stream"
    RESET_BEFORE_REQUEST = "reset-before-request"
    """The connection ended before a byte of the request was sent."""
    GATEWAY_ERROR = "gateway-error"
    """502, 503, 504, or no answer (reset, per-try timeout)."""
    SERVER_ERROR = "5xx"
    """500 to 599, or no answer."""
    TOO_MANY_REQUESTS = "429"
    GRPC_CANCELLED = "grpc-cancelled"
    """This and the next: a response of gRPC with that status and no message before it (trailers only)."""
    GRPC_DEADLINE_EXCEEDED = "grpc-deadline-exceeded"
    GRPC_INTERNAL = "grpc-internal"
    GRPC_RESOURCE_EXHAUSTED = "grpc-resource-exhausted"
    GRPC_UNAVAILABLE = "grpc-unavailable"


class Backoff(Message, frozen=True):
    """Pause before a retry: chosen evenly between 0 and base * 2^n, at most `max_s` (full jitter)."""

    base_s: Seconds = 0.025
    max_s: Seconds = 0.25


class Retries(Message, frozen=True):
    """When a failed attempt is tried again; hosts already tried are not asked again while others are left."""

    attempts: Annotated[int, msgspec.Meta(ge=0, le=10)] = 1
    """Retries, the first try not counted."""
    on: tuple[RetryOn, ...] = ()
    """What is retried besides what cannot have been processed, which always is. Empty: `methods` of which no
    response byte came."""
    per_try_s: Seconds | None = None
    backoff: Backoff = Backoff()
    methods: tuple[str, ...] = ()
    """Empty: the idempotent methods (RFC 9110, 9.2.2)."""
    honor_retry_after: bool = False
    """Wait as Retry-After says (RFC 9110, 10.2.3), where that is within the request's deadline and 30 s."""


class Budget(Message, frozen=True):
    """How many retries a destination gets, all routes together."""

    percent: Percent = 20.0
    """Of its recent requests ..."""
    min_per_s: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 10
    """... and this many a second in any case."""


# -- routes -------------------------------------------------------------------------------------------------


class PathMatch(Message, frozen=True):
    """One field is set. `prefix` is by whole segments (/a matches /a and /a/b); `regex` is RE2, anchored."""

    exact: str = ""
    prefix: str = ""
    regex: str = ""


class ValueMatch(Message, frozen=True):
    """Which value of a header or query parameter; one field is set."""

    name: str
    """A header's in lower case."""
    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None
    present: bool | None = None


class SourceMatch(Message, frozen=True):
    """Which calling workloads; every field that is set must match."""

    namespace: str = ""
    service_account: str = ""
    labels: Labels = {}


class Match(Message, frozen=True):
    """All that is set must match."""

    path: PathMatch | None = None
    method: str = ""
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()
    source: SourceMatch | None = None


class WeightedTarget(Message, frozen=True):
    """One arm of a split: a subset of this destination, all of it, or another destination."""

    subset: str = ""
    destination: str = ""
    """Key of another destination (mesh_api.keys), which comes with this one; '' for this one."""
    weight: Weight = 1


class PathRewrite(Message, frozen=True):
    """One field is set. `replace_prefix` stands for the prefix that matched; the query string stays."""

    replace_prefix: str = ""
    replace_full: str = ""


class Rewrite(Message, frozen=True):
    """Changes to the request line and the Host header; '' and None leave them."""

    path: PathRewrite | None = None
    host: str = ""


class HeaderEdits(Message, frozen=True):
    """Changes to header fields, in this order: remove, set, add."""

    set: dict[str, str] = {}
    add: dict[str, str] = {}
    remove: tuple[str, ...] = ()


class Redirect(Message, frozen=True):
    """Answer with a Location; what is not set is the request's own."""

    scheme: str = ""
    host: str = ""
    port: int = 0
    path: PathRewrite | None = None
    status: Annotated[int, msgspec.Meta(ge=301, le=308)] = 301


class Respond(Message, frozen=True):
    """Answer without an endpoint."""

    status: Status
    body: str = ""


class Delay(Message, frozen=True):
    """Hold this share of the requests."""

    percent: Percent
    fixed_s: Seconds


class Abort(Message, frozen=True):
    """Answer this share of the requests with an error."""

    percent: Percent
    status: Status = 503
    grpc_status: Annotated[int, msgspec.Meta(ge=0, le=16)] | None = None
    """Set: a gRPC answer with this status instead (trailers-only, HTTP 200)."""


class Fault(Message, frozen=True):
    """Faults on purpose: the delay first, then the abort."""

    delay: Delay | None = None
    abort: Abort | None = None


class Route(Message, frozen=True):
    """One rule. Exactly one of `to`, `redirect` and `respond` is set."""

    name: str = ""
    match: tuple[Match, ...] = ()
    """One must match; empty: every request."""
    to: tuple[WeightedTarget, ...] = ()
    redirect: Redirect | None = None
    respond: Respond | None = None
    timeout_s: Seconds | None = None
    """None: as the subset or destination."""
    retries: Retries | None = None
    """None: as the destination."""
    rewrite: Rewrite | None = None
    request_headers: HeaderEdits | None = None
    response_headers: HeaderEdits | None = None
    fault: Fault | None = None
