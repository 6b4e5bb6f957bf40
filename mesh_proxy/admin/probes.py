"""Checks and metrics of the application, on the sidecar's metrics port.

The injector has pointed the kubelet's probes and hooks, and Prometheus, to this port: they are not in the
mesh, and a STRICT port would refuse them. What they would have asked the application is asked here, at the
pod's own address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec
import trio

from mesh_api.application import METRICS_VARIABLE, PROBES_VARIABLE, AppCheck, AppMetrics, MetricsTarget
from mesh_ops.exposition import CONTENT_TYPE
from mesh_ops.pages import Handler, Query, Response, Route, Routes, text
from mesh_proxy.admin import grpc_health
from mesh_proxy.admin.fetch import FetchError, dial, get, host_port

MAX_REDIRECTS = 10
MAX_CHECKS = 1024
METRICS_S = 8.0
"""Less than Prometheus waits by default (10 s): the sidecar's own metrics must get out."""
METRICS_BYTES = 10 * 1024 * 1024
_KNOWN = frozenset(int(status) for status in HTTPStatus)
_UP = "triomesh_application_metrics_up"

OnChange = Callable[[str, str], None]
"""Told the path and the outcome of a check when it is another than the last time."""
_Check = Callable[[], Awaitable[None]]
_Form = TypeVar("_Form")


class ApplicationError(ValueError):
    """What the injector has written cannot be read; the message says what and where."""


class _Header(msgspec.Struct, frozen=True):
    name: str
    value: str = ""


class _HttpGet(msgspec.Struct, frozen=True, rename="camel"):
    path: str = "/"
    scheme: str = "HTTP"
    http_headers: tuple[_Header, ...] | None = None


class _Grpc(msgspec.Struct, frozen=True):
    service: str | None = None


