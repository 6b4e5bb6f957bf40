"""Medians, spreads, ratios, and the two forms of the report."""

import json

import pytest

from bench.report import Metric, Row, figure, ratio, spread, table, to_json


def test_spread_of_runs() -> None:
    s = spread([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (s.low, s.q1, s.median, s.q3, s.high) == (1, 2, 3, 4, 5)
    assert spread([2.0]).q3 == 2


def test_ratio_is_that_of_the_medians() -> None:
    r = ratio([10.0, 12.0, 11.0], [20.0, 20.0, 22.0])
    assert r is not None
    assert r.of_medians == 11 / 20
    assert (r.low, r.high) == (0.5, 0.6)
    assert r.apart


def test_overlapping_runs_claim_nothing() -> None:
    r = ratio([10.0, 21.0, 11.0], [20.0, 20.0, 22.0])
    assert r is not None
    assert not r.apart


@pytest.mark.parametrize(("ours", "peer"), [([], [1.0]), ([1.0], []), ([-0.1], [1.0]), ([1.0], [0.0])])
def test_no_ratio_without_positive_medians(ours: list[float], peer: list[float]) -> None:
    assert ratio(ours, peer) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0481, "0.048"), (3.141, "3.14"), (31.41, "31.4"), (14455.1, "14,455"), (-2.5, "-2.50")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def _rows() -> list[Row]:
    good = Row("a", Metric("", "us"), {"ours": [1.0, 2.0, 3.0], "envoy": [4.0, 5.0, 6.0]})
    bad = Row("a", Metric("p99", "ms"), {"ours": [1.0]}, {"envoy": "did not start"})
    return [good, bad]


def test_json_has_one_object_for_each_row() -> None:
    first, second = json.loads(to_json(_rows(), ["envoy"]))
    assert first["case"] == "a"
    assert first["unit"] == "us"
    assert first["ours"] == 2
    assert first["peers"] == {"envoy": 5}
    assert first["ratio"] == {"envoy": 0.4}
    assert first["outsideSpread"] == {"envoy": True}
    assert first["spread"]["ours"]["high"] == 3
    assert "error" not in first
    assert second["case"] == "a.p99"
    assert second["peers"] == {"envoy": None}
    assert second["error"] == "envoy: did not start"


def test_table_shows_errors_and_what_is_not_claimed() -> None:
    overlap = Row("b", Metric("", "MB/s", "higher"), {"ours": [1.0, 3.0], "envoy": [2.0, 4.0]})
    text = table([*_rows(), overlap], ["envoy"])
    assert "error: a: envoy: did not start" in text
    assert "~0.67" in text
    assert " 0.40 " in text
    assert "MB/s ^" in text
