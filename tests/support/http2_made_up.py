"""Messages made up of what may confuse one version of HTTP about the other."""

from __future__ import annotations

from hypothesis import strategies as st

from mesh_proxy.wire.http2.seam import Engine, RequestFields
from tests.support import http2_frames as h2
from tests.support.http2_engines import drained, greeted
from tests.support.http2_frames import Fields

NAME = st.sampled_from(
    b"x-a X-B accept te trailer cookie content-length content_length transfer-encoding transfer_encoding"
    b" connection keep-alive proxy-connection upgrade http2-settings host expect x-forwarded-client-cert"
    b" x_forwarded_client-cert x-triomesh-error x_triomesh_a x-request-id grpc-status content-type"
    b" content_type x-forwarded-for x:y".split()
)
VALUE = st.one_of(
    st.sampled_from(
        [b"", b"0", b"3", b"03", b"+3", b"3, 3", b"0" * 20 + b"3", b"trailers", b"chunked", b"close, x-a"]
    ),
    st.sampled_from([b"a.test", b"A.TEST", b"websocket", b"a\tb", b"a\r\nx: y", b"a\0", b" a", b"\xff"]),
    st.text("ab,;= ", max_size=4).map(str.encode),
)
FIELDS = st.lists(st.tuples(NAME, VALUE), max_size=5)
TARGET = st.sampled_from(
    [
        *b"/ * /a?b //a /%2e%2e/x /;a /a\\b http://a.test http://a.test?x http://a.test/x https://A.test:80/"
        b" http://b.test/ a.test:80 a.test /#".split(),
        b"/ a",
        b"",
    ]
)
METHOD = st.sampled_from([b"GET", b"HEAD", b"POST", b"OPTIONS", b"CONNECT", b"get", b"PRI", b"X!"])
STATUS = st.sampled_from([100, 101, 103, 199, 200, 204, 205, 304, 404, 999])
BODY = st.sampled_from([b"", b"abc", b"0\r\n\r\n"])


def pairs_of(block: bytes) -> list[tuple[bytes, bytes]]:
    """Fields of a block, names in lower case."""
    lines = block.split(b"\r\n")
    assert lines.pop() == b""
    found = []
    for line in lines:
        name, colon, value = line.partition(b":")
        assert colon
        assert not set(line) & set(b"\r\n\0")
        found.append((name.lower(), value.strip(b" \t")))
    return found


def rest_of(stream: int, body: bytes, trailers: Fields) -> bytes:
    """Frames behind a head."""
    wire = h2.data(stream, body, end=not trailers) if body else b""
    return wire + h2.headers(stream, trailers, end=True) if trailers else wire


def response_of(stream: int, statuses: list[int], more: Fields, body: bytes, trailers: Fields) -> bytes:
    """Frames of a response with these heads."""
    wire = b""
    for at, status in enumerate(statuses, 1):
        end = at == len(statuses) and not body and not trailers
        wire += h2.headers(stream, [(b":status", b"%d" % status), *more], end=end)
    return wire + rest_of(stream, body, trailers)


def asked(name: str, method: bytes) -> tuple[Engine, int]:
    """A client's engine that has sent a request."""
    engine = greeted(name, server=False)
    stream = engine.request(RequestFields(method, b"http", b"/", b"", b"host: a\r\n"), True)
    drained(engine)
    return engine, stream