class Application:
    """What this pod's application is asked through the sidecar.

    Args:
        pod_ip: the pod's first address, the one that the kubelet uses.
        checks: JSON of TRIOMESH_PROBES, or empty.
        metrics: JSON of TRIOMESH_APP_METRICS, or empty.
        on_change: told what checks say.

    Raises:
        ApplicationError: one of them cannot be read.
    """

    def __init__(self, pod_ip: str, checks: str, metrics: str, on_change: OnChange) -> None:
        found = _decoded(PROBES_VARIABLE, checks or "{}", dict[str, AppCheck])
        if len(found) > MAX_CHECKS:
            raise ApplicationError(
                f"{PROBES_VARIABLE}: expected at most {MAX_CHECKS} checks, got {len(found)}"
            )
        self._target = _decoded(METRICS_VARIABLE, metrics or "{}", AppMetrics).target
        if not pod_ip and (found or self._target):
            raise ApplicationError("TRIOMESH_POD_IPS: expected the pod's address, it is not set")
        self._ip = pod_ip
        self._on_change = on_change
        self._outcomes: dict[str, str] = {}
        self._checks = {
            path: (self._check(path, check), check.timeout_seconds) for path, check in found.items()
        }

    def routes(self, own_metrics: Callable[[], Iterable[bytes]]) -> Routes:
        """The pages: one for each check, and the metrics of both.

        Args:
            own_metrics: those of the sidecar.
        """
        table: dict[str, Route] = {
            path: Route("GET", self._checked(path, check, timeout_s))
            for path, (check, timeout_s) in self._checks.items()
        }
        if self._target is not None:
            table["/stats/prometheus"] = Route("GET", self._both(self._target, own_metrics))
        return table

    def _check(self, path: str, check: AppCheck) -> _Check:
        if len(check.handler) != 1:
            raise ApplicationError(
                f"{PROBES_VARIABLE}: {path}: expected one handler, got {len(check.handler)}"
            )
        ((kind, given),) = check.handler.items()
        where = f"{PROBES_VARIABLE}: {path}: {kind}"
        if kind == "httpGet":
            http = _converted(where, given, _HttpGet)
            return lambda: self._http(check.port, http)
        if kind == "tcpSocket":
            return lambda: self._tcp(check.port)
        if kind == "grpc":
            service = _converted(where, given, _Grpc).service or ""
            return lambda: self._grpc(check.port, service)
        raise ApplicationError(f"{where}: expected httpGet, tcpSocket or grpc")

    def _checked(self, path: str, check: _Check, timeout_s: float) -> Handler:
        async def handler(query: Query, body: bytes) -> Response:
            response = text(200, "ok")
            try:
                with trio.fail_after(timeout_s):
                    await check()
            except trio.TooSlowError:
                response = text(HTTPStatus.GATEWAY_TIMEOUT, f"no answer within {timeout_s:g} s")
            except _Unwell as exc:
                response = text(exc.status, str(exc))
            except FetchError as exc:
                response = text(HTTPStatus.SERVICE_UNAVAILABLE, str(exc))
            outcome = str(response.body, "utf-8").strip() if isinstance(response.body, bytes) else ""
            # The kubelet's Event has the status alone; the log has the reason, once.
            if self._outcomes.get(path, "ok") != outcome:
                self._on_change(path, outcome)
            self._outcomes[path] = outcome
            return response

        return handler

    async def _http(self, port: int, asked: _HttpGet) -> None:
        """As the kubelet: 200 to 399 is well; redirects to the same host are followed."""
        https = asked.scheme.upper() == "HTTPS"
        headers = [(header.name, header.value) for header in asked.http_headers or ()]
        base = f"{'https' if https else 'http'}://{host_port(self._ip, port)}"
        url = f"{base}/{asked.path.lstrip('/')}"
        for _ in range(MAX_REDIRECTS):
            parts = _split(url)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            answer = await get(self._ip, port, path, https=parts.scheme == "https", headers=headers)
            if not 200 <= answer.status < 400:
                raise _Unwell(answer.status)
            if answer.status < 300 or not answer.location:
                return
            url = urljoin(url, answer.location)
            if not url.startswith((base + "/", base + "?")) and url != base:
                return
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")

    async def _tcp(self, port: int) -> None:
        await trio.aclose_forcefully(await dial(self._ip, port))

    async def _grpc(self, port: int, service: str) -> None:
        stream = await dial(self._ip, port)
        try:
            await grpc_health.check(stream, host_port(self._ip, port), service)
        except trio.BrokenResourceError as exc:
            raise FetchError(f"{host_port(self._ip, port)}: {exc.__cause__ or exc}") from None
        finally:
            await trio.aclose_forcefully(stream)

    def _both(self, target: MetricsTarget, own: Callable[[], Iterable[bytes]]) -> Handler:
        async def handler(query: Query, body: bytes) -> Response:
            try:
                with trio.fail_after(METRICS_S):
                    theirs = await self._metrics(target)
                up, said = 1, b""
            except (FetchError, trio.TooSlowError) as exc:
                reason = str(exc) or f"no answer within {METRICS_S:g} s"
                theirs, up = b"", 0
                said = b"# the application's metrics: " + reason.replace("\n", " ").encode() + b"\n"
            tail = f"# TYPE {_UP} gauge\n{_UP} {up}\n".encode()

            def pieces() -> Iterable[bytes]:
                yield from own()
                yield tail + said
                yield theirs

            return Response(200, CONTENT_TYPE, pieces())

        return handler

    async def _metrics(self, target: MetricsTarget) -> bytes:
        accept = (("Accept", "text/plain;version=0.0.4"), ("User-Agent", "triomesh"))
        answer = await get(
            self._ip,
            target.port,
            target.path,
            https=target.scheme == "https",
            headers=accept,
            body_limit=METRICS_BYTES,
        )
        if answer.status != 200:
            raise FetchError(f"status {answer.status}")
        # OpenMetrics ends with a line that would end the page here.
        lines = answer.body.rstrip().removesuffix(b"# EOF").rstrip()
        return lines + b"\n" if lines else b""


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as exc:
        raise FetchError(f"{url!r} is not a URL: {exc}") from None


class _Unwell(FetchError):
    """The application answers, and not well."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the application answers {status}")
        self.status = status if status in _KNOWN else HTTPStatus.INTERNAL_SERVER_ERROR


def _decoded(variable: str, given: str, form: type[_Form]) -> _Form:
    try:
        return msgspec.json.decode(given, type=form)
    except msgspec.DecodeError as exc:
        raise ApplicationError(f"{variable}: {exc}") from None


def _converted(where: str, given: Mapping[str, object], form: type[_Form]) -> _Form:
    try:
        return msgspec.convert(given, form)
    except msgspec.ValidationError as exc:
        raise ApplicationError(f"{where}: {exc}") from None
