"""The limits of a sidecar: every way of setting one reads it strictly, and the documentation has them all."""

import re
from pathlib import Path

import msgspec
import pytest

from mesh_api.limits import DEFAULTS, LimitError, Limits, changed, described, parse_pairs, shown
from mesh_proxy.bounds import http2_budget, http2_limits, session_settings
from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.settings import SettingsError, from_environment
from mesh_proxy.wire.http2.seam import Http2Limits

BASE = {"TRIOMESH_CONFIG_FILE": "/c", "TRIOMESH_CA_SOCKET": "/s"}
EVERY = pytest.mark.parametrize("key", list(described()))


@EVERY
def test_low_and_high_are_taken_and_nothing_beyond(key: str) -> None:
    limit = described()[key]
    for number in (limit.low, limit.high, limit.default):
        text = shown(number)
        settings = from_environment({**BASE, limit.variable: text})
        assert getattr(settings.limits, limit.field) == number == parse_pairs(f"{key}={text}")[limit.field]
        assert msgspec.convert({key: text}, Limits, strict=False) == settings.limits
    below = "-1" if not limit.low else shown(limit.low - 1 if limit.whole else limit.low / 2)
    for text in (below, shown(limit.high + 1), "", " 1", "1e3", "0x10", "\u0661", "nan", "inf", "9" * 40):
        with pytest.raises(SettingsError, match=rf"^{limit.variable}: expected .* from .* to .*, got "):
            from_environment({**BASE, limit.variable: text})
        with pytest.raises(LimitError, match=rf"^{key}: expected"):
            parse_pairs(f"{key}={text}x")


@EVERY
def test_what_differs_is_told_to_the_sidecar(key: str) -> None:
    limit = described()[key]
    given = Limits(**{limit.field: limit.low})  # type: ignore[arg-type]
    variables = changed(given)
    assert variables == {limit.variable: shown(limit.low)}
    assert from_environment({**BASE, **variables}).limits == given


def test_defaults_need_no_variable() -> None:
    assert changed(Limits()) == {}
    assert from_environment(BASE).limits == DEFAULTS


@pytest.mark.parametrize(
    "text", ["", "headBytes", "headBytes=", "head_bytes=2048", "headBytes=2048,headBytes=2048"]
)
def test_pairs_that_are_none(text: str) -> None:
    with pytest.raises(LimitError):
        parse_pairs(text)


def test_the_parts_have_the_same_defaults() -> None:
    assert http2_limits(DEFAULTS) == Http2Limits()
    assert session_settings(DEFAULTS) == SessionSettings()
    assert http2_budget(DEFAULTS).limit == Budget().limit


def test_every_limit_of_an_engine_can_be_set() -> None:
    """Each limit reaches its part: with all of them at their lowest nothing of the part has its default."""
    lowest = Limits(**{limit.field: limit.low for limit in described().values()})  # type: ignore[arg-type]
    engine, default = http2_limits(lowest), Http2Limits()
    same = [name for name in Http2Limits.__slots__ if getattr(engine, name) == getattr(default, name)]
    assert same == []


def test_the_documentation_has_them_all() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| (.+) \|$", text, re.MULTILINE)
    assert [tuple(row) for row in rows] == [
        (one.key, shown(one.default), shown(one.low), shown(one.high), one.about)
        for one in described().values()
    ]
