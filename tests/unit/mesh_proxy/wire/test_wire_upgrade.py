"""What a request asks its connection to become, and which responses grant it."""

import pytest

from mesh_proxy.wire.http1 import DEFAULT_LIMITS, HttpError, parse_request, parse_response
from mesh_proxy.wire.upgrade import asked

LISTED = frozenset((b"websocket", b"chat/2"))


def ask(fields=b"Connection: Upgrade\r\nUpgrade: websocket\r\n", line=b"GET / HTTP/1.1"):
    return asked(parse_request(line + b"\r\nHost: a\r\n" + fields + b"\r\n", DEFAULT_LIMITS), LISTED)


def response(line, fields=b"", method=b"GET"):
    return parse_response(line + b"\r\n" + fields + b"\r\n", method, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        (b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n", (b"WebSocket",)),
        (
            b"Connection: keep-alive , UPGRADE\r\nUpgrade: x, websocket , chat/2\r\n",
            (b"websocket", b"chat/2"),
        ),
        (
            b"Upgrade: chat/2\r\nConnection: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
            (b"chat/2", b"websocket"),
        ),
    ],
)
def test_offered(fields, offered):
    wants = ask(fields)
    assert wants.offered == offered
    assert wants.lines == b"connection: upgrade\r\nupgrade: " + b", ".join(offered) + b"\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Connection: Upgrade\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: upgraded\r\nUpgrade: websocket\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket/13, chat\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_nothing_is_asked(fields):
    assert ask(fields) is None


def test_http10_cannot_ask_for_a_protocol():
    assert ask(line=b"GET / HTTP/1.0") is None


def test_granted_by_101():
    wants = ask()
    fields = b"Connection: upgrade\r\nUpgrade: WEBSOCKET\r\n"
    assert wants.granted(response(b"HTTP/1.1 101 x", fields))
    assert wants.agreed == b"WEBSOCKET"
    assert not ask().granted(response(b"HTTP/1.1 200 OK", fields))
    assert not ask().granted(response(b"HTTP/1.1 426 Upgrade Required", fields))


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Connection: upgrade\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: upgrade\r\nUpgrade: chat/2\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket, chat/2\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
    ],
)
def test_a_101_that_grants_something_else(fields):
    with pytest.raises(HttpError) as caught:
        ask().granted(response(b"HTTP/1.1 101 x", fields))
    assert (caught.value.status, caught.value.reason) == (502, "bad-upgrade")


@pytest.mark.parametrize(
    ("status", "granted"), [(200, True), (204, True), (299, True), (300, False), (403, False)]
)
def test_connect(status, granted):
    wants = ask(b"", b"CONNECT a:80 HTTP/1.1")
    assert (wants.offered, wants.lines) == ((), b"")
    assert wants.granted(response(b"HTTP/1.1 %d x" % status, method=b"CONNECT")) is granted


def test_connect_has_no_body_and_101_does_not_answer_it():
    with pytest.raises(HttpError, match="CONNECT"):
        ask(b"Content-Length: 1\r\n", b"CONNECT a:80 HTTP/1.1")
    with pytest.raises(HttpError) as caught:
        ask(b"", b"CONNECT a:80 HTTP/1.1").granted(response(b"HTTP/1.1 101 x", method=b"CONNECT"))
    assert caught.value.status == 502
