"""HTTP from the API server to webhooks, Services and Pods over a `Dialer`; errors read as Go words them."""

import errno
import os
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import h11
import httpcore
import trio
from cryptography import x509

from mesh_local.apiserver import egress_tls
from mesh_local.network.types import Dialer

MAX_BODY = 3 * 1024 * 1024
CLOSE_S = 1.0


class EgressError(Exception):
    """A request did not get an answer; the text is what Go's client would say."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect: an IP address and a port, through a dialer.

    Args:
        others: more addresses of the same host, tried where the ones before fail.
    """

    dialer: Dialer
    ip: str
    port: int
    others: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """`10.0.0.1:80`, `[fd00::1]:80`."""
        return host_port(self.ip, self.port)


def host_port(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer; the names of headers are in lower case."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> str:
        return next((v.decode("latin-1") for k, v in self.headers if k == name), "")


class _Stream(httpcore.AsyncNetworkStream):
    """A trio stream as httpcore wants it; deadlines are the caller's cancel scopes."""

    def __init__(self, stream: trio.abc.Stream, tls: Callable[[ssl.SSLError], Any]) -> None:
        self._stream = stream
        self._explain = tls

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
            raise EgressError(_broken("read", e)) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
            raise EgressError(_broken("write", e)) from None

    async def aclose(self) -> None:
        with trio.move_on_after(CLOSE_S):
            await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        stream = trio.SSLStream(
            self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as e:
            await trio.aclose_forcefully(stream)
            if isinstance(e.__cause__, ssl.SSLError):
                raise EgressError(await self._explain(e.__cause__)) from None
            raise EgressError(_broken("read", e)) from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        self._stream = stream
        return self

    def get_extra_info(self, info: str) -> Any:
        return None


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to one address, whatever the URL names."""

    def __init__(self, address: Address, server_name: str) -> None:
        self._address = address
        self._server_name = server_name
        self._stream: _Stream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self._stream = _Stream(await _dial(self._address), self._explain)
        return self._stream

    async def aclose(self) -> None:
        """Close the connection, where there is one."""
        if self._stream:
            await self._stream.aclose()

    async def _explain(self, error: ssl.SSLError) -> str:
        """The Go text for a failed handshake; where it shows the certificate, that is fetched again."""
        if not egress_tls.shows_certificate(error):
            return egress_tls.handshake_error(error)
        certificate = await _peer_certificate(self._address, self._server_name)
        return egress_tls.certificate_error(error, certificate, self._server_name, datetime.now(UTC))


async def _dial(address: Address) -> trio.SocketStream:
    """Connect to the first address that answers; the error is that of the first one."""
    failed = ""
    for ip in (address.ip, *address.others):
        try:
            return await address.dialer.dial(ip, address.port)
        except OSError as e:
            failed = failed or f"dial tcp {host_port(ip, address.port)}: connect: {_strerror(e)}"
    raise EgressError(failed)


def _strerror(error: OSError) -> str:
    """The error text of the system, as Go prints it: in lower case."""
    known = {errno.EHOSTUNREACH: "no route to host"}
    if error.errno is None:
        return str(error).lower()
    return known.get(error.errno, os.strerror(error.errno).lower())


def _broken(action: str, error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
        return f"{action}: {_strerror(cause)}"
    return "EOF"


async def _peer_certificate(address: Address, server_name: str) -> x509.Certificate:
    """The certificate that a server shows, unverified: only to say what is wrong with it."""
    stream = trio.SSLStream(await _dial(address), egress_tls.unverified(), server_hostname=server_name)
    try:
        await stream.do_handshake()
        shown = stream.getpeercert(binary_form=True)
    except trio.BrokenResourceError as e:
        raise EgressError(_broken("read", e)) from None
    finally:
        await trio.aclose_forcefully(stream)
    return x509.load_der_x509_certificate(shown)


@dataclass(frozen=True, slots=True)
class Request:
    """What to send.

    Args:
        server_name: the host name that the TLS certificate must be valid for.
        tls: None for plain HTTP.
        content: bytes, or an iterator (no generator: it may be left unfinished), which needs `content-length`
            or `transfer-encoding` in the headers.
    """

    method: str
    target: bytes
    host: str
    address: Address
    headers: Sequence[tuple[bytes, bytes]] = ()
    content: bytes | AsyncIterable[bytes] = b""
    tls: ssl.SSLContext | None = None
    server_name: str = ""


class Incoming:
    """An answer whose body is still to come; names of headers are in lower case."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers = [(name.lower(), value) for name, value in response.headers]
        self._body = response.aiter_stream()

    async def chunk(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises EgressError."""
        with _go_errors():
            return await anext(self._body, b"")

    async def body(self, limit: int = MAX_BODY) -> bytes:
        """The whole body. Raises EgressError, also for one larger than `limit`."""
        found = bytearray()
        while chunk := await self.chunk():
            found += chunk
            if len(found) > limit:
                raise EgressError(f"http: response body is larger than {limit} bytes")
        return bytes(found)

    async def abandon(self) -> None:
        """Run the generators of httpcore to their end; the connection is closed already."""
        with suppress(EgressError):
            while await self.chunk():
                pass


class _Whole:
    """Bytes as a request body. An iterator rather than a generator: it may be left unfinished."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, b""
        if not content:
            raise StopAsyncIteration
        return content


@asynccontextmanager
async def exchange(request: Request) -> AsyncIterator[Incoming]:
    """Send a request on a connection of its own; the body of the answer is to be read inside.

    Raises:
        EgressError: no answer.
    """
    scheme = b"https" if request.tls else b"http"
    host, port = request.address.ip.encode(), request.address.port
    backend = _Backend(request.address, request.server_name)
    connection = httpcore.AsyncHTTPConnection(
        httpcore.Origin(scheme, host, port),
        ssl_context=request.tls,
        network_backend=backend,
        keepalive_expiry=0.0,
    )
    headers = [(b"Host", request.host.encode()), *request.headers]
    content = request.content
    if isinstance(content, bytes):
        if content:
            headers.append((b"Content-Length", str(len(content)).encode()))
        content = _Whole(content)
    outgoing = httpcore.Request(
        request.method.encode(),
        httpcore.URL(scheme=scheme, host=host, port=port, target=request.target),
        headers=headers,
        content=content,
        extensions={"sni_hostname": request.server_name},
    )
    incoming = None
    try:
        with _go_errors():
            response = await connection.handle_async_request(outgoing)
        incoming = Incoming(response)
        yield incoming
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
            await backend.aclose()
            if incoming:
                await incoming.abandon()
            await connection.aclose()


class _go_errors:
    """Turn what httpcore and h11 raise into EgressError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case httpcore.RemoteProtocolError() | h11.RemoteProtocolError():
                text = str(error)
                if "without sending" in text or "without receiving" in text:
                    raise EgressError("EOF") from None
                raise EgressError(f"net/http: HTTP/1.x transport connection broken: {text}") from None
            case httpcore.LocalProtocolError() | h11.LocalProtocolError():
                raise EgressError(f"net/http: invalid request: {error}") from None


async def fetch(request: Request) -> Response:
    """Send a request and read the whole answer. Raises EgressError."""
    async with exchange(request) as incoming:
        return Response(incoming.status, incoming.headers, await incoming.body())


async def resolve_host(host: str, port: int, dialer: Dialer) -> Address:
    """The addresses of a host name (or IP address) outside the cluster. Raises EgressError."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: no host can have such a name
        raise EgressError(f"dial tcp: lookup {host}: no such host") from None
    first, *others = dict.fromkeys(str(entry[4][0]) for entry in found)
    return Address(dialer, first, port, tuple(others))
