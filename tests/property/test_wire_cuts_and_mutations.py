"""However bytes are cut and damaged, a parser gives one answer: its own error, or the same value."""

import ssl
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_proxy.wire import client_hello, detect
from mesh_proxy.wire.client_hello import NotTls
from mesh_proxy.wire.http1 import (
    DEFAULT_LIMITS,
    ChunkScanner,
    HttpError,
    Limits,
    RequestHead,
    ResponseHead,
    head_end,
    parse_request,
    parse_response,
)

SMALL = Limits(head_bytes=150, line_bytes=60, header_count=4, chunk_line_bytes=12, trailer_bytes=30)

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a?b=c HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\nX-Request-Id: r\r\n\r\nhello",
    b"PUT /x HTTP/1.1\r\nhost:[::1]\r\nTransfer-Encoding: chunked\r\nConnection: close, x-y\r\nX-Y: 1\r\n\r\n"
    b"0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nTE: trailers\r\nx-triomesh-peer: me\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello",
    b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nX-Triomesh-Error: NR\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 204\r\nConnection: x-a\r\nX-A: b\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]
BODIES = [
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\nGET /",
    b"a;x=y\r\n0123456789\r\n3\r\nabc\r\n0\r\nA: b\r\nc: d\r\n\r\n",
    b"000002\r\n\r\n\r\n0;last\r\n\r\n",
]

INTERESTING = b"\0\t\n\r :;,0159aAzZ\x16\x7f\x80\xff"


