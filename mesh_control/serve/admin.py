"""The admin port's server: TLS, who may ask, and pages by path (see `mesh_api.admin`).

A page is added with `AdminPages.add(method, path, handler)`; `{name}` in the path takes one segment. Its
handler gets a `Call` and returns JSON; it raises `Refused` for an answer that is an error, and ValueError for
a parameter that it cannot use. It brings its own deadline.

Every replica answers for all. A handler that needs the others does its own part only where `call.local` is
set, and else puts the others' parts to it, which `Fleet` fetches:

    async def stats(call: Call) -> bytes:
        mine = table(call.query)
        if call.local:
            return encode(mine)
        rest = await fleet.gather(call, EdgeTable)
        return encode(merged([mine, *rest.answers], rest.replicas, rest.answered))
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

import h11
import msgspec
import trio

from certs.credentials import Credentials, CredentialsError, open_pair
from certs.events import OnEvent, ignore_event
from certs.verify import PeerRejected, peer_identity
from mesh_api.admin import ADMIN_PREFIX, NO_PAGE, TOKEN_HEADER, AdminError
from mesh_control.serve.admin_auth import AdminAuthenticator, Denied, Rights
from mesh_control.serve.discovery_asks import AskFailed
from mesh_ops.pages import JSON, MAX_PARAMETERS, Response, Site, parse_query, serve_site, split

ALPN = "http/1.1"
HANDSHAKE_S = 5.0


class Refused(Exception):
    """An answer that is an error; `status` is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Call(NamedTuple):
    """A request to a page."""

    method: str
    path: str
    """Below ADMIN_PREFIX, as it came."""
    parts: Mapping[str, str]
    """What stands for the names in the page's path."""
    query: Mapping[str, str]
    local: bool
    """Another replica asks: only what this one knows itself."""


Handler = Callable[[Call], Awaitable[bytes]]


class AdminPages:
    """The pages by path."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, ...], dict[str, Handler]] = {}

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Add a page. PUT is for those who may change something, GET for all who are let in."""
        self._pages.setdefault(tuple(path.split("/")), {})[method] = handler

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler for a path, and what stands for the names. Raises Refused."""
        segments = path.split("/")
        for pattern, methods in self._pages.items():
            names = _match(pattern, segments)
            if names is None:
                continue
            if method not in methods:
                raise Refused(405, f"expected {', '.join(methods)} for {ADMIN_PREFIX}{path}")
            return methods[method], names
        raise Refused(404, NO_PAGE)


def _match(pattern: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    names = {}
    for wanted, got in zip(pattern, segments, strict=True):
        if wanted.startswith("{") and got:
            names[wanted[1:-1]] = unquote(got)
        elif wanted != got:
            return None
    return names


class AdminServer:
    """Serves `pages`.

    Args:
        leaf: the control plane's own credentials; None before there are any.
        identity: SPIFFE id of the control plane: who proves it is another replica.

    Attributes:
        requests: answered, by HTTP status.
    """

    def __init__(
        self,
        authenticator: AdminAuthenticator,
        leaf: Callable[[], Credentials | None],
        identity: str,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self.pages = AdminPages()
        self.requests: Counter[int] = Counter()
        self.authenticator = authenticator
        self.on_event = on_event
        self._leaf = leaf
        self._identity = identity
        self._contexts: tuple[Credentials, ssl.SSLContext, ssl.SSLContext] | None = None

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled."""
        await serve_site(listeners, self._secure, self.failed, task_status=task_status)

    def client_context(self) -> ssl.SSLContext | None:
        """The context to ask other replicas with; None before there is a certificate."""
        contexts = self._current()
        return contexts[1] if contexts else None

    def failed(self, exc: Exception) -> None:
        """Report a defect."""
        self.on_event("admin.failed", {"error": f"{type(exc).__name__}: {exc}"[:300]})

    async def _secure(self, transport: trio.SocketStream) -> tuple[trio.SSLStream[trio.SocketStream], Site]:
        contexts = self._current()
        if contexts is None:
            raise trio.BrokenResourceError("no certificate yet")
        stream = trio.SSLStream(transport, contexts[0], server_side=True, https_compatible=True)
        with trio.fail_after(HANDSHAKE_S):
            await stream.do_handshake()
        return stream, _AdminSite(self, self._is_replica(stream.getpeercert()))

    def _current(self) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
        """Contexts of server and client, made once for each leaf."""
        leaf = self._leaf()
        if leaf is None:
            return None
        if self._contexts is None or self._contexts[0] is not leaf:
            try:
                self._contexts = leaf, *open_pair(leaf, ALPN)
            except CredentialsError as exc:
                self.on_event("admin.failed", {"error": str(exc)})
                return None
        return self._contexts[1:]

    def _is_replica(self, certificate: Mapping[str, object] | None) -> bool:
        """Whether the caller has proved to be the control plane; everybody else needs a token."""
        try:
            return peer_identity(certificate, self._identity.split("/")[2]).identity == self._identity
        except PeerRejected:
            return False


class _AdminSite:
    """The requests of one connection."""

    def __init__(self, server: AdminServer, replica: bool) -> None:
        self._server = server
        self._replica = replica

    def refusal(self, _head: h11.Request) -> Response | None:
        """Nothing is said to somebody who was not let in."""
        return None

    async def answer(self, head: h11.Request, _body: bytes) -> Response:
        try:
            response = Response(200, JSON, await self._answer(head))
        except (Refused, Denied, AskFailed) as exc:
            response = _error(exc.status, str(exc))
        except ValueError as exc:
            response = _error(400, str(exc))
        self._server.requests[response.status] += 1
        return response

    def report(self, exc: Exception) -> None:
        self._server.failed(exc)

    def failed(self, exc: Exception) -> Response:
        self.report(exc)
        self._server.requests[500] += 1
        return _error(500, "a defect of the control plane; its log says more")

    async def _answer(self, head: h11.Request) -> bytes:
        method = head.method.decode("ascii")
        path, query = split(head.target)
        if not self._replica:
            token = dict(head.headers).get(TOKEN_HEADER.encode(), b"").decode("latin-1")
            needed = Rights.READ if method in ("GET", "HEAD") else Rights.CHANGE
            await self._server.authenticator.check(token, needed)
        fields = parse_query(query)
        if fields is None:
            raise Refused(400, f"expected at most {MAX_PARAMETERS} query parameters")
        if not path.startswith(f"{ADMIN_PREFIX}/"):
            raise Refused(404, NO_PAGE)
        path = path.removeprefix(ADMIN_PREFIX)
        asked = "GET" if method == "HEAD" else method
        handler, parts = self._server.pages.find(asked, path)
        given = {name: value for name, value in fields.items() if name != "local"}
        body = await handler(Call(asked, path, parts, given, fields.get("local") == "1"))
        if asked != "GET" and not self._replica:
            self._server.on_event("admin.changed", {"path": path, "query": query[:200]})
        return body


def _error(status: int, reason: str) -> Response:
    return Response(status, JSON, msgspec.json.encode(AdminError(reason)))
