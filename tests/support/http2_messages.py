"""Cases as in `http2_conformance.py`, about messages (RFC 9113 8, RFC 8441) and HPACK (RFC 7541).

`SERVER` are requests that a client sends; `CLIENT` are what a server sends to a client that has opened
streams 1 (GET), 3 (HEAD) and 5 (POST, whose body has not ended).
"""

from __future__ import annotations

from tests.support import http2_frames as h2
from tests.support.http2_conformance import (
    CALM,
    CLOSED,
    COMPRESSION,
    PROTOCOL,
    SIZE,
    Case,
    broken,
    dead,
    either,
    ok,
)
from tests.support.http2_frames import GET, OK, POST, Fields

CONNECT: Fields = [(b":method", b"CONNECT"), (b":authority", b"a.test:443")]
EXTENDED: Fields = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]


def _get(name: str, *more: tuple[bytes, bytes]) -> Case:
    return broken(name, PROTOCOL, h2.get(1, *more))


def _head(name: str, fields: Fields) -> Case:
    return broken(name, PROTOCOL, h2.headers(1, fields, end=True))


def _but(name: bytes, value: bytes) -> Fields:
    return [(key, value if key == name else old) for key, old in GET]


def _without(name: bytes) -> Fields:
    return [(key, value) for key, value in GET if key != name]


