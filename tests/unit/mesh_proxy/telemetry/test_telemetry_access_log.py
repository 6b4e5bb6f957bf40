import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_ops.printable import clean, timestamp
from mesh_proxy.telemetry.access_log import MAX_PATH, Record, format_record


def record(**fields):
    return Record(
        **{
            "time": 1_700_000_000.25,
            "direction": "outbound",
            "protocol": "http",
            "duration_ms": 1.5,
            **fields,
        }
    )


def test_a_request():
    line = format_record(
        record(
            method=b"GET",
            path=b"/a?b=c",
            host=b"reviews:9080",
            status=503,
            flag="UF",
            detail="connection refused",
            side="client",
            bytes_in=1,
            bytes_out=2,
            source="shop/web",
            source_identity="spiffe://cluster.local/ns/shop/sa/web",
            destination="shop/reviews:9080",
            upstream="10.0.0.1:9080",
            attempts=2,
            retry_reason="no retries are left",
            mtls=True,
            request_id=b"r-1",
        )
    )
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "direction": "outbound",
        "protocol": "http",
        "status": 503,
        "duration_ms": 1.5,
        "bytes_in": 1,
        "bytes_out": 2,
        "attempts": 2,
        "mtls": True,
        "method": "GET",
        "path": "/a?b=c",
        "host": "reviews:9080",
        "flag": "UF",
        "detail": "connection refused",
        "side": "client",
        "source": "shop/web",
        "source_identity": "spiffe://cluster.local/ns/shop/sa/web",
        "destination": "shop/reviews:9080",
        "upstream": "10.0.0.1:9080",
        "retry_reason": "no retries are left",
        "request_id": "r-1",
    }


def test_empty_texts_are_left_out_and_numbers_are_not():
    assert json.loads(format_record(record())) == {
        "time": "2023-11-14T22:13:20.250Z",
        "direction": "outbound",
        "protocol": "http",
        "status": 0,
        "duration_ms": 1.5,
        "bytes_in": 0,
        "bytes_out": 0,
        "attempts": 0,
        "mtls": False,
    }


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/a\x1b[31m\r\n\0", r"/a\x1b[31m\x0d\x0a\x00"),
        (b"/caf\xc3\xa9", r"/caf\xc3\xa9"),
        ("/café", "/café"),
        ("a\x9bb\u2028c\u202ed\ue000", r"a\x9bb\u2028c\u202ed\ue000"),
        ("\U000e0041\udc80", r"\U000e0041\udc80"),
        ("", ""),
        (b"", ""),
    ],
)
def test_nothing_unprintable_survives(raw, shown):
    assert clean(raw, 100) == shown


def test_fields_are_cut():
    assert clean("a" * 64, 64) == "a" * 64
    assert clean("a" * 65, 64) == "a" * 61 + "..."
    assert clean(b"\0" * 17, 64) == "\\x00" * 15 + "\\..."
    shown = json.loads(format_record(record(path=b"/" * 100_000)))["path"]
    assert len(shown) == MAX_PATH
    assert shown.endswith("...")


wire_text = st.one_of(st.binary(max_size=3_000), st.text(max_size=3_000))


@given(wire_text, wire_text, wire_text, wire_text)
def test_any_input_gives_one_bounded_printable_line(method, path, host, detail):
    line = format_record(record(method=method, path=path, host=host, detail=detail, request_id=path))
    assert line.count(b"\n") == 1
    assert len(line) < 16_384
    assert line.decode()[:-1].isprintable()
    json.loads(line)


def test_timestamps():
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_700_000_000) == "2023-11-14T22:13:20.000Z"
