"""services/proxy and pods/proxy: requests that the API server passes on into the cluster's network."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from ssl import SSLContext
from typing import Any

import trio

from mesh_local.apiserver import egress_tls
from mesh_local.apiserver.egress import Address, EgressError, Incoming, Request, exchange
from mesh_local.apiserver.service_routes import ServiceResolver, port_named
from mesh_local.apiserver.types import Call, Reader
from mesh_local.machinery.errors import ApiError, bad_request, failure, not_found
from mesh_local.machinery.objects import Object, dig

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# api, v1, namespaces, NAMESPACE, services, NAME, proxy
SEGMENTS = 7
# Until the answer begins, and between two pieces of it.
ANSWER_S = 60.0
IDLE_S = 600.0
# RFC 9110 section 7.6.1, and what Go's ReverseProxy drops besides.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The credentials are for the API server.
NOT_PASSED = frozenset({b"host", b"authorization"})
NAME = re.compile(
    r"(?:(?P<scheme>https?|):)?(?P<name>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(?::(?P<port>[a-z0-9-]*))?"
)


class _Gone(Exception):
    """The client went away."""


@dataclass(frozen=True, slots=True)
class _Destination:
    address: Address
    tls: SSLContext | None


class ProxyEndpoint:
    """Serves `proxy` below a Service or a Pod, for every method; bodies are passed on piece by piece."""

    def __init__(self, reader: Reader, services: ServiceResolver) -> None:
        self._reader = reader
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        """Answer one authorised request.

        Args:
            scope: ASGI; `raw_path` is `/api/v1/namespaces/NS/services/NAME/proxy/...`.
            call: its name may be `[scheme:]name[:port]`.

        Raises:
            ApiError: before the answer began: 400, 404 or 503.
        """
        if b"upgrade" in {name.lower() for name, _ in scope["headers"]}:
            raise bad_request("the proxy does not pass on protocol upgrades")
        path = _path_after_proxy(scope["raw_path"])
        if not path:
            await _redirect(scope, send)
            return
        destination = self._destination(call)
        target = path + (b"?" + scope["query_string"] if scope.get("query_string") else b"")
        request = Request(
            scope["method"],
            target,
            destination.address.host,
            destination.address,
            _forwarded(scope),
            _Body(receive) if _has_body(scope) else b"",
            destination.tls,
            destination.address.ip,
        )
        await _pass_on(request, receive, send)

    def _destination(self, call: Call) -> _Destination:
        what = "service" if call.kind.plural == "services" else "pod"
        parsed = NAME.fullmatch(call.name)
        if parsed is None:
            raise bad_request(f'invalid {what} request "{call.name}"')
        name, port = parsed["name"], parsed["port"] or ""
        find = self._service_address if what == "service" else self._pod_address
        tls = egress_tls.unverified() if parsed["scheme"] == "https" else None
        return _Destination(find(call, name, port), tls)

    def _service_address(self, call: Call, name: str, port: str) -> Address:
        service = self._reader.get("services", name, call.namespace)
        if service is None:
            raise not_found("services", "", name)
        if port.isdecimal():
            named = port_named(service, int(port))
            if named is None:
                raise _unavailable(f'no service port {port} found for service "{name}"')
            port = named
        address = self._services.by_port_name(call.namespace, name, port, only_pods=True)
        if address is None:
            raise _unavailable(f'no endpoints available for service "{call.name}"')
        return address

    def _pod_address(self, call: Call, name: str, port: str) -> Address:
        pod = self._reader.get("pods", name, call.namespace)
        if pod is None:
            raise not_found("pods", "", name)
        ip = dig(pod, "status", "podIP", default="")
        if not _is_proxyable(ip):
            raise bad_request("address not allowed")
        number = port or str(_first_port(pod) or 80)
        if not number.isdecimal() or not 0 < int(number) < 65536:
            raise bad_request(f'invalid pod request "{call.name}"')
        return self._services.address(ip, int(number))


def _is_proxyable(ip: str) -> bool:
    """Whether an address can be that of a Pod: those of a machine itself are no way out for clients."""
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    return not (
        address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    )


def _first_port(pod: Object) -> int | None:
    containers: list[Object] = dig(pod, "spec", "containers", default=[])
    return next((p["containerPort"] for c in containers for p in c.get("ports") or ()), None)


def _unavailable(message: str) -> ApiError:
    return failure(503, "ServiceUnavailable", message)


def _path_after_proxy(raw: bytes) -> bytes:
    """The path after `.../proxy`, as the client wrote it; b"" where there is no slash."""
    place = 0
    for _ in range(SEGMENTS):
        while raw[place : place + 1] == b"/":
            place += 1
        found = raw.find(b"/", place)
        if found < 0:
            return b""
        place = found
    return raw[place:]


async def _redirect(scope: Scope, send: Send) -> None:
    """Send the client to the path with a slash, so that relative links work."""
    location = scope["raw_path"] + b"/"
    if scope.get("query_string"):
        location += b"?" + scope["query_string"]
    headers = [(b"location", location), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 301, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _has_body(scope: Scope) -> bool:
    names = {name.lower() for name, _ in scope["headers"]}
    return b"content-length" in names or b"transfer-encoding" in names


def _end_to_end(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without the headers that concern one connection only, also those that Connection names."""
    named = {
        part.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for part in value.split(b",")
    }
    return [(n, v) for n, v in headers if n.lower() not in HOP_BY_HOP and n.lower() not in named]


