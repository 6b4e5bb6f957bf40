"""Limits of a circuit breaker: what a sidecar may have under way towards one cluster at once.

`begin() -> str` and `end()` bracket a request, `connect()` and `closed()` a connection, `wait()` and
`waited()` a request that waits for a connection. The first of each returns "" for yes, or the limit that is
reached, in words for the error; then the second must not be called.
"""

from __future__ import annotations

from mesh_api import traffic


class Breaker:
    """Counters against limits; `update` takes new limits over and keeps the counts."""

    __slots__ = (
        "_max_connections",
        "_max_pending",
        "_max_requests",
        "connections",
        "max_requests_per_connection",
        "pending",
        "requests",
    )

    def __init__(self, spec: traffic.Breaker) -> None:
        self.requests = 0
        self.connections = 0
        self.pending = 0
        self.update(spec)

    def update(self, spec: traffic.Breaker) -> None:
        """Take new limits over."""
        self._max_requests = spec.max_requests
        self._max_connections = spec.max_connections
        self._max_pending = spec.max_pending
        self.max_requests_per_connection = spec.max_requests_per_connection
        """0: no limit."""

    def begin(self) -> str:
        """Count a request."""
        if self._max_requests is not None and self.requests >= self._max_requests:
            return f"maxRequests ({self._max_requests}) is reached"
        self.requests += 1
        return ""

    def end(self) -> None:
        """A counted request is over."""
        self.requests -= 1

    @property
    def full(self) -> bool:
        """No further connection may be opened."""
        return self._max_connections is not None and self.connections >= self._max_connections

    def connect(self) -> str:
        """Count a connection, from before it is dialled."""
        if self.full:
            return f"maxConnections ({self._max_connections}) is reached"
        self.connections += 1
        return ""

    def closed(self) -> None:
        """A counted connection is closed."""
        self.connections -= 1

    def wait(self) -> str:
        """Count a request that waits for a connection."""
        if self.pending >= self._max_pending:
            return f"maxPendingRequests ({self._max_pending}) is reached"
        self.pending += 1
        return ""

    def waited(self) -> None:
        """A counted request waits no longer."""
        self.pending -= 1
