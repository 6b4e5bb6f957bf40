"""Quantities: canonical form, order, rounding and refusal."""

import pytest

from mesh_local.machinery.quantity import FORMAT_ERROR, SUFFIX_ERROR, QuantityError, canonical, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100m", "100m"),
        ("0.5", "500m"),
        (".5", "500m"),
        ("1", "1"),
        ("1000", "1k"),
        ("1500", "1500"),
        ("1000m", "1"),
        ("1e3", "1e3"),
        ("1E3", "1e3"),
        ("12e6", "12e6"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("1025Ki", "1025Ki"),
        ("0.5Ki", "512"),
        ("0.001Ki", "1024m"),
        ("-1", "-1"),
        ("+5", "5"),
        ("0", "0"),
        ("0Gi", "0"),
        ("-0", "0"),
        ("1E", "1E"),
        ("0.1n", "1n"),
        ("-0.1n", "-1n"),
        ("99999999999999999999", "9223372036854775807"),
        (2, "2"),
        (1.5, "1500m"),
        (1e21, "9223372036854775807"),
    ],
)
def test_canonical(text: str | int | float, expected: str) -> None:
    assert canonical(text) == expected
    assert parse(canonical(text)) == parse(text)


@pytest.mark.parametrize("text", ["", "abc", "1x", "--1", "1 Gi", "1.2.3", ".", "1Gi ", "१", "1" * 300])
def test_refuses_what_is_not_a_quantity(text: str) -> None:
    with pytest.raises(QuantityError) as caught:
        parse(text)
    assert str(caught.value) == FORMAT_ERROR


@pytest.mark.parametrize("text", ["1Kii", "1mm", "1e", "1Mi5", "1e999999999999"])
def test_refuses_an_unknown_suffix(text: str) -> None:
    with pytest.raises(QuantityError) as caught:
        parse(text)
    assert str(caught.value) == SUFFIX_ERROR


def test_compares_across_suffixes() -> None:
    assert parse("1Gi") > parse("1G")
    assert parse("1000m") == parse("1")
    assert hash(parse("1000m")) == hash(parse("1"))
    assert parse("1m") < parse("1") < parse("1k") < parse("1Ki")


def test_rounds_up() -> None:
    assert parse("1500m").ceil() == 2
    assert parse("-1500m").ceil() == -1
    assert parse("100u").milli() == 1
    assert parse("250m").milli() == 250
