"""Request targets: only what every parser reads the same way goes on."""

import pytest

from mesh_proxy.wire.message import HttpError
from mesh_proxy.wire.targets import check_target


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"/"),
        (b"GET", b"//x"),
        (b"OPTIONS", b"*"),
        (b"GET", b"http://a.example/"),
        (b"GET", b"HTTP://A.example?x"),
        (b"GET", b"http://a.example"),
        (b"CONNECT", b"a.example:443"),
        (b"CONNECT", b"A.example:80"),
    ],
)
def test_accepted(method, target):
    check_target(method, target, b"a.example")


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        (b"GET", b"http://b.example/", "target-and-host-differ"),
        (b"GET", b"http://a.example:81/", "target-and-host-differ"),
        (b"GET", b"http://u@a.example/", "bad-target"),
        (b"GET", b"a.example:80", "bad-target"),
        (b"GET", b"*", "bad-target"),
        (b"GET", b"ftp://a.example/", "bad-target"),
        (b"CONNECT", b"a.example", "bad-target"),
        (b"CONNECT", b"a.example:", "bad-target"),
        (b"CONNECT", b"a.example:0", "bad-target"),
        (b"CONNECT", b"a.example:65536", "bad-target"),
        (b"CONNECT", b":80", "bad-target"),
        (b"CONNECT", b"/", "bad-target"),
        (b"CONNECT", b"http://a.example/", "bad-target"),
        (b"CONNECT", b"u@a.example:80", "bad-target"),
        (b"CONNECT", b"b.example:80", "target-and-host-differ"),
    ],
)
def test_refused(method, target, reason):
    with pytest.raises(HttpError) as caught:
        check_target(method, target, b"a.example")
    assert caught.value.reason == reason


@pytest.mark.parametrize("host", [b"", b"a.example", b"a.example:443", b"A.EXAMPLE:443"])
def test_host_beside_connect(host):
    check_target(b"CONNECT", b"a.example:443", host)


@pytest.mark.parametrize("host", [b"a.example:80", b"b.example", b"[::1]"])
def test_host_that_speaks_against_connect(host):
    with pytest.raises(HttpError):
        check_target(b"CONNECT", b"a.example:443", host)


def test_connect_to_an_ipv6_address():
    check_target(b"CONNECT", b"[::1]:443", b"[::1]:443")
