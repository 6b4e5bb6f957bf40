"""The native policies as a user writes them: TrafficPolicy and MeshPolicy, typed and strict.

What is not said is None (or an empty part), so that a less specific policy can say it; the defaults are those
of `mesh_api.traffic`. The description of a type is what a refusal says was expected there.
"""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

import msgspec

from mesh_api.policy_values import (
    Attempts,
    Count,
    Duration,
    GrpcStatus,
    HeaderName,
    HeaderValue,
    Host,
    Labels,
    Limit,
    Method,
    Name,
    Path,
    Percent,
    PerSecond,
    Port,
    PortKey,
    Reference,
    Regex,
    SomeLabels,
    SomeLimit,
    Status,
    Weight,
    WholePercent,
    number,
    text,
)
from mesh_api.sidecar import EgressMode, MtlsMode
from mesh_api.traffic import MAX_ROUTES, Algorithm, PathNormalization, RetryOn

API_VERSION = "triomesh.dev/v1alpha1"


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """Base of every part: immutable, strict, camelCase.

    `later` names fields of the model that this version refuses, so that they are never ignored.
    """

    later: ClassVar[tuple[str, ...]] = ()
    only_one: ClassVar[tuple[str, ...]] = ()
    """Fields of which exactly one must be there."""
    zero_is_off: ClassVar[tuple[str, ...]] = ()
    """Durations that may be 0s, which switches off what a less specific policy says."""


# -- how endpoints are used ---------------------------------------------------------------------------------


class Timeouts(Part, frozen=True):
    """Deadlines of a destination."""

    zero_is_off = ("request", "streamIdle")
    connect: Duration | None = None
    request: Duration | None = None
    stream_idle: Duration | None = None
    pool_idle: Duration | None = None
    tcp_idle: Duration | None = None


class HttpVersion(enum.Enum):
    """Of HTTP."""

    HTTP1 = "1.1"
    HTTP2 = "2"


class Connection(Part, frozen=True):
    """How endpoints are spoken to."""

    http_version: HttpVersion | None = None


class LoadBalancer(Part, frozen=True):
    """Which endpoint gets a request."""

    later = ("hash", "locality")
    zero_is_off = ("warmup",)
    algorithm: Algorithm | None = None
    warmup: Duration | None = None


class CircuitBreaker(Part, frozen=True):
    """Limits of each calling pod."""

    max_connections: SomeLimit | None = None
    max_pending_requests: Limit | None = None
    max_requests: SomeLimit | None = None
    max_requests_per_connection: Limit | None = None


class Outliers(Part, frozen=True):
    """When an endpoint is left out for a while."""

    later = ("successRate",)
    consecutive_5xx: Count | None = msgspec.field(name="consecutive5xx", default=None)
    consecutive_gateway_errors: Count | None = None
    consecutive_local_failures: Count | None = None
    interval: Duration | None = None
    base_ejection: Duration | None = None
    max_ejection_percent: WholePercent | None = None
    min_health_percent: WholePercent | None = None


class Usage(Part, frozen=True):
    """How the endpoints of a destination, or of one subset, are used."""

    connection: Connection = Connection()
    timeouts: Timeouts = Timeouts()
    load_balancer: LoadBalancer = LoadBalancer()
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    outliers: Outliers = Outliers()


class Subset(Usage, frozen=True, kw_only=True):
    """Endpoints that carry all of the labels; what it says wins over the destination."""

    labels: SomeLabels


class Backoff(Part, frozen=True):
    """Pause before a retry."""

    base: Duration | None = None
    max: Duration | None = None


class Budget(Part, frozen=True):
    """How many retries all routes of a destination get together."""

    percent: Percent | None = None
    min_per_second: PerSecond | None = None


class RouteRetries(Part, frozen=True):
    """What is tried again; what a route does not say, the destination says."""

    attempts: Attempts | None = None
    # Not `on`: YAML 1.1, which kubectl reads, takes that key for true.
    on: Annotated[tuple[RetryOn, ...], msgspec.Meta(min_length=1, max_length=11)] | None = msgspec.field(
        name="retryOn", default=None
    )
    per_try_timeout: Duration | None = None
    backoff: Backoff = Backoff()
    methods: Annotated[tuple[Method, ...], msgspec.Meta(min_length=1, max_length=16)] | None = None
    honor_retry_after: bool | None = None


