"""Inputs built to make a backtracking matcher suffer, at the largest size we hold.

Anything worse than linear takes minutes on these and runs into the test's timeout.
"""

import contextlib
import importlib
import re

import pytest

from mesh_proxy.wire import client_hello, detect, http1
from mesh_proxy.wire.http1 import ChunkScanner, HttpError, Limits, head_end, parse_request, parse_response

SIZE = 65536
WIDE = Limits(
    head_bytes=2 * SIZE, line_bytes=2 * SIZE, header_count=SIZE, chunk_line_bytes=SIZE, trailer_bytes=SIZE
)
START = b"GET / HTTP/1.1\r\nHost: a\r\n"
STATUS = b"HTTP/1.1 200 OK\r\n"

HEADS = {
    "header lines": lambda start, n: start + b"a: b\r\n" * (n // 6),
    "empty values": lambda start, n: start + b"a:\r\n" * (n // 4),
    "one name": lambda start, n: start + b"a" * n,
    "one value": lambda start, n: start + b"a: " + b"b" * n,
    "one value of blanks": lambda start, n: start + b"a:" + b" \t" * (n // 2),
    "blanks with words": lambda start, n: start + b"a:" + b" b" * (n // 2),
    "blanks in a header we read": lambda start, n: start + b"Connection:" + b" " * n,
    "commas": lambda start, n: start + b"Connection: " + b"," * n,
    "options": lambda start, n: start + b"Connection: " + b"a,b ," * (n // 5),
    "colons": lambda start, n: start + b":" * n,
    "mesh names": lambda start, n: start + b"x-triomesh-" * (n // 11),
    "mesh lines": lambda start, n: start + b"x-triomesh-a:\r\n" * (n // 15),
    "connection lines": lambda start, n: start + b"connection: q\r\n" * (n // 15),
    "almost names": lambda start, n: start + b"connectio: x\r\nhos: t\r\n" * (n // 22),
    "high bytes": lambda start, n: start + b"a: " + b"\xff" * n,
    "target": lambda start, n: b"GET " + b"/" * n,
    "method": lambda start, n: b"G" * n,
    "words": lambda start, n: b"G " * (n // 2),
    "reason": lambda start, n: b"HTTP/1.1 200 " + b" x" * (n // 2),
    "line ends": lambda start, n: start + b"\r\n" * (n // 2),
}
ENDS = {
    "good": b"\r\n\r\n",
    "nul": b"\0\r\n\r\n",
    "cut": b"",
    "cr": b"\r",
    "no colon": b"\r\nx\r\n\r\n",
    "lf": b"\n",
}


def patterns():
    for module in (http1, detect, client_hello):
        for name, value in vars(module).items():
            owner = getattr(value, "__self__", value)
            if isinstance(owner, re.Pattern):
                yield pytest.param(owner, id=f"{module.__name__.rpartition('.')[2]}.{name}")


@pytest.mark.parametrize("pattern", list(patterns()))
def test_no_repetition_can_be_retried(pattern):
    parser = importlib.import_module("re._parser")
    kept = []

    def walk(node):
        if isinstance(node, parser.SubPattern):
            for operation, argument in node:
                if str(operation) in ("MAX_REPEAT", "MIN_REPEAT"):
                    kept.append(argument)
                walk(argument)
        elif isinstance(node, tuple | list):
            for item in node:
                walk(item)

    walk(parser.parse(pattern.pattern, pattern.flags))
    assert not kept


@pytest.mark.timeout(10)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("shape", HEADS.values(), ids=HEADS)
def test_heads(shape, end):
    for size in (SIZE, SIZE // 2):
        for start, parse in [
            (START, lambda head: parse_request(head, WIDE)),
            (STATUS, lambda head: parse_response(head, b"GET", WIDE)),
        ]:
            data = shape(start, size) + end
            for _ in range(5):
                with contextlib.suppress(HttpError):
                    head_end(data, 0, WIDE)
                with contextlib.suppress(HttpError):
                    head = parse(data)
                    head.forward_block() if start is START else head.forward_block(True)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("limits", [WIDE, http1.DEFAULT_LIMITS], ids=["wide", "default"])
@pytest.mark.parametrize("shape", HEADS.values(), ids=HEADS)
def test_head_end_byte_by_byte(shape, limits):
    data = shape(START, SIZE)
    buf = bytearray()
    with contextlib.suppress(HttpError):
        for i in range(len(data)):
            buf += data[i : i + 1]
            if head_end(buf, max(0, i - 3), limits) >= 0:
                break


CHUNKS = {
    "digits": b"0" * SIZE,
    "one line": b"5;" + b"a" * SIZE,
    "extensions": b"5" + b";a=b" * (SIZE // 4),
    "tiny chunks": b"1\r\na\r\n" * (SIZE // 6),
    "tiny chunks with extensions": b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\na\r\n" * (SIZE // 34),
    "one trailer": b"0\r\na: " + b"b" * SIZE,
    "trailer name": b"0\r\n" + b"a" * SIZE,
    "trailers": b"0\r\n" + b"a:\r\n" * (SIZE // 4),
    "blanks": b"0\r\na:" + b" " * SIZE,
    "one chunk": b"10000\r\n" + b"x" * SIZE + b"\r\n0\r\n\r\n",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("step", [SIZE * 2, SIZE // 2, 1])
@pytest.mark.parametrize("limits", [WIDE, http1.DEFAULT_LIMITS], ids=["wide", "default"])
@pytest.mark.parametrize("data", CHUNKS.values(), ids=CHUNKS)
def test_chunks(data, limits, step):
    if limits is WIDE and step == 1:
        limits = Limits(header_count=SIZE, trailer_bytes=SIZE)
    for _ in range(1 if step == 1 else 20):
        scanner = ChunkScanner(limits)
        with contextlib.suppress(HttpError):
            for i in range(0, len(data), step):
                scanner.feed(data[i : i + step])


@pytest.mark.timeout(10)
@pytest.mark.parametrize("step", [SIZE, SIZE // 8, 64, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"X" * SIZE,
        b"FOO " + b"/" * SIZE,
        b"FOO /" + b" H" * SIZE,
        b"\r\n" * SIZE,
        b"FOO " + b"\xff" * SIZE,
        b"F " * SIZE,
    ],
)
def test_detection(data, step):
    for size in range(step, SIZE + 1, step):
        if detect.classify(data[:size]) is not detect.Verdict.NEED_MORE:
            break


def hello(extensions):
    body = b"\3\3" + bytes(33) + b"\0\2\x13\1\1\0" + len(extensions).to_bytes(2, "big") + extensions
    return b"\1" + len(body).to_bytes(3, "big") + body


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "extensions",
    [
        b"".join(kind.to_bytes(2, "big") + b"\0\0" for kind in range(100, 4100)),
        b"\0\x10\x3e\x82\x3e\x80" + b"\1a" * 8000,
        b"\0\0\x3e\x82\x3e\x80" + b"\1\0\1a" * 4000,
        b"\0\0\1\4\1\2\0\0\xff" + b"a." * 128,
    ],
)
@pytest.mark.parametrize("size", [1, 300, 16000])
def test_hellos_byte_by_byte(extensions, size):
    message = hello(extensions)
    data = b"".join(
        b"\x16\3\1" + len(message[i : i + size]).to_bytes(2, "big") + message[i : i + size]
        for i in range(0, len(message), size)
    )
    with contextlib.suppress(client_hello.NotTls):
        for end in range(1, len(data) + 1):
            if client_hello.parse(data[:end]) is not None:
                break
