"""What the control plane's admin port answers: JSON over HTTP, through the API server's `services/proxy`.

    GET /admin/v1/version                                  ControlVersion
    GET /admin/v1/sidecars[?namespace=NS]                  SidecarList
    GET /admin/v1/sidecars/NAMESPACE/POD/config            SidecarConfig
    PUT /admin/v1/sidecars/NAMESPACE/POD/log?level=LEVEL   SidecarLog
    GET /admin/v1/stats[?window=SECONDS]                   stats.EdgeTable
    GET /admin/v1/top[?namespace=NS&workload=NAME&seconds=SECONDS]  stats.Top

TLS 1.3. The API server drops Authorization on its way, so a caller brings a token in the header
`TOKEN_HEADER`: one of the ServiceAccount `VIEWER` (to read) or `OPERATOR` (to change, too) in the control
plane's namespace, for the audience `ADMIN_AUDIENCE`. Who may have such a token made is the cluster's RBAC.

Any replica answers for all: it asks the others. What is refused or fails is an `AdminError`, with status 400
(a wrong parameter), 401 and 403 (the token), 404 (no such page; a sidecar that no replica knows), 503 (caches
not synced yet; a sidecar or a replica refused) or 504 (the sidecar did not answer in time).
"""

from __future__ import annotations

import enum

from mesh_api.sidecar import Destination, Inbound, Pod
from mesh_api.traffic import Message

ADMIN_PREFIX = "/admin/v1"
ADMIN_AUDIENCE = "triomesh-admin"
TOKEN_HEADER = "x-triomesh-token"
VIEWER = "triomesh-viewer"
OPERATOR = "triomesh-operator"
LEVELS = ("debug", "info", "warning", "error")
"""Of a sidecar's log."""
NO_PAGE = "no such page"
"""The error of a control plane that is older than who asks."""
MAX_ADMIN_BYTES = 32 * 1024 * 1024


class AdminError(Message, frozen=True):
    """Why there is no other answer."""

    error: str


class ControlVersion(Message, frozen=True):
    """The replica that answered."""

    replica: str
    version: str
    trust_domain: str
    roles: tuple[str, ...] = ()


class SyncState(enum.Enum):
    """Whether a sidecar has what it should have."""

    SYNCED = "synced"
    PENDING = "pending"
    """Sent, not acknowledged yet."""
    REJECTED = "rejected"
    """Its last update was refused; the one before is in force."""


class SidecarState(Message, frozen=True):
    """One sidecar with a discovery stream."""

    namespace: str
    pod: str
    replica: str
    version: str
    identity: str
    state: SyncState
    keys: int
    """Subscriptions."""
    connected_s: float
    error: str = ""
    """Of a refused update."""
    root_sha256: tuple[str, ...] = ()
    """Fingerprints (DER, lower-case hex) of the roots that it was told to trust."""
    http2: str = ""
    """Name and version of its HTTP/2 engine; '' for a sidecar that does not say."""


class SidecarList(Message, frozen=True):
    """All sidecars, and how many replicas the answer is from."""

    replicas: int
    answered: int
    sidecars: tuple[SidecarState, ...] = ()


class Listener(Message, frozen=True):
    """A port that a sidecar listens on."""

    address: str
    port: int
    purpose: str
    """outbound, inbound, health, metrics or admin."""


class Certificate(Message, frozen=True):
    """One certificate that a sidecar holds; times are RFC 3339."""

    role: str
    """leaf, intermediate or root."""
    subject: str
    """SPIFFE id of a leaf, else the distinguished name."""
    serial: str
    not_before: str
    not_after: str
    sha256: str


class SidecarLog(Message, frozen=True):
    """What a sidecar writes to its log."""

    level: str
    access_log: bool = False


class SidecarConfig(Message, frozen=True):
    """What one sidecar has in force, as it says itself."""

    namespace: str
    pod: str
    destinations: tuple[Destination, ...] = ()
    pods: tuple[Pod, ...] = ()
    inbound: Inbound = Inbound()
    listeners: tuple[Listener, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    log: SidecarLog = SidecarLog(level="info")
    http2: str = ""
    """Name and version of its HTTP/2 engine."""