class Retries(RouteRetries, frozen=True):
    """As a route's, and the budget."""

    budget: Budget = Budget()


# -- routes -------------------------------------------------------------------------------------------------


class PathMatch(Part, frozen=True):
    """Which paths; `prefix` is by whole segments."""

    only_one = ("exact", "prefix", "regex")
    exact: Path | None = None
    prefix: Path | None = None
    regex: Regex | None = None


class ValueMatch(Part, frozen=True):
    """Which values of a header or query parameter."""

    only_one = ("exact", "prefix", "regex", "present")
    exact: HeaderValue | None = None
    prefix: Annotated[str, text(4096, "text")] | None = None
    regex: Regex | None = None
    present: bool | None = None


class SourceMatch(Part, frozen=True):
    """Which callers."""

    namespace: Name | None = None
    service_account: Host | None = None
    labels: Labels = {}


class Match(Part, frozen=True):
    """All that is set must match."""

    path: PathMatch | None = None
    method: Method | None = None
    headers: Annotated[dict[HeaderName, ValueMatch], msgspec.Meta(max_length=16)] = {}
    query: Annotated[
        dict[Annotated[str, text(256, "a parameter's name")], ValueMatch], msgspec.Meta(max_length=16)
    ] = {}
    source: SourceMatch = SourceMatch()


class WeightedBackend(Part, frozen=True):
    """One arm of a split: a subset, the whole destination, or another Service of the namespace."""

    subset: Name | None = None
    service: Reference | None = None
    port: Port | None = None
    weight: Weight = 1


class PathRewrite(Part, frozen=True):
    """What stands for the path, or for the prefix of it that matched."""

    only_one = ("replacePrefix", "replaceFull")
    replace_prefix: Path | None = None
    replace_full: Path | None = None


class Rewrite(Part, frozen=True):
    """What the endpoint sees instead."""

    path: PathRewrite | None = None
    host: Host | None = None


class HeaderEdits(Part, frozen=True):
    """Changes to header fields, in this order: remove, set, add."""

    set: Annotated[dict[HeaderName, HeaderValue], msgspec.Meta(max_length=32)] = {}
    add: Annotated[dict[HeaderName, HeaderValue], msgspec.Meta(max_length=32)] = {}
    remove: Annotated[tuple[HeaderName, ...], msgspec.Meta(max_length=32)] = ()


class Headers(Part, frozen=True):
    """Edits of requests and of responses."""

    request: HeaderEdits = HeaderEdits()
    response: HeaderEdits = HeaderEdits()


class Scheme(enum.Enum):
    """Of a redirect's Location."""

    HTTP = "http"
    HTTPS = "https"


class Redirect(Part, frozen=True):
    """Answer with a Location; what is not set is the request's own."""

    scheme: Scheme | None = None
    host: Host | None = None
    port: Port | None = None
    path: PathRewrite | None = None
    status: Annotated[int, number(301, 308, "301, 302, 303, 307 or 308")] = 301


class Respond(Part, frozen=True):
    """Answer without an endpoint."""

    status: Status
    body: Annotated[str, text(4096, "text", least=0)] = ""


class Delay(Part, frozen=True):
    """Hold a share of the requests."""

    percent: Percent
    fixed: Duration


class Abort(Part, frozen=True):
    """Answer a share of the requests with an error."""

    only_one = ("status", "grpcStatus")
    percent: Percent
    status: Status | None = None
    grpc_status: GrpcStatus | None = None


class Fault(Part, frozen=True):
    """Faults on purpose: the delay first, then the abort."""

    delay: Delay | None = None
    abort: Abort | None = None


