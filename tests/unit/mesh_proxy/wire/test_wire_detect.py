import ssl

import pytest

from mesh_proxy.wire.detect import H2_PREFACE, MAX_PREFIX, Verdict, classify, server_undecided


def settle(data, step=1):
    """The first verdict other than NEED_MORE, and after how many bytes it came."""
    for size in range(step, len(data) + step, step):
        verdict = classify(data[:size])
        if verdict is not Verdict.NEED_MORE:
            return verdict, min(size, len(data))
    return Verdict.NEED_MORE, len(data)


@pytest.mark.parametrize(
    ("data", "verdict", "after"),
    [
        (b"GET / HTTP/1.1\r\n", Verdict.HTTP1, 4),
        (b"OPTIONS * HTTP/1.1\r\n", Verdict.HTTP1, 8),
        (b"PATCH /x", Verdict.HTTP1, 6),
        (b"PRIX / HTTP/1.1\r\n", Verdict.HTTP1, 14),
        (b"PRI * HTTP/1.1\r\n", Verdict.HTTP1, 13),
        (b"PURGE /a/b?c HTTP/1.0\r\n", Verdict.HTTP1, 20),
        (b"get / HTTP/1.1\r\n", Verdict.HTTP1, 13),
        (b"X" * 32 + b" / HTTP/1.1\r\n", Verdict.HTTP1, 42),
        (b"X" * 33 + b" / HTTP/1.1\r\n", Verdict.OPAQUE, 33),
        (b"\r\nGET / HTTP/1.1\r\n", Verdict.HTTP1, 6),
        (b"\n\r\n\r\nBREW /pot HTTP/1.1\r\n", Verdict.HTTP1, 22),
        (b"\r\n\r\n", Verdict.NEED_MORE, 4),
        (H2_PREFACE, Verdict.HTTP2, 24),
        (H2_PREFACE + b"\0\0\0\4\0\0\0\0\0", Verdict.HTTP2, 24),
        (H2_PREFACE[:23], Verdict.NEED_MORE, 23),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Verdict.OPAQUE, 19),
        (b"\x16\x03\x01\x02\x00\x01", Verdict.TLS, 3),
        (b"\x16\x03\x05", Verdict.OPAQUE, 3),
        (b"\x16\x02", Verdict.OPAQUE, 2),
        (b"\x16", Verdict.NEED_MORE, 1),
        (b"EHLO mail.example\r\n", Verdict.OPAQUE, 18),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Verdict.OPAQUE, 20),
        (b"set key 0 0 5\r\n", Verdict.OPAQUE, 9),
        (b"*1\r\n$4\r\nPING\r\n", Verdict.OPAQUE, 3),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Verdict.OPAQUE, 1),
        (b"FOO  / HTTP/1.1\r\n", Verdict.OPAQUE, 5),
        (b"FOO / HTTP/2.0\r\n", Verdict.OPAQUE, 12),
        (b"GET\t/ HTTP/1.1\r\n", Verdict.OPAQUE, 4),
        (b" GET / HTTP/1.1\r\n", Verdict.OPAQUE, 1),
        (b"\x80\x2e\x01\x03\x01", Verdict.OPAQUE, 1),
        (b"FOO /" + b"x" * MAX_PREFIX, Verdict.HTTP1, MAX_PREFIX),
        (b"\r\n" * MAX_PREFIX, Verdict.HTTP1, MAX_PREFIX),
    ],
)
def test_verdict_and_how_early_it_falls(data, verdict, after):
    assert settle(data) == (verdict, after)
    assert classify(bytearray(data)) is verdict


def test_nothing_is_undecided():
    assert classify(b"") is Verdict.NEED_MORE
    assert server_undecided(b"")


def test_a_real_client_hello_is_tls():
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    assert settle(outgoing.read()) == (Verdict.TLS, 3)


SETTINGS = [
    bytes.fromhex("000000040000000000"),  # empty, as Go's and Node's servers may send
    bytes.fromhex("000006040000000000000400ffffff"),  # grpc-java
    bytes.fromhex("000018040000000000000300000064000400100000000600004000fe0300000001"),  # grpc core
    bytes.fromhex(
        "00000c04000000000000050000400000030000006400000408000000000000100000"
    ),  # and WINDOW_UPDATE
    bytes.fromhex("000000044080000000"),  # unknown flag, reserved bit
]


@pytest.mark.parametrize("data", [*SETTINGS, b"HTTP/1.1 400 Bad Request\r\n", b"HTTP/1.0 408 x"])
def test_server_bytes_that_leave_it_open(data):
    for size in range(len(data) + 1):
        assert server_undecided(data[:size])
        assert server_undecided(bytearray(data[:size]))


@pytest.mark.parametrize(
    ("data", "after"),
    [
        (b"220 mail.example ESMTP\r\n", 1),
        (b"SSH-2.0-x", 1),
        (b"J\0\0\0\n8.0.36\0", 1),
        (b"HTTP/2", 6),
        (b"HTTPS", 5),
        (b"\x01\0\0\4\0\0\0\0\0", 1),
        (b"\0\x41\0\4\0\0\0\0\0", 2),
        (b"\0\x40\1\4\0\0\0\0\0", 3),
        (b"\0\0\5\4\0\0\0\0\0", 3),
        (b"\0\0\6\1\0\0\0\0\0", 4),
        (b"\0\0\0\4\1\0\0\0\0", 5),
        (b"\0\0\0\4\0\1\0\0\0", 6),
        (b"\0\0\0\4\0\0\1\0\0", 7),
        (b"\0\0\0\4\0\0\0\1\0", 8),
        (b"\0\0\0\4\0\0\0\0\1", 9),
    ],
)
def test_server_bytes_that_decide(data, after):
    assert server_undecided(data[: after - 1])
    for size in range(after, len(data) + 1):
        assert not server_undecided(data[:size])
