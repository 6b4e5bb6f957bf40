"""What gRPC's header fields and trailers say."""

from __future__ import annotations

import pytest

from mesh_proxy.wire import grpc


@pytest.mark.parametrize(
    ("value", "yes"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=x", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_content_type(value: bytes, yes: bool) -> None:
    assert grpc.is_grpc(value) is yes


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"5S", 5.0),
        (b"250m", 0.25),
        (b"10u", 1e-5),
        (b"99999999n", 0.099999999),
        (b"0S", 0.0),
    ],
)
def test_timeouts(value: bytes, seconds: float) -> None:
    assert grpc.timeout_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [b"", b"5", b"S", b"-5S", b"+5S", b"1.5S", b"123456789S", b"5s", b" 5S", b"5S ", b"5SS", b"\xb25S"],
)
def test_what_is_no_timeout(value: bytes) -> None:
    assert grpc.timeout_s(value) is None


def test_a_shorter_timeout_takes_the_place_of_the_clients() -> None:
    block = b"host: a\r\nGrpc-Timeout: 10S\r\nx: y\r\n"
    assert grpc.with_timeout(block, 1.2345) == b"host: a\r\nx: y\r\ngrpc-timeout: 1234m\r\n"
    assert grpc.with_timeout(b"", 0.0) == b"grpc-timeout: 1m\r\n"
    assert grpc.with_timeout(b"", 1e9) == b"grpc-timeout: 99999999m\r\n"


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"grpc-status: 0\r\n", 0),
        (b"x: y\r\ngrpc-status: 14\r\ngrpc-message: no\r\n", 14),
        (b"Grpc-Status:7\r\n", 7),
        (b"", -1),
        (b"x-grpc-status: 3\r\n", -1),
        (b"grpc-status: 17\r\n", 2),
        (b"grpc-status: 123\r\n", 2),
        (b"grpc-status: x\r\n", 2),
        (b"grpc-status:\r\n", 2),
    ],
)
def test_statuses(block: bytes, status: int) -> None:
    assert grpc.status_in(block) == status


def test_messages_are_percent_encoded() -> None:
    fields = grpc.status_fields(3, "Köln: 100%\r\ngrpc-status: 0")
    assert fields == b"grpc-status: 3\r\ngrpc-message: K%C3%B6ln: 100%25%0D%0Agrpc-status: 0\r\n"


def test_which_statuses_speak_against_an_endpoint() -> None:
    assert {status for status in range(17) if grpc.as_http(status) >= 500} == {2, 4, 13, 14, 15}
    assert [grpc.of_http(status) for status in (400, 401, 403, 404, 429, 502, 503, 504, 418, 500)] == [
        *(13, 16, 7, 12, 14, 14, 14, 14, 2, 2)
    ]
