"""What the admin pages show of a running sidecar, and the few things they may do to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import trio

from mesh_api.sidecar import Snapshot
from mesh_proxy.admin.routes import CredentialInfo
from mesh_proxy.discovery.stream import DiscoveryStream
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.runtime import Runtime
from mesh_proxy.telemetry.access_log import timestamp
from mesh_proxy.telemetry.registry import Registry


class Introspection:
    """The `AdminState` of a running sidecar."""

    def __init__(
        self,
        runtime: Runtime,
        stop: Callable[[], None],
        not_ready: Callable[[], list[str]],
        ports: Mapping[str, int],
        stream: DiscoveryStream | None = None,
    ) -> None:
        self._runtime = runtime
        self._stop = stop
        self._not_ready = not_ready
        self._ports = ports
        self._stream = stream
        self._started = trio.current_time()

    @property
    def registry(self) -> Registry:
        runtime = self._runtime
        runtime.stats.access_log_dropped.value = runtime.log.dropped
        return runtime.registry

    def not_ready(self) -> Sequence[str]:
        return self._not_ready()

    def snapshot(self) -> Snapshot | None:
        return self._runtime.store.dump()

    def discovery(self) -> Mapping[str, object] | None:
        return self._stream.status() if self._stream is not None else None

    def credentials(self) -> CredentialInfo | None:
        current = self._runtime.holder.current
        if current is None:
            return None
        return CredentialInfo(identity=current.identity, expires=timestamp(current.not_after))

    def pools(self) -> Sequence[Mapping[str, object]]:
        now = self._runtime.reactor.now
        return [
            {"service": service.label, **_endpoint(endpoint, now)}
            for service in self._runtime.services.all()
            for endpoint in service.endpoints()
        ]

    def server_info(self) -> Mapping[str, object]:
        try:
            release = version("triomesh")
        except PackageNotFoundError:
            release = "from source"
        return {
            "version": release,
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "uptime_s": round(trio.current_time() - self._started, 3),
            "ports": dict(self._ports),
            "connections": self._runtime.connections,
            "draining": self._runtime.draining,
            "config_generation": self._runtime.store.generation,
        }

    def log_level(self) -> str:
        return self._runtime.log.level

    def set_log_level(self, level: str) -> None:
        self._runtime.log.set_level(level)

    def drain(self) -> None:
        self._runtime.draining = True

    def quit(self) -> None:
        self._stop()


def _endpoint(endpoint: Endpoint, now: float) -> dict[str, object]:
    return {
        "endpoint": endpoint.text,
        "workload": endpoint.workload,
        "tls": "mesh" if endpoint.peer.identity else "none",
        "identity": endpoint.peer.identity,
        "inflight": endpoint.inflight,
        "idle": len(endpoint.idle),
        "latency_ms": round(endpoint.ewma_s * 1000, 3),
        "failures": endpoint.failures,
        "penalised": endpoint.penalty_until > now,
    }