class Route(Part, frozen=True):
    """One rule."""

    later = ("mirror", "cors", "rateLimit")
    only_one = ("to", "redirect", "respond")
    name: Name | None = None
    match: Annotated[tuple[Match, ...], msgspec.Meta(max_length=16)] = ()
    to: Annotated[tuple[WeightedBackend, ...], msgspec.Meta(min_length=1, max_length=16)] | None = None
    redirect: Redirect | None = None
    respond: Respond | None = None
    timeout: Duration | None = None
    retries: RouteRetries = RouteRetries()
    rewrite: Rewrite = Rewrite()
    headers: Headers = Headers()
    fault: Fault = Fault()


# -- TrafficPolicy ------------------------------------------------------------------------------------------


class Target(Part, frozen=True):
    """Whose destination this is."""

    later = ("host",)
    service: Reference


class OutboundTlsMode(enum.Enum):
    """How endpoints are reached."""

    MESH = "mesh"
    DISABLE = "disable"


class OutboundTls(Part, frozen=True):
    """`mesh`: mTLS to every endpoint that is in the mesh; `disable`: plaintext to all."""

    mode: OutboundTlsMode


class TrafficSpec(Usage, frozen=True, kw_only=True):
    """What holds for one Service."""

    target: Target
    subsets: Annotated[dict[Name, Subset], msgspec.Meta(max_length=32)] = {}
    routes: Annotated[tuple[Route, ...], msgspec.Meta(max_length=MAX_ROUTES)] = ()
    retries: Retries = Retries()
    tls: OutboundTls = OutboundTls(OutboundTlsMode.MESH)


# -- MeshPolicy ---------------------------------------------------------------------------------------------


class WorkloadKind(enum.Enum):
    """What a MeshPolicy can hold for, other than a namespace."""

    DEPLOYMENT = "Deployment"
    STATEFUL_SET = "StatefulSet"
    DAEMON_SET = "DaemonSet"
    REPLICA_SET = "ReplicaSet"
    JOB = "Job"
    CRON_JOB = "CronJob"


class TargetRef(Part, frozen=True):
    """A workload of the policy's namespace."""

    kind: WorkloadKind
    name: Host
    group: Annotated[str, text(253, "an API group", least=0)] | None = None


class Mtls(Part, frozen=True):
    """What sidecars accept."""

    mode: MtlsMode | None = None
    ports: Annotated[dict[PortKey, MtlsMode], msgspec.Meta(max_length=64)] = {}


class Egress(Part, frozen=True):
    """What happens to connections to addresses outside the mesh."""

    mode: EgressMode


class AccessLog(enum.Enum):
    """Which requests are logged."""

    ERRORS = "errors"
    ALL = "all"


class MeshSettings(Part, frozen=True):
    """Settings of a mesh, a namespace or a workload."""

    later = ("tracing",)
    mtls: Mtls = Mtls()
    egress: Egress | None = None
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    path_normalization: PathNormalization | None = None
    access_log: AccessLog | None = None


class MeshSpec(Part, frozen=True):
    """Settings that a more specific policy wins over, and settings that win over it."""

    target_refs: Annotated[tuple[TargetRef, ...], msgspec.Meta(min_length=1, max_length=16)] | None = None
    defaults: MeshSettings = MeshSettings()
    overrides: MeshSettings = MeshSettings()


# -- the objects --------------------------------------------------------------------------------------------


class Policy(msgspec.Struct, frozen=True):
    """What every kind has: its name, and what tells older from newer."""

    namespace: str
    name: str
    created: str
    """RFC 3339 in UTC, as the API server writes it; '' for what is not there yet."""
    generation: int

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name


class TrafficPolicy(Policy, frozen=True):
    """Everything that holds for one Service."""

    spec: TrafficSpec


class MeshPolicy(Policy, frozen=True):
    """What holds for a namespace or some of its workloads; in the control plane's namespace, for the mesh."""

    spec: MeshSpec


LATER_VALUES: dict[type[enum.Enum], tuple[str, ...]] = {
    Algorithm: ("consistent-hash",),
    OutboundTlsMode: ("simple", "mutual"),
    WorkloadKind: ("Service", "Namespace", "Pod", "Gateway"),
}
"""Values of the model that this version refuses."""
