import ast
from pathlib import Path

import pytest

from mesh_proxy.wire.http1 import ChunkScanner, HttpError, Limits

CORPUS = Path(__file__).parents[3] / "corpus" / "wire" / "chunks_refused.txt"


def refused():
    for line in CORPUS.read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            expected, _, escaped = line.partition("\t")
            yield expected, ast.literal_eval(f"b'{escaped}'")


def feed_all(scanner, pieces):
    for piece in pieces:
        scanner.feed(piece)


GOOD = [
    (b"0\r\n\r\n", 0),
    (b"5\r\nhello\r\n0\r\n\r\n", 5),
    (b'5;a=b; c="d e"\t\xe9\r\nhello\r\n00000\r\n\r\n', 5),
    (b"000000000000000A\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", 10),
    (b"1\r\na\r\n2\r\nbc\r\n3\r\n0\r\n\r\n0;x\r\nA: b\r\ngrpc-status:0\r\n\r\n", 6),
]


@pytest.mark.parametrize(("body", "payload"), GOOD)
@pytest.mark.parametrize("tail", [b"", b"GET / HTTP/1.1\r\n", b"\r\n", b"\0\n"])
def test_accepted_in_every_cut_and_what_follows_is_left_alone(body, payload, tail):
    data = body + tail
    for cut in range(len(data) + 1):
        scanner = ChunkScanner()
        taken = scanner.feed(data[:cut])
        assert taken == min(cut, len(body))
        assert scanner.done is (cut >= len(body))
        taken += scanner.feed(data[taken:])
        assert (taken, scanner.done, scanner.payload) == (len(body), True, payload)
        assert scanner.feed(b"more") == 0


@pytest.mark.parametrize(("body", "payload"), GOOD)
def test_accepted_byte_by_byte(body, payload):
    scanner = ChunkScanner()
    for i in range(len(body)):
        assert not scanner.done
        assert scanner.feed(bytearray(body[i : i + 1])) == 1
    assert scanner.done
    assert scanner.payload == payload


def test_payload_counts_what_has_passed():
    scanner = ChunkScanner()
    scanner.feed(b"a\r\nabc")
    assert scanner.payload == 3
    scanner.feed(b"defg")
    assert scanner.payload == 7


@pytest.mark.parametrize("status", [400, 502])
@pytest.mark.parametrize(("reason", "body"), list(refused()))
def test_refused_however_it_is_cut(reason, body, status):
    scanner = ChunkScanner(status=status)
    with pytest.raises(HttpError) as caught:
        scanner.feed(body)
    assert (caught.value.status, caught.value.reason) == (status, reason)
    scanner = ChunkScanner(status=status)
    with pytest.raises(HttpError):
        feed_all(scanner, [body[i : i + 1] for i in range(len(body))])
    assert not scanner.done


@pytest.mark.parametrize("start", [b"", b"5;x", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nA: b", b"0\r\nA: b\r\n"])
@pytest.mark.parametrize("bad", [b"\0", b"\rX", b"\r\r", b"\n"])
def test_nothing_ambiguous_is_let_through_before_its_line_is_whole(start, bad):
    scanner = ChunkScanner()
    scanner.feed(start)
    with pytest.raises(HttpError):
        scanner.feed(bad)


@pytest.mark.parametrize(("size", "fine"), [(2**53, True), (2**53 + 1, False)])
def test_largest_chunk(size, fine):
    scanner = ChunkScanner()
    line = b"%x\r\n" % size
    if fine:
        assert scanner.feed(line) == len(line)
    else:
        with pytest.raises(HttpError, match="too large"):
            scanner.feed(line)


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize("before", [b"", b"1\r\na\r\n"])
def test_chunk_line_limit_is_exact(before, cut):
    limits = Limits(chunk_line_bytes=20)
    for extra, fine in [(18, True), (19, False)]:
        body = before + b"5;" + b"x" * extra + b"\r\nhello\r\n0\r\n\r\n"
        scanner = ChunkScanner(limits)
        pieces = [body[i : i + cut] for i in range(0, len(body), cut)]
        if fine:
            assert [scanner.feed(piece) for piece in pieces] == [len(piece) for piece in pieces]
            assert scanner.done
        else:
            with pytest.raises(HttpError, match="longer than 20 bytes"):
                feed_all(scanner, pieces)


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize(
    ("trailer", "fine"),
    [
        (b"A: " + b"x" * 33 + b"\r\n\r\n", True),
        (b"A: " + b"x" * 34 + b"\r\n\r\n", False),
        (b"a:\r\n" * 3 + b"\r\n", True),
        (b"a:\r\n" * 4 + b"\r\n", False),
    ],
)
def test_trailer_limits_are_exact(trailer, fine, cut):
    limits = Limits(trailer_bytes=40, header_count=3)
    body = b"0\r\n" + trailer
    pieces = [body[i : i + cut] for i in range(0, len(body), cut)]
    scanner = ChunkScanner(limits)
    if fine:
        feed_all(scanner, pieces)
        assert scanner.done
    else:
        with pytest.raises(HttpError) as caught:
            feed_all(scanner, pieces)
        assert (caught.value.status, caught.value.reason) == (431, "trailer-too-large")
        assert not scanner.done