_BAD_NAMES = {
    "with upper case": b"X-Name",
    "with a space": b"na me",
    "ending with a space": b"name ",
    "with a colon": b"na:me",
    "with LF": b"na\nme",
    "with CR LF and a line": b"a: b\r\nhost",
    "with NUL": b"na\0me",
    "with DEL": b"na\x7fme",
    "not ASCII": b"na\xe9me",
    "with a bracket": b"na(me",
    "empty": b"",
}
_BAD_VALUES = {
    "with CR LF": b"a\r\nx-other: b",
    "with CR": b"a\rb",
    "with LF": b"a\nb",
    "with NUL": b"a\0b",
    "with a control character": b"a\x01b",
    "with DEL": b"a\x7fb",
    "beginning with a space": b" a",
    "ending with a tab": b"a\t",
}
_CONNECTION_FIELDS: Fields = [
    (b"connection", b"close"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-connection", b"keep-alive"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"websocket"),
    (b"te", b"gzip"),
    (b"te", b"trailers, gzip"),
]

_BODY = h2.data(1, b"four")
_END = h2.data(1, b"four", end=True)

MESSAGES = [
    ok("8.1 request with trailers", h2.post(1), _BODY, h2.headers(1, [(b"x-sum", b"1")], end=True)),
    ok("8.1 an empty DATA frame ends the request", h2.post(1), _BODY, h2.data(1, end=True)),
    broken(
        "8.1 trailers that do not end the stream", PROTOCOL, h2.post(1), _BODY, h2.headers(1, [(b"a", b"b")])
    ),
    broken("8.1 pseudo-header in trailers", PROTOCOL, h2.post(1), _BODY, h2.headers(1, GET[:1], end=True)),
    broken(
        "8.1 upper case in trailers", PROTOCOL, h2.post(1), _BODY, h2.headers(1, [(b"X", b"b")], end=True)
    ),
    broken("8.1.1 length of a request without content", PROTOCOL, h2.get(1, (b"content-length", b"1"))),
    ok("8.1.1 length 0 of a request without content", h2.get(1, (b"content-length", b"0"))),
    ok("8.1.1 length that fits", h2.post(1, (b"content-length", b"8")), _BODY, _END),
    broken("8.1.1 less than declared", PROTOCOL, h2.post(1, (b"content-length", b"9")), _BODY, _END),
    broken("8.1.1 more than declared", PROTOCOL, h2.post(1, (b"content-length", b"3")), _END),
    broken("8.1.1 more than declared, not ended", PROTOCOL, h2.post(1, (b"content-length", b"3")), _BODY),
    broken(
        "8.1.1 less than declared before trailers",
        PROTOCOL,
        h2.post(1, (b"content-length", b"5")),
        _BODY,
        h2.headers(1, [(b"x-sum", b"1")], end=True),
    ),
    *(
        broken(f"8.1.1 length {value!r}", PROTOCOL, h2.post(1, (b"content-length", value)), _END)
        for value in (b"", b"+4", b"-4", b"4,4", b"4 4", b"0x4", b"4" * 30)
    ),
    broken(
        "8.1.1 two lengths", PROTOCOL, h2.post(1, (b"content-length", b"4"), (b"content-length", b"5")), _END
    ),
    broken(
        "8.1.1 twice the length",
        PROTOCOL,
        h2.post(1, (b"content-length", b"4"), (b"content-length", b"4")),
        _END,
    ),
]

FIELDS = [
    *(_get(f"8.2.1 name {what}", (name, b"v")) for what, name in _BAD_NAMES.items()),
    *(_get(f"8.2.1 value {what}", (b"x-n", value)) for what, value in _BAD_VALUES.items()),
    *(_head(f"8.2.1 :path {what}", _but(b":path", b"/" + value)) for what, value in _BAD_VALUES.items()),
    *(_get(f"8.2.2 {name.decode()}: {value.decode()}", (name, value)) for name, value in _CONNECTION_FIELDS),
    ok("8.2.1 empty value and high bytes", h2.get(1, (b"x-a", b""), (b"x-b", b"\xc3\xa4 \t\xff"))),
    ok("8.2.2 te: trailers", h2.get(1, (b"te", b"trailers"))),
    ok("8.2.3 cookie crumbs", h2.get(1, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"))),
]

PSEUDO = [
    _head("8.3 unknown pseudo-header", [*GET, (b":unknown", b"x")]),
    _head("8.3 :status in a request", [*GET, *OK]),
    _head("8.3 pseudo-header after a field", [(b"x", b"y"), *GET]),
    _head("8.3 pseudo-header after the host", [*GET[:3], (b"host", b"a.test"), GET[3]]),
    *(_head(f"8.3 {field[0].decode()} twice", [*GET, field]) for field in GET),
    *(_head(f"8.3.1 no {field[0].decode()}", _without(field[0])) for field in GET[:3]),
    _head("8.3.1 neither :authority nor host", GET[:3]),
    ok("8.3.1 host and no :authority", h2.headers(1, [*GET[:3], (b"host", b"a.test")], end=True)),
    ok("8.3.1 host equal to :authority", h2.get(1, (b"host", b"a.test"))),
    _get("8.3.1 host differs from :authority", (b"host", b"b.test")),
    _get("8.3.1 two hosts", (b"host", b"a.test"), (b"host", b"a.test")),
    _head("8.3.1 empty :authority", _but(b":authority", b"")),
    _head("8.3.1 user information in :authority", _but(b":authority", b"u:p@a.test")),
    _head("8.3.1 space in :authority", _but(b":authority", b"a.test b")),
    _head("8.3.1 empty :path", _but(b":path", b"")),
    _head("8.3.1 :path without slash", _but(b":path", b"index")),
    _head("8.3.1 space in :path", _but(b":path", b"/a HTTP/1.1")),
    _head("8.3.1 :path * with GET", _but(b":path", b"*")),
    ok(
        "8.3.1 :path * with OPTIONS",
        h2.headers(1, [(b":method", b"OPTIONS"), GET[1], (b":path", b"*"), GET[3]], end=True),
    ),
    _head("8.3.1 space in :method", _but(b":method", b"GET /")),
    _head("8.3.1 empty :method", _but(b":method", b"")),
    _head("8.3.1 empty :scheme", _but(b":scheme", b"")),
    _head("8.5 CONNECT with :path", [*CONNECT, (b":path", b"/")]),
    _head("8.5 CONNECT with :scheme", [*CONNECT, (b":scheme", b"http")]),
    _head("8.5 CONNECT without :authority", CONNECT[:1]),
    _head("RFC 8441 4 :protocol with GET", [*GET, (b":protocol", b"websocket")]),
    _head("RFC 8441 4 extended CONNECT without :path", [field for field in EXTENDED if field[0] != b":path"]),
    _head("RFC 8441 4 empty :protocol", [(b":method", b"CONNECT"), (b":protocol", b""), *GET[1:]]),
]

IN_MEMORY = [  # what a sidecar answers depends on what is behind it
    ok("8.5 CONNECT", h2.headers(1, CONNECT)),
    ok("RFC 8441 4 extended CONNECT", h2.headers(1, EXTENDED)),
]


def _block(name: str, payload: bytes) -> Case:
    return dead(name, COMPRESSION, h2.frame(h2.HEADERS, 5, 1, payload))


_FIRST = h2.plain(GET)

HPACK = [
    _block("RFC 7541 2.3.3 index 0", _FIRST + b"\x80"),
    _block("RFC 7541 2.3.3 index beyond the tables", _FIRST + b"\xbe"),
    _block("RFC 7541 2.3.3 name index beyond the tables", _FIRST + b"\x7e\x01v"),
    _block("RFC 7541 4.2 table size update behind a field", _FIRST + b"\x20"),
    _block("RFC 7541 6.3 table size update above the setting", h2.integer(4097, 5, 0x20) + _FIRST),
    ok(
        "RFC 7541 6.3 table size updates",
        h2.frame(h2.HEADERS, 5, 1, b"\x20" + h2.integer(4096, 5, 0x20) + _FIRST),
    ),
    _block("RFC 7541 5.1 integer without end", _FIRST + b"\xff" + b"\x80" * 12 + b"\x01"),
    _block("RFC 7541 5.1 integer that is cut off", _FIRST + b"\xff\x80"),
    _block("RFC 7541 5.2 string that is cut off", _FIRST + b"\0\x01n\x05v"),
    _block("RFC 7541 5.2 string of 2^31 bytes", _FIRST + b"\0\x01n" + h2.integer(2**31, 7) + b"v"),
    _block("RFC 7541 5.2 padding of a whole byte", _FIRST + b"\0\x01n\x82\xff\xff"),
    _block("RFC 7541 5.2 padding with zeros", _FIRST + b"\0\x01n\x81\x00"),
    _block("RFC 7541 5.2 EOS in a string", _FIRST + b"\0\x01n\x84\xff\xff\xff\xff"),
    dead(
        "RFC 7541 4.3 block of many CONTINUATION frames",
        CALM,
        h2.headers(1, GET, done=False),
        *(h2.continuation(1, done=False) for _ in range(300)),
    ),
]

SERVER = [*MESSAGES, *FIELDS, *PSEUDO, *HPACK]


def _answer(name: str, fields: Fields, *more: bytes, stream: int = 1) -> Case:
    return broken(name, PROTOCOL, h2.headers(stream, fields, end=not more), *more, stream=stream)


CLIENT = [
    ok("8.1 response", h2.headers(1, OK), h2.data(1, b"body", end=True)),
    ok("8.1 interim responses", h2.headers(1, [(b":status", b"103")]), h2.headers(1, OK, end=True)),
    ok("8.1 response with trailers", h2.headers(1, OK), _BODY, h2.headers(1, [(b"x", b"y")], end=True)),
    ok("8.1 response before the request has ended", h2.headers(5, OK, end=True)),
    ok("8.1 reset", h2.rst_stream(1, 8)),
    ok("8.1.1 length of an answer to HEAD", h2.headers(3, [*OK, (b"content-length", b"7")], end=True)),
    ok("8.1.1 length of 304", h2.headers(1, [(b":status", b"304"), (b"content-length", b"7")], end=True)),
    _answer("8.1.1 content of an answer to HEAD", OK, h2.data(3, b"x", end=True), stream=3),
    _answer("8.1.1 content of 204", [(b":status", b"204")], _END),
    _answer("8.1.1 length of a response without content", [*OK, (b"content-length", b"7")]),
    _answer("8.1.1 less than declared", [*OK, (b"content-length", b"7")], _END),
    _answer("8.1.1 more than declared", [*OK, (b"content-length", b"3")], _END),
    _answer("8.1.1 length that is no number", [*OK, (b"content-length", b"x")], _END),
    _answer("8.1.1 length in 103", [(b":status", b"103"), (b"content-length", b"4")], h2.headers(1, OK)),
    broken("8.1 DATA before the head", PROTOCOL, _END, strict=False),
    broken("8.1 DATA after an interim response", PROTOCOL, h2.headers(1, [(b":status", b"103")]), _END),
    broken(
        "8.1 interim response that ends the stream", PROTOCOL, h2.headers(1, [(b":status", b"103")], end=True)
    ),
    broken("8.1 second head", PROTOCOL, h2.headers(1, OK), h2.headers(1, OK)),
    broken(
        "8.1 trailers that do not end the stream", PROTOCOL, h2.headers(1, OK), h2.headers(1, [(b"a", b"b")])
    ),
    _answer("8.2.1 upper case", [*OK, (b"X", b"y")]),
    _answer("8.2.1 CR LF in a value", [*OK, (b"x", b"a\r\nb: c")]),
    *(
        _answer(f"8.2.2 {name.decode()}: {value.decode()}", [*OK, (name, value)])
        for name, value in _CONNECTION_FIELDS[:5]
    ),
    _answer("8.3.2 no :status", [(b"x", b"y")]),
    _answer("8.3.2 two :status", [*OK, *OK]),
    _answer("8.3.2 :status after a field", [(b"x", b"y"), *OK]),
    _answer("8.3.2 :path in a response", [*OK, (b":path", b"/")]),
    *(
        _answer(f"8.3.2 :status {value!r}", [(b":status", value)])
        for value in (b"", b"20", b"2000", b"0200", b"abc", b"099")
    ),
    _answer("8.6 :status 101", [(b":status", b"101")], h2.headers(1, OK)),
    dead("5.1 idle: HEADERS", PROTOCOL, h2.headers(7, OK, end=True)),
    dead("5.1 idle: DATA", PROTOCOL, h2.data(7, b"x")),
    dead("5.1.1 stream of the server", PROTOCOL, h2.headers(2, OK, end=True)),
    broken(
        "5.1 half-closed: DATA", CLOSED, h2.headers(5, OK, end=True), h2.data(5, b"x"), stream=5, strict=False
    ),
    either("5.1 closed: DATA", CLOSED, h2.headers(1, OK, end=True), h2.data(1, b"x")),
    dead("6.5.2 ENABLE_PUSH of 1 from a server", PROTOCOL, h2.settings((h2.ENABLE_PUSH, 1))),
    dead("6.6 PUSH_PROMISE", PROTOCOL, h2.frame(h2.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + h2.plain(POST))),
    dead("6.5 SETTINGS of five bytes", SIZE, h2.frame(h2.SETTINGS, 0, 0, bytes(5))),
    dead("RFC 8441 3 ENABLE_CONNECT_PROTOCOL of 2", PROTOCOL, h2.settings((h2.ENABLE_CONNECT, 2))),
    dead(
        "RFC 8441 3 ENABLE_CONNECT_PROTOCOL withdrawn",
        PROTOCOL,
        h2.settings((h2.ENABLE_CONNECT, 1)),
        h2.settings((h2.ENABLE_CONNECT, 0)),
    ),
]
