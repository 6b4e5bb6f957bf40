import socket

import pytest

from mesh_proxy.net.addr import Addr, LocalAddresses, canonical, original_dst, peer_addr


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:a00:1", "10.0.0.1"),
        ("FD00:0::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
    ],
)
def test_canonical(ip, expected):
    assert canonical(ip, 80) == Addr(expected, 80)


def test_text_and_family():
    assert str(Addr("10.0.0.1", 80)) == "10.0.0.1:80"
    assert str(Addr("fd00::1", 80)) == "[fd00::1]:80"
    assert Addr("10.0.0.1", 80).family is socket.AF_INET
    assert Addr("fd00::1", 80).family is socket.AF_INET6


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_no_original_destination_is_an_oserror(family):
    with socket.socket(family) as sock, pytest.raises(OSError, match=r"."):
        original_dst(sock)


def test_peer_of_a_socket_that_is_gone():
    with socket.socket() as sock, pytest.raises(OSError, match=r"."):
        peer_addr(sock)


def test_local_addresses():
    local = LocalAddresses(frozenset(("10.9.8.7",)))
    assert "10.9.8.7" in local
    for ip in (
        "127.0.0.1",
        "127.0.0.6",
        "::1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "192.0.2.1",
        "fe80::1",
    ):
        assert ip not in local, ip


def test_an_address_of_this_machine_is_local_without_being_named():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("no route anywhere")
        ip = sock.getsockname()[0]
    assert (ip in LocalAddresses(frozenset())) is not ip.startswith("127.")
