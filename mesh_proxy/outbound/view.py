"""How an outbound connection sees the mesh: looked up again when the configuration has changed."""

from __future__ import annotations

from mesh_api.sidecar import Destination, EgressMode, Pod
from mesh_proxy.discovery.contents import Absent, Answer
from mesh_proxy.http.context import Denied
from mesh_proxy.net.addr import Addr
from mesh_proxy.net.conn import Conn
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.service import Service
from mesh_proxy.runtime import Runtime

DIRECTION = "outbound"
IDLE_S = 3600.0


class OutboundView:
    """One outbound HTTP connection's look."""

    __slots__ = (
        "_addr",
        "_generation",
        "_last",
        "_runtime",
        "_service",
        "conn",
        "destination",
        "source",
        "stats",
    )
    direction = DIRECTION
    side = "client"
    explain = True
    keep_mesh_error = True
    drains = False
    idle_s = IDLE_S
    identity_line = b""
    plaintext_port = 0

    def __init__(self, runtime: Runtime, conn: Conn, addr: Addr, service: Service, source: str) -> None:
        self._runtime = runtime
        self._addr = addr
        self._service: Service | Denied = service
        self._last = service
        self._generation = runtime.store.generation
        self.conn = conn
        self.source = source
        self.destination = str(addr)
        self.stats = runtime.stats.request_stats(DIRECTION, service.label, "", False)

    def service(self) -> Service | Denied:
        store = self._runtime.store
        if store.generation != self._generation:
            self._generation = store.generation
            answer = store.lookup(self._addr)
            if answer is not Absent.NO_ANSWER or not store.forgot(self._addr):
                self._service = self._moved(answer)
        return self._service

    def _moved(self, answer: Answer) -> Service | Denied:
        """What began in the mesh never goes on in plaintext, whatever the egress mode and the new owner."""
        if isinstance(answer, Absent):
            return Denied(503, Flag.NC, f"{self._addr} is no longer a destination of the mesh")
        service = service_of(self._runtime, answer, self._addr)
        if service is None or is_downgrade(self._last, service):
            return Denied(503, Flag.NC, f"{self._addr} belongs to somebody outside the mesh now")
        self._last = service
        return service


def service_of(runtime: Runtime, answer: Answer, addr: Addr) -> Service | None:
    """The service for an answer; None if the egress mode refuses the address or there is no answer."""
    services = runtime.services
    if isinstance(answer, Destination):
        return services.destination(answer)
    if isinstance(answer, Pod):
        return services.pod(answer, addr)
    if answer is Absent.NOT_IN_MESH and runtime.store.egress is EgressMode.PASSTHROUGH:
        return services.outside(addr)
    return None


def is_downgrade(before: Service, now: Service) -> bool:
    """Whether an address has moved from a service of the mesh to one that is reached in plaintext."""
    return now is not before and now.plaintext and not before.plaintext
