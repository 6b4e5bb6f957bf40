"""What the request loop is given: the process's shared parts, and how one connection looks at the world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mesh_api.traffic import PathNormalization
from mesh_proxy.http2.process import Http2
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.pool.service import Service
from mesh_proxy.telemetry.access_log import Record
from mesh_proxy.telemetry.stats import ProxyStats, RequestStats
from mesh_proxy.telemetry.tap import Taps
from mesh_proxy.wire.http1 import Limits


class Stoppable(Protocol):
    """Something that is under way."""

    def stop(self, flag: str, detail: str) -> None:
        """End it at once."""
        ...


class Context(Protocol):
    """Shared by every connection of the process."""

    reactor: Reactor
    stats: ProxyStats
    limits: Limits
    http2: Http2
    wall_offset: float
    """Unix time minus the reactor's clock, in seconds."""
    draining: bool
    """Inbound callers are asked to close."""
    stopping: bool
    """Inbound connections are closed between requests."""
    log_all: bool
    path_mode: PathNormalization
    path_plain: Callable[[bytes], bool] | None
    """Says at a glance that `path_mode` changes nothing about a target; None where it never does."""
    upgrades: frozenset[bytes]
    """Protocols, in lower case, that a client may switch its connection to."""
    relays: dict[Stoppable, int]
    """Inbound plaintext relays, tunnels and requests, and their port, which a change of its mode may end."""
    taps: Taps
    """Whether somebody watches: then requests go to `taps.active` at their end."""

    def next_request_id(self) -> bytes:
        """A new request id: 32 hexadecimal digits."""
        ...

    def record(self, record: Record) -> None:
        """Write one access-log record; never waits."""
        ...


class Denied:
    """The answer of a view that has no destination for the next request."""

    __slots__ = ("detail", "flag", "status")

    def __init__(self, status: int, flag: str, detail: str) -> None:
        self.status = status
        self.flag = flag
        self.detail = detail


class View(Protocol):
    """One downstream connection's look at the mesh."""

    direction: str
    side: str
    """`client` on the caller's sidecar, `server` on the receiver's: goes into error headers."""
    source: str
    """Address of the client."""
    destination: str
    """Original destination, for logs."""
    stats: RequestStats
    """Where requests count that reached no endpoint; inbound, all of them."""
    explain: bool
    """Whether the client may read details in error headers."""
    keep_mesh_error: bool
    """Whether the other side of the exchange is a sidecar whose error header is passed on."""
    drains: bool
    """Whether a draining sidecar asks this client to close."""
    idle_s: float
    identity_line: bytes
    """Header line that tells the application who its caller is; b"" if that was not proved, or outbound."""
    plaintext_port: int
    """The port that an unproved caller has come to, whose mTLS mode may end requests; 0 for all others."""
    conn: Conn

    def service(self) -> Service | Denied:
        """Where the next request goes; asked once a request, so a new configuration acts at once."""
        ...
