"""East-west statistics: what a sidecar reports of each edge, and what the control plane answers about them.

An edge is one pair of workloads and one way to get there, seen from one sidecar: outbound by the caller's,
inbound by the receiver's. A report holds differences since the one before, so a lost report is a gap, never
a wrong total.

The control plane's answers are EdgeTable and Top (see admin.py). Each replica knows the sidecars that are
connected to it (WindowPart); whoever is asked puts the parts together. Buckets are counted from the Unix
epoch, so those of two replicas compare.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from mesh_api.traffic import Message

LATENCY_BUCKETS_S = (
    *(0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025),
    *(0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0),
    *(30.0, 60.0),
)
"""Upper bounds; one more bucket is for what took longer."""

MAX_COUNT = 2**63 - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Duration = Annotated[float, msgspec.Meta(ge=0, le=MAX_COUNT)]
"""JSON has no number for what is infinite or none."""
Text = Annotated[str, msgspec.Meta(max_length=640)]
"""Longer than the longest SPIFFE id of a ServiceAccount."""

PASSTHROUGH = "passthrough"
"""The Service of what is outside the mesh."""


class Direction(enum.Enum):
    """Whose sidecar counted."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


class EdgeKind(enum.Enum):
    """What was counted: requests, or connections of which nothing is known."""

    HTTP = "http"
    TCP = "tcp"


class Edge(Message, frozen=True):
    """Differences of one edge."""

    direction: Direction
    kind: EdgeKind
    service: Text = ""
    """What the client dialled: NAME.NAMESPACE:PORT, WORKLOAD.NAMESPACE for a pod by its own address,
    PASSTHROUGH outside the mesh. Outbound only, like the next two."""
    route: Text = ""
    """Of the policy; its number where it has no name."""
    subset: Text = ""
    namespace: Text = ""
    """Of the other side, as far as it is known."""
    workload: Text = ""
    """Of the other side (Deployment or similar), outbound only; '' where nobody was reached."""
    identity: Text = ""
    """SPIFFE id that the other side proved; '' is plaintext."""
    requests: Count = 0
    """As the client saw them: retries are not counted."""
    failures: Count = 0
    """Of `requests`: status 500 and above, none, or an error flag; none that the client caused (DC, DPE)."""
    attempts: Count = 0
    """As the endpoints saw them: every try. Where only `requests` is counted there are no retries."""
    attempt_failures: Count = 0
    retries: Count = 0
    overflows: Count = 0
    """Refused by a circuit breaker (UO)."""
    ejections: Count = 0
    latencies: dict[Count, Count] = {}
    """Count by the index of its bucket (LATENCY_BUCKETS_S)."""
    latency_sum_s: Duration = 0.0
    opened: Count = 0
    """Opaque connections."""
    closed: Count = 0
    broken: Count = 0
    """Of `closed`: with an error flag."""
    open: Count = 0
    """Opaque connections open now: a value, not a difference."""
    sent: Count = 0
    """Bytes from who calls to who is called, as counted on the client's connection: heads, bodies, and TLS
    where it speaks TLS."""
    received: Count = 0
    """Bytes back."""


class TappedRequest(Message, frozen=True):
    """Requests with the same ends, method and path, of one sidecar."""

    direction: Direction
    source: str
    """NAME.NAMESPACE of a workload, or an address."""
    destination: str
    """Likewise, or NAME.NAMESPACE:PORT of a Service where nobody was reached."""
    method: str
    path: str
    """Without the query."""
    count: Count
    failures: Count
    best_ms: Duration
    worst_ms: Duration
    last_ms: Duration


class Tapped(Message, frozen=True):
    """What went by while a sidecar was watched."""

    seconds: float
    requests: tuple[TappedRequest, ...] = ()
    dropped: Count = 0
    """Requests that found no room."""


class Owner(Message, frozen=True):
    """A workload whose sidecars have reported."""

    namespace: str
    workload: str
    pods: int
    """Of which there are reports now."""
    seconds: tuple[float, ...]
    """How much of each bucket at least one pod was there, the newest bucket first."""
    covered_s: float
    """The same by pod, added up."""
    reported_s: float
    """Of how much time the sums are, all pods together: the first reports began before the window, and the
    next ones are still to come."""


class OwnEdge(Message, frozen=True):
    """One edge of one workload, as one replica knows it."""

    namespace: str
    workload: str
    """Whose sidecars counted."""
    edge: Edge
    """Sums over the window; `open` is the latest value."""


class WindowPart(Message, frozen=True):
    """What one replica knows of a window."""

    bucket_s: int
    newest: int
    """Number of the newest bucket: Unix time / bucket_s."""
    owners: tuple[Owner, ...] = ()
    edges: tuple[OwnEdge, ...] = ()
    dropped: int = 0
    """Edges that found no room, in sidecars or here, since this replica started."""


class EdgeRow(Message, frozen=True):
    """One edge of one workload over a window."""

    namespace: str
    workload: str
    """Whose sidecars counted: the caller's for an outbound edge, the receiver's for an inbound one."""
    pods: int
    span_s: float
    """Seconds that the sums cover: divide by them for rates."""
    edge: Edge
    """Sums over the window; `open` is the latest value."""


class EdgeTable(Message, frozen=True):
    """What all replicas know of a window, and how many of them answered."""

    window_s: float
    replicas: int
    answered: int
    rows: tuple[EdgeRow, ...] = ()
    dropped: int = 0
    """Edges that found no room, since the replicas started."""


class Top(Message, frozen=True):
    """Requests that ended within a few seconds, those of several sidecars together.

    What goes from one watched workload to another is there once, as the receiver counted it.
    """

    seconds: float
    replicas: int
    answered: int
    sidecars: int = 0
    """Asked."""
    failed: int = 0
    """Of `sidecars`: no answer."""
    watched: tuple[str, ...] = ()
    """NAME.NAMESPACE of the workloads that were asked."""
    requests: tuple[TappedRequest, ...] = ()
    dropped: int = 0
    """Requests that found no room."""
