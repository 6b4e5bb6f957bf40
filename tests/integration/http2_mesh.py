"""Chains of 0, 1 and 2 sidecars, and clients and applications of either version of HTTP at their ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from mesh_api.sidecar import Protocol
from mesh_api.traffic import HttpVersion, Settings
from mesh_proxy.net.addr import Addr
from tests.integration.http2_peers import Fields, Http2Peer, Http2Stream, http2_application
from tests.integration.http2_peers import http2_client as http2_connection
from tests.integration.http_peers import Message, Peer, application, settled
from tests.support.mesh import DIRECT, ONE, TWO, Sidecar, path

HTTP1, HTTP2 = "h1", "h2"
PAIRS = ((HTTP2, HTTP2), (HTTP1, HTTP2), (HTTP2, HTTP1))
CHAINS = [(DIRECT, HTTP2, HTTP2)] + [(hops, *versions) for hops in (ONE, TWO) for versions in PAIRS]
"""Sidecars, the client's version, the application's."""


@dataclass
class Said:
    """A request or a response, whichever version it came in; names in lower case."""

    fields: Fields
    body: bytes
    trailers: Fields = field(default_factory=list)
    status: int = 0
    method: bytes = b""
    path: bytes = b""
    interims: list[int] = field(default_factory=list)
    framing: str = ""
    """Of HTTP/1.1: `length`, `chunked`, or neither."""

    def get(self, name: bytes) -> bytes | None:
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2, f"{name!r} is repeated: {values}"
        return values[0] if values else None


def of_stream(stream: Http2Stream) -> Said:
    """What came on an HTTP/2 stream."""
    pseudo = {name: value for name, value in stream.fields if name.startswith(b":")}
    fields = [(name, value) for name, value in stream.fields if not name.startswith(b":")]
    if b":authority" in pseudo:
        fields.insert(0, (b"host", pseudo[b":authority"]))
    return Said(
        fields,
        bytes(stream.body),
        stream.trailers,
        int(pseudo.get(b":status", 0)),
        pseudo.get(b":method", b""),
        pseudo.get(b":path", b""),
        [int(dict(interim)[b":status"]) for interim in stream.interims],
    )


def of_message(message: Message) -> Said:
    """What came as an HTTP/1 message."""
    body, trailers, framing = message.body, [], ""
    if message.get(b"transfer-encoding"):
        body, trailers = unchunked(body)
        framing = "chunked"
    elif message.get(b"content-length") is not None:
        framing = "length"
    fields = [(name.lower(), value) for name, value in message.fields]
    said = Said(fields, body, trailers, framing=framing)
    if message.line.startswith(b"HTTP/"):
        said.status = message.status
    else:
        said.method, said.path, _ = message.line.split(b" ")
    return said


def unchunked(raw: bytes) -> tuple[bytes, Fields]:
    """The payload and the trailers of a chunked body."""
    payload = b""
    while True:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            break
        payload += raw[:size]
        raw = raw[size + 2 :]
    lines = [line.partition(b":") for line in raw.split(b"\r\n") if line]
    return payload, [(name.lower(), value.strip()) for name, _, value in lines]


@dataclass
class Reply:
    """What an application answers."""

    body: bytes = b""
    status: int = 200
    fields: Fields = field(default_factory=list)
    trailers: Fields = field(default_factory=list)
    interims: tuple[int, ...] = ()


Answer = Callable[[Said], Reply]


@asynccontextmanager
async def app_of(version: str, answer: Answer) -> AsyncIterator[Addr]:
    """An application of this version that answers whole requests."""
    if version == HTTP2:

        async def stream_handler(stream: Http2Stream) -> None:
            await stream.whole()
            reply = answer(of_stream(stream))
            for status in reply.interims:
                await stream.respond([(b":status", b"%d" % status)], end=False)
            head = [(b":status", b"%d" % reply.status), *reply.fields]
            await stream.respond(head, reply.body, reply.trailers)

        async with http2_application(stream_handler) as app:
            yield app.addr
    else:

        async def handler(peer: Peer) -> None:
            while True:
                request = of_message(await peer.request())
                await peer.send(written(answer(request), request.method == b"HEAD"))

        async with application(handler) as app1:
            yield app1.addr


def written(reply: Reply, no_body: bool = False) -> bytes:
    """A reply as an HTTP/1.1 application sends it: chunked if it has trailers or no length."""
    raw = b"".join(b"HTTP/1.1 %d I\r\n\r\n" % status for status in reply.interims)
    raw += b"HTTP/1.1 %d X\r\n" % reply.status
    raw += b"".join(b"%s: %s\r\n" % pair for pair in reply.fields)
    if no_body or reply.status in (204, 304):
        return raw + b"\r\n"
    if any(name == b"content-length" for name, _ in reply.fields):
        return raw + b"\r\n" + reply.body
    raw += b"transfer-encoding: chunked\r\n\r\n"
    if reply.body:
        raw += b"%x\r\n%s\r\n" % (len(reply.body), reply.body)
    return raw + b"0\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in reply.trailers) + b"\r\n"


class Chain:
    """`addr` is where a client connects."""

    def __init__(
        self, addr: Addr, sidecars: tuple[Sidecar, ...], version: str, stack: AsyncExitStack
    ) -> None:
        self.addr = addr
        self.sidecars = sidecars
        self._version = version
        self._stack = stack
        self._peer: Http2Peer | Peer | None = None

    async def http2(self, settings: dict[int, int] | None = None) -> Http2Peer:
        """A new HTTP/2 connection."""
        return await self._stack.enter_async_context(http2_connection(self.addr, settings))

    async def http1(self) -> Peer:
        """A new HTTP/1 connection."""
        peer = Peer(await trio.open_tcp_stream(*self.addr))
        self._stack.callback(peer.close)
        return peer

    async def ask(
        self,
        path: bytes = b"/",
        method: bytes = b"GET",
        fields: Fields | None = None,
        body: bytes | None = None,
        trailers: Fields | None = None,
    ) -> Said:
        """One request on one connection; a body comes with its length, unless there are trailers."""
        fields = list(fields or [])
        if body is not None and not trailers:
            fields.append((b"content-length", b"%d" % len(body)))
        if self._version == HTTP2:
            if not isinstance(self._peer, Http2Peer):
                self._peer = await self.http2()
            stream = await self._peer.start(path, method, fields, body or b"", end=not trailers)
            if trailers:
                self._peer.conn.send_headers(stream.id, trailers, end_stream=True)
                await self._peer.flush()
            return of_stream(await stream.whole())
        if not isinstance(self._peer, Peer):
            self._peer = await self.http1()
        raw = b"%s %s HTTP/1.1\r\nHost: server\r\n" % (method, path)
        raw += b"".join(b"%s: %s\r\n" % pair for pair in fields)
        if trailers:
            raw += b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(body or b""), body)
            raw += b"".join(b"%s: %s\r\n" % pair for pair in trailers) + b"\r\n"
        else:
            raw += b"\r\n" + (body or b"")
        await self._peer.send(raw)
        interims = []
        while (message := await self._peer.response(method)).status < 200:
            interims.append(message.status)
        said = of_message(message)
        said.interims = interims
        return said


@asynccontextmanager
async def chain(
    app: Addr,
    hops: str = TWO,
    client: str = HTTP2,
    server: str = HTTP2,
    **changes: object,
) -> AsyncIterator[Chain]:
    """Sidecars before an application; nothing may be left over at the end."""
    if client != server:
        if server == HTTP2:
            changes.setdefault("protocol", Protocol.HTTP2)
        else:
            changes.setdefault("settings", Settings(http_version=HttpVersion.HTTP1))
    async with path(app, hops, **changes) as (addr, sidecars):  # type: ignore[arg-type]
        async with AsyncExitStack() as clients:
            yield Chain(addr, sidecars, client, clients)
        await settled(*sidecars)
