"""What a running sidecar shows of itself, on admin pages and to the control plane, and lets them change."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import msgspec
import trio

from mesh_api.admin import Listener, SidecarConfig, SidecarLog
from mesh_api.discovery import Page, tap_seconds
from mesh_api.sidecar import Inbound, Snapshot
from mesh_ops.printable import timestamp
from mesh_ops.registry import Registry
from mesh_proxy.admin.certificates import describe
from mesh_proxy.admin.routes import CredentialInfo
from mesh_proxy.discovery.answers import Handler
from mesh_proxy.discovery.stream import DiscoveryStream
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.runtime import Runtime


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
            "http2": str(self._runtime.engine),
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "uptime_s": round(trio.current_time() - self._started, 3),
            "ports": dict(self._ports),
            "connections": self._runtime.connections,
            "draining": self._runtime.draining,
            "config_generation": self._runtime.store.generation,
        }

    def asked(self) -> dict[Page, Handler]:
        """What the control plane can ask."""
        return {Page.CONFIG: self._config, Page.LOG: self._set_log, Page.TAP: self._tap}

    async def _config(self, _arguments: Mapping[str, str]) -> Iterable[bytes]:
        await trio.lowlevel.checkpoint()
        return self._config_parts(self.snapshot())

    def _config_parts(self, snapshot: Snapshot | None) -> Iterator[bytes]:
        """A SidecarConfig in JSON, an element at a time: it may be large, and traffic goes on meanwhile."""
        settings, credentials = self._runtime.settings, self._runtime.holder.current
        head = SidecarConfig(
            namespace=settings.pod_namespace,
            pod=settings.pod_name,
            inbound=snapshot.inbound if snapshot else Inbound(),
            listeners=tuple(self._listeners()),
            certificates=describe(credentials) if credentials else (),
            log=self._log(),
            http2=str(self._runtime.engine),
        )
        yield msgspec.json.encode(head)[:-1]
        for name, elements in (
            (b"destinations", snapshot.destinations if snapshot else ()),
            (b"pods", snapshot.pods if snapshot else ()),
        ):
            before = b',"' + name + b'":['
            for element in elements:
                yield before + msgspec.json.encode(element)
                before = b","
            if elements:
                yield b"]"
        yield b"}"

    def _listeners(self) -> Iterator[Listener]:
        settings = self._runtime.settings
        hosts = {
            "outbound": settings.outbound_hosts,
            "inbound": settings.inbound_hosts,
            "admin": settings.admin_hosts,
        }
        for name, port in self._ports.items():
            for host in hosts.get(name, settings.public_hosts):
                yield Listener(address=host, port=port, purpose=name)

    async def _set_log(self, arguments: Mapping[str, str]) -> Iterable[bytes]:
        await trio.lowlevel.checkpoint()
        self.set_log_level(arguments.get("level", ""))
        return (msgspec.json.encode(self._log()),)

    async def _tap(self, arguments: Mapping[str, str]) -> Iterable[bytes]:
        tapped = await self._runtime.taps.watch(tap_seconds(arguments))
        return (msgspec.json.encode(tapped),)

    def _log(self) -> SidecarLog:
        return SidecarLog(level=self.log_level(), access_log=self._runtime.store.access_log)

    def log_level(self) -> str:
        return self._runtime.log.level

    def set_log_level(self, level: str) -> None:
        self._runtime.log.set_level(level)

    def drain(self) -> None:
        self._runtime.drain(True)

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
        "sessions": len(endpoint.sessions.up),
        "streams": sum(len(session.streams) for session in endpoint.sessions.up),
        "latency_ms": round(endpoint.ewma_s * 1000, 3),
        "failures": endpoint.failures,
        "penalised": endpoint.penalty_until > now,
    }
