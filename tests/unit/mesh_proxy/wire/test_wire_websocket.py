"""WebSocket's handshake in HTTP/1.1 for a request that came as extended CONNECT."""

from __future__ import annotations

import random

import pytest

from mesh_api.limits import Limits
from mesh_proxy.wire.http1 import HttpError, parse_response
from mesh_proxy.wire.http2.seam import RequestFields
from mesh_proxy.wire.websocket import check_opened, check_tunnel, websocket_request


class Fixed(random.Random):
    """Gives the key of the example in RFC 6455, 1.3."""

    def getrandbits(self, k: int) -> int:
        assert k == 128
        return int.from_bytes(b"the sample nonce")


FIELDS = RequestFields(b"CONNECT", b"http", b"/chat", b"websocket", b"host: a\r\n")


def test_the_example_of_the_rfc() -> None:
    opening = websocket_request(FIELDS, Fixed())
    assert b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n" in opening.head
    assert opening.head.startswith(b"GET /chat HTTP/1.1\r\nhost: a\r\n")
    assert opening.accept == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_only_websocket_is_converted() -> None:
    check_tunnel(FIELDS)
    for protocol in (b"", b"connect-udp"):
        with pytest.raises(HttpError) as caught:
            check_tunnel(RequestFields(b"CONNECT", b"http", b"/", protocol, b""))
        assert caught.value.status == 501


def test_answers() -> None:
    head = b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n"
    good = parse_response(head % b"WebSocket", b"GET", Limits())
    check_opened(good, b"k", b"k")
    for response, said in (
        (good, b"other"),
        (good, None),
        (parse_response(head % b"x", b"GET", Limits()), b"k"),
    ):
        with pytest.raises(HttpError):
            check_opened(response, b"k", said)
