import ssl
import struct

import pytest

from mesh_proxy.wire.client_hello import MAX_BYTES, MAX_RECORDS, ClientHello, HelloWatch, NotTls, parse


def real_hello(alpn=(), sni=None, newest=ssl.TLSVersion.TLSv1_3, oldest=ssl.TLSVersion.TLSv1_2):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = oldest
    context.maximum_version = newest
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=sni)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def vector(size, content):
    return len(content).to_bytes(size, "big") + content


def extension(kind, content):
    return struct.pack("!HH", kind, len(content)) + content


def hello(
    extensions=b"",
    *,
    version=0x0303,
    session=b"",
    suites=b"\x13\x01",
    compression=b"\0",
    tail=b"",
    bare=False,
):
    body = (
        struct.pack("!H", version)
        + bytes(32)
        + vector(1, session)
        + vector(2, suites)
        + vector(1, compression)
    )
    return body + (b"" if bare else vector(2, extensions)) + tail


def message(body, kind=1):
    return bytes([kind]) + vector(3, body)


def records(data, size=16384, version=0x0301):
    return b"".join(
        struct.pack("!BHH", 0x16, version, len(data[i : i + size])) + data[i : i + size]
        for i in range(0, len(data), size)
    )


def reason(data):
    with pytest.raises(NotTls) as caught:
        parse(data)
    assert caught.value.reason in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("alpn", "sni"),
    [
        ((), None),
        (("h2",), "a.example"),
        (("triomesh-h1", "triomesh-h2", "triomesh-tcp"), None),
        (("h2", "http/1.1"), "under_score.shop.svc.cluster.local"),
        (("x" * 255, "y"), "a" * 63 + ".example"),
    ],
)
def test_what_openssl_sends_is_read_and_only_when_whole(alpn, sni):
    data = real_hello(alpn, sni)
    expected = ClientHello(tuple(name.encode() for name in alpn), sni or "", (0x0304, 0x0303))
    assert parse(data) == expected
    assert parse(bytearray(data + b"\x14\x03\x03\0\1\1 and anything")) == expected
    for size in range(len(data)):
        assert parse(data[:size]) is None


@pytest.mark.parametrize("size", [9, 17, 100, 255])
def test_a_real_hello_over_several_records(size):
    data = records(real_hello(("h2",), "a.example")[5:], size)
    assert parse(data) == ClientHello((b"h2",), "a.example", (0x0304, 0x0303))
    for cut in range(len(data)):
        assert parse(data[:cut]) is None


def test_without_supported_versions_the_legacy_version_counts():
    assert parse(real_hello(newest=ssl.TLSVersion.TLSv1_2)) == ClientHello((), "", (0x0303,))
    assert parse(records(message(hello(bare=True, version=0x0301)))) == ClientHello((), "", (0x0301,))
    assert parse(records(message(hello(b"")))) == ClientHello((), "", (0x0303,))


def test_only_tls13():
    assert parse(real_hello(oldest=ssl.TLSVersion.TLSv1_3)).versions == (0x0304,)


def test_unknown_extensions_and_name_types_and_grease_are_passed_over():
    extensions = (
        extension(0x0A0A, b"")
        + extension(0, vector(2, b"\7" + vector(2, b"??") + b"\0" + vector(2, b"A.b")))
        + extension(43, vector(1, b"\x0a\x0a\x03\x04"))
        + extension(16, vector(2, vector(1, b"\x0a\x0a") + vector(1, b"h2")))
    )
    assert parse(records(message(hello(extensions)))) == ClientHello(
        (b"\x0a\x0a", b"h2"), "A.b", (0x0A0A, 0x0304)
    )


@pytest.mark.parametrize("name", [b"a", b"A.B", b"a.", b"1.2.3.4", b"_x._tcp.a-b", b"a" * 255])
def test_server_names_that_are_fine(name):
    data = records(message(hello(extension(0, vector(2, b"\0" + vector(2, name))))))
    assert parse(data).sni == name.decode()


