"""h11 as a second opinion: it accepts more than we do; what we accept it must accept and cut the same way."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_proxy.wire.http1 import (
    CHUNKED,
    DEFAULT_LIMITS,
    LENGTH,
    NO_BODY,
    UNTIL_CLOSE,
    ChunkScanner,
    HttpError,
    parse_request,
    parse_response,
)
from tests.support.http1_corpus import read_request

NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
CHUNKS = b"3;x=y\r\nabc\r\n0\r\nx-t: 1\r\n\r\n"

blanks = st.sampled_from([b"", b" ", b"\t", b"  ", b" \t "])
names = st.sampled_from(
    [
        b"Host",
        b"Connection",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Expect",
        b"Upgrade",
        b"X-Request-Id",
        b"accept",
        b"a!#$%&'*+-.^_`|~9",
        b"Content-Length ",
        b"transfer-encoding",
        b"Transfer_Encoding",
        b"content_length",
        b"x-forwarded-client-cert",
        b"X_Forwarded_Client_Cert",
        b"TE",
        b"Trailer",
        b"Keep-Alive",
        b"x-b",
        b"bad name",
        b"",
    ]
)
values = st.sampled_from(
    [
        b"",
        b"a",
        b"a.example:80",
        b"close",
        b"keep-alive",
        b"Keep-Alive, x-b",
        b"x, Close",
        b"5",
        b"0",
        b"007",
        b"5, 5",
        b"+5",
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"identity",
        b"100-continue",
        b"upgrade",
        b"websocket",
        b"trailers, gzip",
        b"chunked, chunked",
        b"\x0bchunked",
        b"1_0",
        b"99999999999999999999",
        b"\xff\x80",
        b"a\tb c",
        b"a\x01b",
        b"a\0b",
        b"a\rb",
        b"a\nb",
        b"a\r\n b",
    ]
)
field_lines = st.tuples(names, blanks, values, blanks).map(
    lambda t: t[0] + b":" + t[1] + t[2] + t[3] + b"\r\n"
)
usual = st.sampled_from(
    [
        b"",
        b"Host: a\r\n",
        b"Host: a\r\nContent-Length: 7\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding:chunked\r\n",
        b"Host: a\r\nConnection: close\r\n",
    ]
)
blocks = st.tuples(usual, st.lists(field_lines, max_size=3)).map(lambda t: t[0] + b"".join(t[1]))
request_lines = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"POST /a?b#c HTTP/1.1",
        b"POST /a?b=%20 HTTP/1.0",
        b"OPTIONS * HTTP/1.1",
        b"m!x http://a/b HTTP/1.1",
        b"POST http://a/x/../%7eb?c HTTP/1.1",
        b"PUT //a\\b%2f HTTP/1.1",
        b"CONNECT a:80 HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"G(T / HTTP/1.1",
        b"GET / HTTP/1.1 ",
    ]
)
status_lines = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 404 Not \xff Found",
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 999 Odd",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.1 200OK",
    ]
)


def body_for(framing, length):
    return {NO_BODY: b"", LENGTH: b"b" * length, CHUNKED: CHUNKS, UNTIL_CLOSE: b"until the end"}[framing]


def read_message(connection):
    """All events up to the end of one message: its head and its payload."""
    head = connection.next_event()
    payload = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.EndOfMessage):
            return head, payload
        assert isinstance(event, h11.Data), event
        payload += bytes(event.data)


@settings(deadline=None, max_examples=600)
@given(request_lines, blocks)
def test_requests(line, block):
    data = line + b"\r\n" + block + b"\r\n"
    try:
        ours = parse_request(data, DEFAULT_LIMITS)
    except HttpError:
        return
    connection = h11.Connection(h11.SERVER)
    body = body_for(ours.framing, ours.length) if ours.length < 1000 else b""
    connection.receive_data(data + body + NEXT)
    head, payload = read_message(connection)
    assert (head.method, head.target, head.http_version) == (ours.method, ours.target, b"1.%d" % ours.minor)
    assert payload == (b"abc" if ours.framing == CHUNKED else body)
    assert len(list(head.headers)) == ours.block.count(b"\r\n")
    assert dict(head.headers).get(b"host", b"") == ours.host
    asks_to_switch = ours.method == b"CONNECT" or any(
        name == b"upgrade" for name, _ in ours.special
    )  # h11 pauses for the answer
    if ours.minor and not asks_to_switch:
        assert connection.their_state is (h11.DONE if ours.keep_alive else h11.MUST_CLOSE)
        assert connection.they_are_waiting_for_100_continue is False
        if ours.keep_alive:
            assert connection.trailing_data[0] == NEXT


@settings(deadline=None, max_examples=600)
@given(status_lines, blocks, st.sampled_from([b"GET", b"HEAD", b"POST"]))
def test_responses(line, block, method):
    data = line + b"\r\n" + block + b"\r\n"
    try:
        ours = parse_response(data, method, DEFAULT_LIMITS)
    except HttpError:
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    connection.send(h11.EndOfMessage())
    if ours.status < 200:
        connection.receive_data(data)
        head = connection.next_event()
        assert isinstance(head, h11.InformationalResponse)
        assert head.status_code == ours.status
        assert connection.next_event() is h11.NEED_DATA
        return
    body = body_for(ours.framing, ours.length)
    connection.receive_data(data + body + (b"" if ours.framing == UNTIL_CLOSE else b"HTTP/1.1 "))
    if ours.framing == UNTIL_CLOSE:
        connection.receive_data(b"")
    head, payload = read_message(connection)
    assert (head.status_code, head.reason, head.http_version) == (
        ours.status,
        ours.reason,
        b"1.%d" % ours.minor,
    )
    assert payload == (b"abc" if ours.framing == CHUNKED else body)
    if ours.minor and ours.framing != UNTIL_CLOSE:
        assert connection.their_state is (h11.DONE if ours.keep_alive else h11.MUST_CLOSE)


pieces = st.sampled_from(
    [
        b"0",
        b"1",
        b"3",
        b"a",
        b"F",
        b"\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b";",
        b";a=b",
        b" ",
        b"xyz",
        b"3\r\nabc\r\n",
        b"1;e\r\na\r\n",
        b"0\r\n",
        b"0\r\n\r\n",
        b"A: b\r\n",
        b"a:\r\n",
        b"host: x\r\n",
        b"0123456789",
    ]
)


@settings(deadline=None, max_examples=1500)
@given(st.lists(pieces, max_size=10).map(b"".join), st.booleans())
def test_chunked_bodies(data, ends):
    if ends:
        data += b"0\r\n\r\n"
    scanner = ChunkScanner()
    try:
        taken = scanner.feed(data)
    except HttpError:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    if not scanner.done:
        assert taken == len(data)
        if data:  # nothing at all would mean end of file
            connection.receive_data(data)
        payload = 0
        while (event := connection.next_event()) is not h11.NEED_DATA:
            assert isinstance(event, h11.Data)
            payload += len(event.data)
        assert payload == scanner.payload
        return
    connection.receive_data(data + NEXT)
    payload = 0
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        payload += len(event.data)
    assert payload == scanner.payload
    assert connection.trailing_data[0] == data[taken:] + NEXT


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
    ],
)
def test_where_we_are_stricter(head):
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    assert isinstance(connection.next_event(), h11.Request)
    with pytest.raises(HttpError):
        parse_request(head, DEFAULT_LIMITS)


@settings(deadline=None, max_examples=600)
@given(request_lines, blocks)
def test_what_goes_on_is_read_the_same_by_the_next_sidecar_and_by_h11(line, block):
    """The boundaries of a message survive the hop, and a second hop changes nothing more."""
    data = line + b"\r\n" + block + b"\r\n"
    try:
        head = parse_request(data, DEFAULT_LIMITS)
    except HttpError:
        return
    if head.length > 1000 or head.method == b"CONNECT" or b"upgrade" in [name for name, _ in head.special]:
        return
    body = body_for(head.framing, head.length)
    try:
        once = read_request([data + body + NEXT])
    except HttpError:
        return
    if not once.head.minor and b"host" not in [name for name, _ in once.head.special]:
        return  # the sidecar adds one
    message = once.forwarded()
    again = read_request([message + NEXT])
    assert (again.head.method, again.target, again.head.host) == (head.method, once.target, head.host)
    assert (again.head.framing, again.head.length, again.body) == (head.framing, head.length, body)
    assert again.rest == NEXT
    assert again.forwarded() == message
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(message + NEXT)
    _, payload = read_message(connection)
    assert payload == (b"abc" if head.framing == CHUNKED else body)
    assert connection.trailing_data[0] == NEXT
