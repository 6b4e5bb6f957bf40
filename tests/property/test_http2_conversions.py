"""Messages from one version of HTTP to the other: nothing is gained, lost or cut elsewhere on the way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh_proxy.base.errors import PeerReset
from mesh_proxy.http.convert import from_http1
from mesh_proxy.http.exchange import Exchange
from mesh_proxy.http.http1_call import Http1Call
from mesh_proxy.http.http1_client import Http1Client
from mesh_proxy.http.message import trailers_passed_on
from mesh_proxy.http.streams import request_head
from mesh_proxy.net.conn import Conn
from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http1 import (
    CHUNKED,
    DEFAULT_LIMITS,
    LENGTH,
    ChunkScanner,
    HttpError,
    RequestHead,
    ResponseHead,
    head_end,
    parse_request,
    parse_response,
)
from mesh_proxy.wire.http2.engines import NAMES
from mesh_proxy.wire.http2.seam import DATA, REQUEST, RESPONSE, TRAILERS, RequestFields
from mesh_proxy.wire.targets import check_target
from tests.support import http2_frames as h2
from tests.support.http2_engines import Pair, fed, greeted
from tests.support.http2_frames import Fields
from tests.support.http2_made_up import (
    BODY,
    FIELDS,
    METHOD,
    NAME,
    STATUS,
    TARGET,
    VALUE,
    asked,
    pairs_of,
    response_of,
    rest_of,
)

engines = pytest.mark.parametrize("name", NAMES)

CLAIMS = (b"x-forwarded-client-cert", b"x-triomesh-")
LOOKED_FOR = (*CLAIMS, b"x-request-id", b"content-length", b"transfer-encoding")


class Wire:
    """What the adapters of HTTP/1 ends use of a connection."""

    expires = 1e9
    reactor = SimpleNamespace(now=0.0)

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.sent = b""

    async def read(self) -> bytes:
        data, self.data = self.data, b""
        return data

    async def write(self, data: bytes) -> None:
        self.sent += data


def conn(wire: Wire) -> Conn:
    return cast("Conn", wire)


def body_of(head: RequestHead | ResponseHead, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Payload, trailers, and what is behind the message."""
    if head.framing == CHUNKED:
        scanner, dechunk = ChunkScanner(), Dechunker()
        used = scanner.feed(data)
        assert scanner.done
        return dechunk.feed(data[:used]), dechunk.trailers, data[used:]
    size = head.length if head.framing == LENGTH else 0
    assert len(data) >= size
    return data[:size], b"", data[size:]


@settings(deadline=None, max_examples=200)
@given(method=METHOD, target=TARGET, more=FIELDS, body=BODY, trailers=FIELDS, whole=st.booleans())
@engines
def test_a_request_of_http2_is_one_of_http1(
    name: str, method: bytes, target: bytes, more: Fields, body: bytes, trailers: Fields, whole: bool
) -> None:
    if method == b"CONNECT":
        return
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", target), (b":authority", b"a.test")]
    wire = h2.headers(1, pseudo + more, end=not body and not trailers) + rest_of(1, body, trailers)
    events, _ = fed(greeted(name), wire)
    if not events or not events[-1][3] or events[-1][0] not in (REQUEST, DATA, TRAILERS):
        return
    came = next(value for kind, _, value, _ in events if kind == REQUEST)
    assert isinstance(came, RequestFields)
    last = next((cast("bytes", value) for kind, _, value, _ in events if kind == TRAILERS), b"")
    head = request_head(came, whole)
    fields = RequestFields(came.method, came.scheme, came.target, b"", head.block)
    out = Wire()

    async def convert() -> None:
        call = Http1Call(conn(out), came.method, DEFAULT_LIMITS, False)
        passed = trailers_passed_on(last)
        if whole:
            await call.begin(fields, body, True, passed)
        else:
            await call.begin(fields, b"", False, b"")
            if body:
                await call.write(body)
            await call.end(passed)

    trio.run(convert)
    end = head_end(out.sent, 0, DEFAULT_LIMITS)
    try:
        read = parse_request(out.sent[:end], DEFAULT_LIMITS)
        check_target(read.method, read.target, read.host)
    except HttpError as error:
        assert error.reason == "unsupported-expectation"  # noqa: PT017
        return
    assert (read.method, read.target, read.host) == (method, target, b"a.test")
    payload, rest, behind = body_of(read, out.sent[end:])
    assert (payload, behind) == (body, b"")
    names = [key for key, _ in pairs_of(read.block) + pairs_of(rest)]
    assert not [key for key in names if key.startswith(CLAIMS)]
    assert not [key for key in names if b"_" in key and key.replace(b"_", b"-").startswith(LOOKED_FOR)]
    assert not {b"connection", b"te", b"http2-settings"} & set(names)