@st.composite
def damaged(draw, originals):
    """A valid message with up to three edits: a byte changed, put in, taken out, or a stretch repeated."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        byte = draw(st.sampled_from(INTERESTING) | st.integers(0, 255))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = bytes([byte])
            case 1:
                data.insert(at, byte)
            case 2:
                del data[at : at + 1]
            case _:
                end = draw(st.integers(at, min(len(data), at + 30)))
                data[at:at] = data[at:end]
    return bytes(data)


def inputs(originals):
    return damaged(originals) | st.binary(max_size=60)


def cuts(data, draw_points):
    points = sorted({min(point, len(data)) for point in draw_points} | {len(data)})
    return [data[a:b] for a, b in zip([0, *points], points, strict=False)]


def summary(head):
    blocks = (
        [head.forward_block()] if isinstance(head, RequestHead) else [head.forward_block(k) for k in (0, 1)]
    )
    return [getattr(head, name) for name in type(head).__slots__], blocks


def read_head(pieces, parse, limits):
    buf = bytearray()
    try:
        for piece in pieces:
            before = len(buf)
            buf += piece
            end = head_end(buf, max(0, before - 3), limits)
            if end >= 0:
                return "head", end, summary(parse(bytes(buf[:end]), limits))
    except HttpError as error:
        return "refused", error.status, error.reason
    return ("incomplete",)


def as_request(head, limits):
    return parse_request(head, limits)


def as_response(head, limits):
    return parse_response(head, b"GET", limits)


points = st.lists(st.integers(0, 200), max_size=4)


@settings(deadline=None, max_examples=400)
@given(st.data(), points)
def test_heads_in_any_cut(data, where):
    for originals, parse in ((REQUESTS, as_request), (RESPONSES, as_response)):
        message = data.draw(inputs(originals))
        whole = read_head([message], parse, DEFAULT_LIMITS)
        assert read_head(
            [message[i : i + 1] for i in range(len(message))] or [b""], parse, DEFAULT_LIMITS
        ) in (
            whole,
            _early(whole),
        )
        assert read_head(cuts(message, where), parse, DEFAULT_LIMITS) in (whole, _early(whole))
        if whole[0] == "head":
            assert read_head([message + b"\0\r\n\r\n"], parse, DEFAULT_LIMITS) == whole


def _early(outcome):
    """The same refusal, seen before the head was whole: then the status is that for a request."""
    return ("refused", 400, outcome[2]) if outcome[0] == "refused" else outcome


@settings(deadline=None, max_examples=300)
@given(inputs(REQUESTS), points)
def test_whether_a_head_is_within_small_limits_does_not_depend_on_the_cut(message, where):
    outcomes = {
        read_head(pieces, as_request, SMALL)[0]
        for pieces in ([message], [message[i : i + 1] for i in range(len(message))], cuts(message, where))
    }
    assert len(outcomes) == 1 or not message


@settings(deadline=None, max_examples=300)
@given(inputs(REQUESTS) | inputs(RESPONSES))
def test_parsers_never_fail_in_another_way(message):
    for parse, kind in ((as_request, RequestHead), (as_response, ResponseHead)):
        try:
            head = parse(message, DEFAULT_LIMITS)
        except HttpError:
            continue
        assert isinstance(head, kind)
        assert message.endswith(head.block + b"\r\n")


@settings(deadline=None, max_examples=300)
@given(damaged(REQUESTS))
def test_a_forwarded_block_parses_to_the_same_request_without_hop_by_hop(message):
    end = message.find(b"\r\n\r\n") + 4
    try:
        head = parse_request(message[:end], DEFAULT_LIMITS)
    except HttpError:
        return
    line = b"%b %b HTTP/1.%d\r\n" % (head.method, head.target, head.minor)
    again = parse_request(line + head.forward_block() + b"\r\n", DEFAULT_LIMITS)
    assert not again.hop
    assert again.forward_block() == head.forward_block()
    assert (again.framing, again.length, again.host) == (head.framing, head.length, head.host)


def scan(pieces, limits):
    scanner = ChunkScanner(limits)
    taken = 0
    try:
        for piece in pieces:
            used = scanner.feed(piece)
            taken += used
            if used < len(piece):
                assert scanner.done
                break
    except HttpError:
        return "refused"
    return taken, scanner.done, scanner.payload


@pytest.mark.parametrize("limits", [DEFAULT_LIMITS, SMALL], ids=["default", "small"])
@settings(deadline=None, max_examples=400)
@given(message=inputs(BODIES), where=points)
def test_chunks_in_any_cut(limits, message, where):
    whole = scan([message], limits)
    assert scan([message[i : i + 1] for i in range(len(message))], limits) == whole
    assert scan(cuts(message, where), limits) == whole
    if whole != "refused" and whole[1]:
        assert scan([message + b"\0rest"], limits) == whole


PREFIXES = [
    *REQUESTS,
    detect.H2_PREFACE + b"\0\0\0\4\0\0\0\0\0",
    b"PURGE /x HTTP/1.1\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"EHLO x\r\n",
]


@settings(deadline=None, max_examples=400)
@given(inputs(PREFIXES))
def test_a_verdict_stays(message):
    verdict = detect.Verdict.NEED_MORE
    for size in range(len(message) + 1):
        now = detect.classify(message[:size])
        assert verdict in (detect.Verdict.NEED_MORE, now)
        verdict = now


@settings(deadline=None, max_examples=300)
@given(inputs([b"HTTP/1.1 400 x\r\n", bytes.fromhex("000006040000000000000400ffffff")]))
def test_a_server_once_decided_stays_decided(message):
    answers = [detect.server_undecided(message[:size]) for size in range(len(message) + 1)]
    assert answers == sorted(answers, reverse=True)


@settings(deadline=None, max_examples=400)
@given(inputs(PREFIXES))
def test_what_parses_as_a_request_is_never_called_opaque(message):
    end = message.find(b"\r\n\r\n") + 4
    try:
        parse_request(message[:end], DEFAULT_LIMITS)
    except HttpError:
        return
    method = message.partition(b" ")[0]
    assert len(method) > 32 or detect.classify(message) is detect.Verdict.HTTP1


def openssl_hello(alpn, sni):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=sni)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


protocols = st.lists(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20), max_size=6
)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
hosts = st.none() | st.lists(labels, min_size=1, max_size=4).map(".".join).filter(
    lambda h: not h[-1].isdigit()
)


@settings(deadline=None, max_examples=60)
@given(protocols, hosts, st.integers(12, 600))
def test_hellos_from_openssl_in_records_of_any_size(alpn, sni, size):
    data = openssl_hello(alpn, sni)
    message = data[5:]
    cut = b"".join(
        b"\x16\x03\x01" + len(message[i : i + size]).to_bytes(2, "big") + message[i : i + size]
        for i in range(0, len(message), size)
    )
    expected = client_hello.ClientHello(tuple(name.encode() for name in alpn), sni or "", (0x0304, 0x0303))
    for whole in (data, cut):
        assert client_hello.parse(whole) == expected
        assert client_hello.parse(whole + b"\xff") == expected
        assert all(client_hello.parse(whole[:end]) is None for end in range(0, len(whole), 7))


def read_hello(data):
    try:
        return client_hello.parse(data)
    except NotTls as error:
        # The first byte tells that it is no TLS; that it is SSLv2 takes three.
        return error.reason.replace("sslv2-hello", "not-a-handshake-record")


CORPUS = Path(__file__).parents[1] / "corpus" / "wire" / "client_hellos.txt"
HELLOS = [bytes.fromhex(line) for line in CORPUS.read_text().splitlines() if not line.startswith("#")]


@settings(deadline=None, max_examples=300)
@given(inputs(HELLOS) | st.binary(max_size=40).map(lambda tail: b"\x16\x03\x01\0\x28\1\0\0\x24" + tail))
def test_a_damaged_hello_is_refused_or_read_the_same_however_it_arrives(data):
    whole = read_hello(data)
    answers = [read_hello(data[:size]) for size in range(len(data) + 1)]
    assert answers[-1] == whole
    settled = [answer for answer in answers if answer is not None]
    assert settled == [settled[0]] * len(settled) if settled else whole is None