def _forwarded(scope: Scope) -> list[tuple[bytes, bytes]]:
    given: list[tuple[bytes, bytes]] = list(scope["headers"])
    ours = (b"x-forwarded-uri", b"x-forwarded-host", b"x-forwarded-proto")
    headers = [(n, v) for n, v in _end_to_end(given) if n.lower() not in (*NOT_PASSED, *ours)]
    if any(n.lower() == b"transfer-encoding" for n, _ in given):
        headers = [(n, v) for n, v in headers if n.lower() != b"content-length"]
        headers.append((b"transfer-encoding", b"chunked"))
    host = next((v for n, v in given if n.lower() == b"host"), b"")
    values = (scope["raw_path"], host, str(scope.get("scheme", "https")).encode())
    return headers + list(zip(ours, values, strict=True))


class _Body:
    """The body of the client's request, piece by piece. Raises _Gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._more:
            raise StopAsyncIteration
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        self._more = message.get("more_body", False)
        return bytes(message.get("body", b""))


async def _pass_on(request: Request, receive: Receive, send: Send) -> None:
    """Carry out the exchange. Raises ApiError 503 where no answer began."""
    try:
        with trio.move_on_after(ANSWER_S) as waiting:
            async with exchange(request) as incoming:
                waiting.deadline = float("inf")
                await _answer(incoming, receive, send)
                return
        if waiting.cancelled_caught:
            raise EgressError("context deadline exceeded")
    except EgressError as e:
        raise _unavailable(f"error trying to reach service: {e}") from None
    except _Gone:
        return


async def _answer(incoming: Incoming, receive: Receive, send: Send) -> None:
    """Pass the answer on until it or the client ends."""
    headers = _end_to_end(incoming.headers)
    await send({"type": "http.response.start", "status": incoming.status, "headers": headers})

    async def watch_client() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_client)
        await _stream(incoming, send)
        nursery.cancel_scope.cancel()


async def _stream(incoming: Incoming, send: Send) -> None:
    """The body. One that breaks off or stalls is left unfinished, so that the server cuts the connection."""
    while True:
        chunk = None
        try:
            with trio.move_on_after(IDLE_S):
                chunk = await incoming.chunk()
        except EgressError:
            return
        if chunk is None:
            return
        await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk)})
        if not chunk:
            return