CHUNKS = st.sampled_from([b"0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"03;x=y\r\nabc\r\n000\r\n%s\r\n"])
SAFE_FIELDS = st.lists(
    st.tuples(NAME.filter(lambda name: name.lower() not in (b"host", b"expect", b"x:y")), VALUE), max_size=4
)
ends = pytest.mark.parametrize(("client", "server"), [NAMES, NAMES[::-1]])


def lines_of(fields: Fields) -> bytes:
    return b"".join(b"%s: %s\r\n" % pair for pair in fields)


@settings(deadline=None, max_examples=200)
@given(
    method=METHOD, target=TARGET, more=SAFE_FIELDS, chunks=CHUNKS, trailers=SAFE_FIELDS, minor=st.booleans()
)
@ends
def test_a_request_of_http1_is_one_of_http2(
    client: str,
    server: str,
    method: bytes,
    target: bytes,
    more: Fields,
    chunks: bytes,
    trailers: Fields,
    minor: bool,
) -> None:
    raw = b"%s %s HTTP/1.%d\r\nHost: a.test\r\n%s\r\n" % (method, target, minor, lines_of(more))
    try:
        head = parse_request(raw, DEFAULT_LIMITS)
        check_target(method, target, head.host)
        sends = chunks % lines_of(trailers) if b"%s" in chunks else chunks
        payload, rest, _ = body_of(head, sends if head.framing == CHUNKED else b"abcdef")
    except (HttpError, AssertionError):
        return
    if method == b"CONNECT":
        return  # always goes on as it is
    sends = sends if head.framing == CHUNKED else b"abcdef"[: head.length]
    message = b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, target, head.forward_block(), sends)
    x = SimpleNamespace(message=message, head=head, view=SimpleNamespace(destination="10.0.0.1:80"))
    request = from_http1(cast("Exchange", x))
    pair = Pair(client, server)
    end = not request.first and not request.trailers
    stream = pair.client.request(request.fields, end)
    assert stream
    if request.first:
        pair.client.data(stream, request.first, not request.trailers)
    if request.trailers:
        pair.client.trailers(stream, request.trailers)
    pair.settle()
    told = pair.take("server")
    came = next(cast("tuple[bytes, ...]", value) for kind, _, value, _ in told if kind == REQUEST)
    assert told[-1][3]
    assert b"".join(cast("bytes", value) for kind, _, value, _ in told if kind == DATA) == payload
    got = next((cast("bytes", value) for kind, _, value, _ in told if kind == TRAILERS), b"")
    assert pairs_of(got) == pairs_of(trailers_passed_on(rest))
    assert (came[0], came[4].split(b"\r\n")[0]) == (method, b"host: a.test")
    assert (
        came[2] in (b"*", target[target.find(b"/", target.find(b"//") + 2) :], b"/", b"/?x")
        or came[2] == target
    )
    names = [name for name, _ in pairs_of(came[4])]
    assert not [name for name in names if name.startswith(CLAIMS)]
    assert not [name for name in names if b"_" in name and name.replace(b"_", b"-").startswith(LOOKED_FOR)]
    kept = [
        (name, value) for name, value in pairs_of(head.forward_block()) if name.startswith((b"x-", b"accept"))
    ]
    assert [pair for pair in kept if pair not in pairs_of(came[4])] == []


@settings(deadline=None, max_examples=200)
@given(
    method=st.sampled_from([b"GET", b"HEAD"]),
    statuses=st.lists(STATUS, min_size=1, max_size=3),
    more=SAFE_FIELDS,
    body=CHUNKS,
    trailers=SAFE_FIELDS,
)
@example(method=b"GET", statuses=[100, 204], more=[(b"content-length", b"0")], body=b"", trailers=[])
@ends
def test_a_response_of_http1_is_one_of_http2(
    client: str, server: str, method: bytes, statuses: list[int], more: Fields, body: bytes, trailers: Fields
) -> None:
    heads = b"".join(b"HTTP/1.1 %d X\r\n%s\r\n" % (status, lines_of(more)) for status in statuses)
    call = Http1Call(
        conn(Wire(heads + body.replace(b"%s", lines_of(trailers)))), method, DEFAULT_LIMITS, False
    )
    pair = Pair(client, server)
    stream = pair.client.request(RequestFields(method, b"http", b"/", b"", b"host: a\r\n"), True)
    pair.settle()
    said: list[int] = []
    payload = b""

    async def convert() -> None:
        nonlocal payload
        while True:
            status, block, end = await call.response()
            said.append(status)
            if status == 101:
                raise HttpError(502, "unexpected-upgrade", "as `converse` does")
            pair.server.respond(stream, status, block, end)
            if status >= 200:
                break
        if not end:
            payload = call.take()
            while data := await call.read():
                payload += data
            passed = trailers_passed_on(call.trailers)
            pair.server.data(stream, payload, not passed)
            if passed:
                pair.server.trailers(stream, passed)

    try:
        trio.run(convert)
    except (HttpError, PeerReset):
        return
    pair.settle()
    told = pair.take("client")
    heads_told = [cast("tuple[int, bytes]", value) for kind, _, value, _ in told if kind == RESPONSE]
    assert [status for status, _ in heads_told] == said
    assert told[-1][3]
    assert told[-1][0] in (RESPONSE, DATA, TRAILERS)
    assert b"".join(cast("bytes", value) for kind, _, value, _ in told if kind == DATA) == payload
    assert not [
        name for _, block in heads_told for name, _ in pairs_of(block) if name.startswith(b"x-triomesh")
    ]


@settings(deadline=None, max_examples=200)
@given(
    method=st.sampled_from([b"GET", b"HEAD"]),
    statuses=st.lists(STATUS, min_size=1, max_size=3),
    more=FIELDS,
    body=BODY,
    trailers=FIELDS,
    minor=st.booleans(),
)
@engines
def test_a_response_of_http2_is_one_of_http1(
    name: str, method: bytes, statuses: list[int], more: Fields, body: bytes, trailers: Fields, minor: bool
) -> None:
    engine, stream = asked(name, method)
    raw = response_of(stream, statuses, more, body, trailers)
    events, code = fed(engine, raw)
    if code is not None or not events or events[-1][0] not in (RESPONSE, DATA, TRAILERS) or not events[-1][3]:
        return
    head = RequestHead()
    head.method, head.minor = method, int(minor)
    wire = Wire()
    client = Http1Client(conn(wire), head)
    client.keep = True
    payload = b""
    finals = 0

    async def convert() -> None:
        nonlocal payload, finals
        for kind, _, value, end in events:
            if kind == RESPONSE:
                status, block = cast("tuple[int, bytes]", value)
                if status < 200:
                    client.interim(status, block)
                else:
                    finals = status
                    client.respond(status, block, end)
                    if end:
                        await client.end()
            elif kind == DATA:
                payload += cast("bytes", value)
                await client.write(cast("bytes", value), end)
            else:
                await client.end(trailers_passed_on(cast("bytes", value)))

    trio.run(convert)
    rest = wire.sent
    while True:
        end = head_end(rest, 0, DEFAULT_LIMITS)
        assert end > 0
        read = parse_response(rest[:end], method, DEFAULT_LIMITS)
        rest = rest[end:]
        if read.status >= 200:
            break
        assert minor
    assert read.status == finals
    if client.keep:
        got, _, behind = body_of(read, rest)
        assert (got, behind) == (payload, b"")
    else:
        assert b"close" in [value for key, value in pairs_of(read.block) if key == b"connection"]
        assert rest == payload