@pytest.mark.parametrize(
    "name",
    [b"", b".", b".a", b"a..b", b"-a", b"a b", b"a\0b", b"a/b", b"\xe9", b"a" * 256, b"::1", b"a\n", b"a:1"],
)
def test_server_names_that_are_not(name):
    data = records(message(hello(extension(0, vector(2, b"\0" + vector(2, name))))))
    assert reason(data) == "bad-server-name"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "bad-hello-length"),
        (hello()[:34], "bad-hello-length"),
        (hello(tail=b"\0"), "bad-hello-length"),
        (hello(bare=True, tail=b"\0"), "bad-hello-length"),
        (hello(bare=True, tail=b"\0\5"), "bad-hello-length"),
        (hello(version=0x0200), "bad-hello-version"),
        (hello(version=0x7F1C), "bad-hello-version"),
        (hello(session=b"x" * 33), "bad-session-id"),
        (hello(suites=b""), "bad-cipher-suites"),
        (hello(suites=b"\0\1\2"), "bad-cipher-suites"),
        (hello(compression=b""), "bad-compression-methods"),
        (hello(b"\0\0\0"), "bad-extension-length"),
        (hello(struct.pack("!HH", 99, 5) + b"1234"), "bad-extension-length"),
        (hello(extension(99, b"") * 2), "repeated-extension"),
        (hello(extension(16, b"")), "bad-alpn"),
        (hello(extension(16, b"\0\0")), "bad-alpn"),
        (hello(extension(16, vector(2, b"\2h2") + b"x")), "bad-alpn"),
        (hello(extension(16, vector(2, b"\3h2"))), "bad-alpn"),
        (hello(extension(16, vector(2, b"\2h2\0"))), "bad-alpn"),
        (hello(extension(16, b"\0\4\2h2")), "bad-alpn"),
        (hello(extension(0, b"")), "bad-server-name"),
        (hello(extension(0, b"\0\0")), "bad-server-name"),
        (hello(extension(0, vector(2, b"\0\0\5a"))), "bad-server-name"),
        (hello(extension(0, vector(2, b"\0\0\1a\0\0\1b"))), "bad-server-name"),
        (hello(extension(43, b"")), "bad-supported-versions"),
        (hello(extension(43, b"\0")), "bad-supported-versions"),
        (hello(extension(43, b"\3\3\4\3")), "bad-supported-versions"),
        (hello(extension(43, b"\2\3\4\3")), "bad-supported-versions"),
    ],
)
def test_malformed_hellos(body, expected):
    assert reason(records(message(body))) == expected
    assert reason(records(message(body), 11)) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", "not-a-handshake-record"),
        (b"\x15\x03\x01\0\2\2\0", "not-a-handshake-record"),
        (bytes.fromhex("802e0103010015000000100100800300800700c006004002008004008000"), "sslv2-hello"),
        (b"\x16\x02", "bad-record-version"),
        (b"\x16\x03\x05", "bad-record-version"),
        (b"\x16\x03\x01\0\0", "bad-record-length"),
        (b"\x16\x03\x01\x40\x01", "bad-record-length"),
        (b"\x16\x03\x01\0\5\2", "not-a-client-hello"),
        (records(b"\1\0\x3f\xfd"), "too-long"),
        (records(message(hello())[:20]) + b"\x17\x03\x03\0\1", "not-a-handshake-record"),
        (records(message(hello())[:20]) + b"\x16\x02", "bad-record-version"),
        (records(message(hello()) + b"\0"), "bytes-after-hello"),
    ],
)
def test_bytes_that_are_no_hello_are_refused_as_soon_as_it_shows(data, expected):
    assert reason(data) == expected
    assert reason(data + b"\xff" * 40) == expected


def test_bounds():
    padding = MAX_BYTES - 5 - len(message(hello(extension(21, b""))))
    largest = records(message(hello(extension(21, bytes(padding)))))
    assert len(largest) == MAX_BYTES
    assert parse(largest) == ClientHello((), "", (0x0303,))
    larger = records(message(hello(extension(21, bytes(padding + 1)))))
    assert parse(larger[: MAX_BYTES - 1]) is None
    assert reason(larger[:MAX_BYTES]) == reason(larger) == "too-long"
    long = message(hello(extension(21, bytes(100))))
    assert parse(records(long, 1)[: 6 * (MAX_RECORDS - 1)]) is None
    assert reason(records(long, 1)) == "too-many-records"
    assert parse(records(long, -(-len(long) // MAX_RECORDS))) is not None


@pytest.mark.parametrize("size", [1, 5, 100, 10_000])
def test_a_hello_that_goes_past_in_pieces(size):
    data = real_hello(("h2",), "a.example") + b"\x14\x03\x03\0\1\1 and anything"
    watch = HelloWatch()
    fed = 0
    for at in range(0, len(data), size):
        fed += 1
        if watch.feed(data[at : at + size]):
            break
    assert watch.hello == ClientHello((b"h2",), "a.example", (0x0304, 0x0303))
    assert fed == -(-len(real_hello(("h2",), "a.example")) // size)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1", b"\x16\x03\x01\x40\x00\x01\x00\x3f\xf0" + bytes(20_000)])
def test_what_is_no_hello_is_given_up(data):
    watch = HelloWatch()
    assert any(watch.feed(data[at : at + 1000]) for at in range(0, len(data), 1000))
    assert watch.hello is None
