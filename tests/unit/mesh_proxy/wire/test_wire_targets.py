"""Request targets: only what every parser reads the same way goes on."""

import pytest

from mesh_proxy.wire.http1 import DEFAULT_LIMITS, HttpError, check_target, parse_request


def check(method: bytes, target: bytes, host: bytes = b"a.example") -> None:
    check_target(
        parse_request(b"%s %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (method, target, host), DEFAULT_LIMITS)
    )


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"/"),
        (b"GET", b"//x"),
        (b"OPTIONS", b"*"),
        (b"GET", b"http://a.example/"),
        (b"GET", b"HTTP://A.example?x"),
        (b"GET", b"http://a.example"),
    ],
)
def test_accepted(method, target):
    check(method, target)


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        (b"GET", b"http://b.example/", "target-and-host-differ"),
        (b"GET", b"http://a.example:81/", "target-and-host-differ"),
        (b"GET", b"http://u@a.example/", "bad-target"),
        (b"GET", b"a.example:80", "bad-target"),
        (b"GET", b"*", "bad-target"),
        (b"GET", b"ftp://a.example/", "bad-target"),
        (b"CONNECT", b"a.example:80", "connect-not-supported"),
    ],
)
def test_refused(method, target, reason):
    with pytest.raises(HttpError) as caught:
        check(method, target)
    assert caught.value.reason == reason
