"""The pages of the admin, health and metrics ports, over whatever holds the sidecar's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from mesh_api.sidecar import Snapshot
from mesh_ops.exposition import CONTENT_TYPE, chunks
from mesh_ops.pages import JSON, Handler, Query, Response, Route, Routes, text
from mesh_ops.registry import Registry


class CredentialInfo(msgspec.Struct, frozen=True):
    """The certificate in use; nothing secret."""

    identity: str
    expires: str
    """RFC 3339."""
    serial: str = ""


class AdminState(Protocol):
    """What the pages show, and what they may do. Nothing here waits."""

    @property
    def registry(self) -> Registry:
        """The metrics."""
        ...

    def not_ready(self) -> Sequence[str]:
        """Reasons why the sidecar is not ready; empty when it is."""
        ...

    def snapshot(self) -> Snapshot | None:
        """The configuration in force."""
        ...

    def discovery(self) -> Mapping[str, object] | None:
        """The state of the control plane's stream; None without one."""
        ...

    def credentials(self) -> CredentialInfo | None:
        """The certificate in use, if there is one."""
        ...

    def pools(self) -> Sequence[Mapping[str, object]]:
        """One JSON object for each endpoint with its connections and balancer state."""
        ...

    def server_info(self) -> Mapping[str, object]:
        """Version, process, uptime, ports and the like, as a JSON object."""
        ...

    def log_level(self) -> str:
        """Least level of the application log."""
        ...

    def set_log_level(self, level: str) -> None:
        """Change the level; raises ValueError with the known ones."""
        ...

    def drain(self) -> None:
        """Begin to drain; a second call changes nothing."""
        ...

    def quit(self) -> None:
        """End the process as SIGTERM would."""
        ...


class _Page(NamedTuple):
    method: str
    path: str
    about: str
    handler: Handler


def admin_routes(state: AdminState) -> Routes:
    """Everything; for loopback only."""
    pages = [
        *_health_pages(state),
        *_metrics_pages(state),
        _Page("GET", "/config_dump", "configuration, certificate and pools, as JSON", _config_dump(state)),
        _Page("GET", "/discovery", "the control plane's stream, as JSON", _discovery(state)),
        _Page("GET", "/log_level", "level of the log", _show_level(state)),
        _Page("PUT", "/log_level", "?level=debug|info|warning|error: change it", _set_level(state)),
        _Page("POST", "/log_level", "the same", _set_level(state)),
        _Page("POST", "/drain", "stop taking new work, go on with what there is", _drain(state)),
        _Page("POST", "/quit", "end the process", _quit(state)),
        _Page("GET", "/server_info", "version, uptime, ports, as JSON", _server_info(state)),
    ]
    pages += [_Page("GET", path, "this list", _help(pages)) for path in ("/help", "/")]
    return _table(pages)


def health_routes(state: AdminState) -> Routes:
    """Liveness and readiness; for every address."""
    return _table(_health_pages(state))


def metrics_routes(state: AdminState) -> Routes:
    """The metrics; for every address."""
    return _table(_metrics_pages(state))


def _health_pages(state: AdminState) -> list[_Page]:
    return [
        _Page("GET", "/healthz/live", "200 while the loop runs", lambda query, body: text(200, "live")),
        _Page("GET", "/healthz/ready", "200, or 503 and why not", _ready(state)),
    ]


def _metrics_pages(state: AdminState) -> list[_Page]:
    return [
        _Page("GET", path, "metrics in the Prometheus text format", _metrics(state))
        for path in ("/metrics", "/stats/prometheus")
    ]


def _table(pages: Sequence[_Page]) -> Routes:
    table: dict[str, list[Route]] = {}
    for page in pages:
        table.setdefault(page.path, []).append(Route(page.method, page.handler))
    return table


def _ready(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        reasons = state.not_ready()
        return text(503, "\n".join(reasons)) if reasons else text(200, "ready")

    return handler


def _metrics(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        return Response(200, CONTENT_TYPE, chunks(state.registry))

    return handler


def _config_dump(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        dump = {
            "snapshot": state.snapshot(),
            "discovery": state.discovery(),
            "credentials": state.credentials(),
            "pools": list(state.pools()),
        }
        return _json(dump)

    return handler


def _discovery(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        status = state.discovery()
        return _json(status if status is not None else {"source": "file"})

    return handler


def _server_info(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        return _json(state.server_info())

    return handler


def _show_level(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        if query:
            refusal = text(405, "a GET changes nothing; use PUT or POST to set the level")
            return Response(refusal.status, refusal.content_type, refusal.body, (("Allow", "POST, PUT"),))
        return text(200, state.log_level())

    return handler


def _set_level(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        level = query.get("level")
        if level is None:
            return text(400, "expected ?level=")
        try:
            state.set_log_level(level)
        except ValueError as exc:
            return text(400, str(exc))
        return text(200, state.log_level())

    return handler


def _drain(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        state.drain()
        return text(200, "draining")

    return handler


def _quit(state: AdminState) -> Handler:
    def handler(query: Query, body: bytes) -> Response:
        state.quit()
        return text(200, "quitting")

    return handler


def _help(pages: Sequence[_Page]) -> Handler:
    lines = [f"{page.method:5} {page.path:18} {page.about}" for page in pages]

    def handler(query: Query, body: bytes) -> Response:
        return text(200, "\n".join(lines))

    return handler


def _json(value: object) -> Response:
    return Response(200, JSON, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
