"""Downgrade smuggling: whatever an engine tells of, HTTP/1.1 reads back as exactly the same fields."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh_proxy.wire.http1 import DEFAULT_LIMITS, NO_BODY, HttpError, parse_request
from mesh_proxy.wire.http2.engines import NAMES
from mesh_proxy.wire.http2.seam import REQUEST, TRAILERS, RequestFields
from tests.support import http2_frames as h2
from tests.support.http2_engines import answers, fed, greeted
from tests.support.http2_frames import Fields

engines = pytest.mark.parametrize("name", NAMES)

_NAME = st.one_of(
    st.sampled_from(
        [
            b"x-a",
            b"cookie",
            b"te",
            b"host",
            b"content-length",
            b"transfer-encoding",
            b"x a",
            b"X-B",
            b"a:b",
            b"",
        ]
    ),
    st.binary(max_size=4),
    st.text("abcxyz-_!", min_size=1, max_size=6).map(str.encode),
)
_VALUE = st.one_of(
    st.sampled_from([b"", b"0", b"5", b"trailers", b"a.test", b"a\r\nx-evil: 1", b"a\nb", b"chunked", b" a"]),
    st.text("ab ;=,\t", max_size=6).map(str.encode),
    st.binary(max_size=6),
)
_TARGET = st.one_of(
    st.just(b"/"), st.just(b"*"), st.binary(max_size=5), st.text("/ab?#% \r\n", max_size=5).map(str.encode)
)


def told(name: str, sends: bytes) -> RequestFields | None:
    """The request, if the engine told of one."""
    events, _ = fed(greeted(name), sends)
    requests = [value for kind, _, value, _ in events if kind == REQUEST]
    assert len(requests) <= 1
    return requests[0] if requests else None  # type: ignore[return-value]


def read_as_http1(fields: RequestFields) -> list[tuple[bytes, bytes]]:
    """Fields of the request as HTTP/1.1; an HttpError is allowed only where no byte could move."""
    wire = fields.method + b" " + fields.target + b" HTTP/1.1\r\n" + fields.block + b"\r\n"
    head = parse_request(wire, DEFAULT_LIMITS)
    assert (head.method, head.target, head.block) == (fields.method, fields.target, fields.block)
    lines = head.block.split(b"\r\n")[:-1]
    return [tuple(line.split(b": ", 1)) for line in lines]  # type: ignore[misc]


@engines
@settings(deadline=None)
@given(
    method=st.one_of(st.sampled_from([b"GET", b"PUT", b"OPTIONS"]), st.binary(max_size=4)),
    path=_TARGET,
    authority=st.one_of(st.just(b"a.test"), _VALUE),
    fields=st.lists(st.tuples(_NAME, _VALUE), max_size=5),
)
@example(method=b"GET", path=b"/ HTTP/1.1\r\nhost: b", authority=b"a.test", fields=[])
@example(method=b"GET", path=b"/", authority=b"a.test\r\nx: y", fields=[])
@example(method=b"GET / HTTP/1.1\r\nx:", path=b"/", authority=b"a.test", fields=[])
@example(method=b"GET", path=b"/", authority=b"a.test", fields=[(b"host", b"b.test")])
@example(method=b"GET", path=b"/", authority=b"a.test", fields=[(b"transfer-encoding", b"chunked")])
def test_request_reads_the_same(
    name: str, method: bytes, path: bytes, authority: bytes, fields: Fields
) -> None:
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", authority)]
    request = told(name, h2.headers(1, pseudo + fields, end=True))
    if request is None:
        return
    try:
        got = read_as_http1(request)
    except HttpError as error:
        assert error.reason == "unsupported-expectation"  # noqa: PT017
        return
    cookies = [value for key, value in fields if key == b"cookie"]
    want = [(b"host", authority), *(pair for pair in fields if pair[0] not in (b"host", b"cookie"))]
    if cookies:
        want.append((b"cookie", b"; ".join(cookies)))
    assert got == want


@engines
@settings(deadline=None)
@given(fields=st.lists(st.tuples(_NAME, _VALUE), min_size=1, max_size=4))
def test_trailers_read_the_same(name: str, fields: Fields) -> None:
    events, _ = fed(greeted(name), h2.post(1) + h2.headers(1, fields, end=True))
    for kind, _, value, _ in events:
        if kind == TRAILERS:
            wire = b"GET / HTTP/1.1\r\nhost: a\r\n" + value + b"\r\n"  # type: ignore[operator]
            assert wire.count(b"\r\n") == wire.count(b"\n") == wire.count(b"\r") == wire.count(b": ") + 2
            assert value.count(b"\n") <= len(fields)  # type: ignore[attr-defined]


@engines
@pytest.mark.parametrize("length", [b"0", b"3"])
def test_length_and_content_agree(name: str, length: bytes) -> None:
    """A content-length that is told of is the length of what follows, so HTTP/1.1 may rely on it."""
    engine = greeted(name)
    events, _ = fed(engine, h2.post(1, (b"content-length", length)) + h2.data(1, b"five!", end=True))
    assert sum(len(value) for kind, _, value, _ in events if kind == 3) <= int(length)  # type: ignore[arg-type]
    assert not any(end and kind == 3 for kind, _, _, end in events)
    assert [(frame.kind, frame.code) for frame in answers(engine)][-1] == (h2.RST_STREAM, 1)


@engines
def test_no_body_is_no_body(name: str) -> None:
    request = told(name, h2.get(1))
    assert request is not None
    wire = b"GET / HTTP/1.1\r\n" + request.block + b"\r\n"
    assert parse_request(wire, DEFAULT_LIMITS).framing == NO_BODY
