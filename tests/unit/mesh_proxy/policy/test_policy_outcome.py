import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_proxy.policy.outcome import ERROR_HEADER, Flag, classify, error_header

VALUE = re.compile(
    rb"flag=[A-Za-z0-9-]{1,16}; side=[A-Za-z0-9-]{1,16}"
    rb'(?:; rule="((?:[ !#-\[\]-~]|\\["\\])*)")?'
    rb'(?:; endpoint="((?:[ !#-\[\]-~]|\\["\\])*)")?'
    rb'(?:; detail="((?:[ !#-\[\]-~]|\\["\\])*)")?'
)


def test_flags_are_text_with_a_status():
    assert [(flag.value, flag.status) for flag in Flag] == [
        ("UH", 503),
        ("UF", 503),
        ("UO", 503),
        ("UC", 503),
        ("UT", 504),
        ("URX", 503),
        ("NR", 404),
        ("NC", 503),
        ("DC", 0),
        ("DPE", 400),
        ("UPE", 502),
        ("UAEX", 403),
        ("SI", 408),
        ("FI", 503),
    ]
    assert all(flag.description for flag in Flag)
    assert Flag("UF") is Flag.UF
    assert f"{Flag.UF}" == "UF" == Flag.UF
    assert {Flag.UF: 1}["UF"] == 1


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        *[(status, False) for status in (100, 200, 204, 304, 400, 404, 408, 429, 499)],
        *[(status, True) for status in (500, 501, 502, 503, 504, 599)],
        *[(flag, flag.value in {"UF", "UC", "UT", "UPE"}) for flag in Flag],
        ("UF", True),
        ("", False),
    ],
)
def test_whose_fault(outcome, failed):
    assert classify(outcome) is failed


def test_the_header():
    assert ERROR_HEADER == b"x-triomesh-error"
    assert error_header(Flag.UF, "client", "shop/reviews:9080", "10.0.0.1:80", "connection refused") == (
        b'flag=UF; side=client; rule="shop/reviews:9080"; endpoint="10.0.0.1:80"; detail="connection refused"'
    )
    assert error_header(Flag.UH, "client", "r", "e", "d", 'v"2' + "x" * 100) == (
        b'flag=UH; side=client; rule="r"; subset="v\\"2' + b"x" * 58 + b'..."; endpoint="e"; detail="d"'
    )
    assert error_header(Flag.NR, "server") == b"flag=NR; side=server"
    assert error_header("UF\r\nx: y", "", detail='a"b\\c\r\nd\0é') == (
        b'flag=UFxy; side=-; detail="a\\"b\\\\c??d??"'
    )


@given(st.text(), st.text(), st.text(max_size=600), st.text(max_size=600), st.text(max_size=600))
def test_any_input_gives_a_bounded_visible_value(flag, side, rule, endpoint, detail):
    value = error_header(flag, side, rule, endpoint, detail)
    match = VALUE.fullmatch(value)
    assert match, value
    for part, limit in zip(match.groups(), (320, 64, 256), strict=True):
        assert part is None or len(re.sub(rb"\\(.)", rb"\1", part)) <= limit
    assert len(value) < 1_500
