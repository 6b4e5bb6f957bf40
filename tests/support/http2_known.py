"""Where engines are known to differ from RFC 9113: each is a strict xfail of the test that shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pytest

from mesh_proxy.wire.http2.engines import HYPER, NAMES, NGHTTP2
from tests.support.http2_conformance import Case

_EARLY: Final = "hyper-h2 judges this before it tells of the head: a connection error, not a stream error"

KNOWN: dict[tuple[str, str], str] = {
    **dict.fromkeys(
        [
            (HYPER, "8.1 trailers that do not end the stream"),
            (HYPER, "8.1 interim response that ends the stream"),
            (HYPER, "8.1 second head"),
            (HYPER, "8.1.1 length that is no number"),
            (HYPER, "8.1.1 two lengths"),
            *((HYPER, f"8.1.1 length {value!r}") for value in (b"", b"+4", b"-4", b"4,4", b"4 4", b"0x4")),
        ],
        _EARLY,
    ),
    (
        NGHTTP2,
        "5.1.1 stream id goes back",
    ): "libnghttp2 takes it for a stream that is closed; ignored",
    (NGHTTP2, "6.9.2 SETTINGS push a window above 2^31-1"): "libnghttp2 resets the stream",
}
"""(engine, case): what it does instead."""


def with_engines(cases: Iterable[Case] | Iterable[str], prefix: str = "") -> list[object]:
    """Parameters (engine, case): each case for each engine, with what is known under its name."""
    return [
        pytest.param(engine, case, id=f"{engine}-{case_name}", marks=_marks(engine, prefix + case_name))
        for case in cases
        for case_name in [case if isinstance(case, str) else case.name]
        for engine in NAMES
    ]


def _marks(engine: str, name: str) -> list[pytest.MarkDecorator]:
    reason = KNOWN.get((engine, name))
    return [] if reason is None else [pytest.mark.xfail(strict=True, reason=reason)]
