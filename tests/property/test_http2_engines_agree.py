"""The two HTTP/2 engines say the same of the same bytes, wherever bytes could move to another message."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh_proxy.wire.http2.engines import NAMES
from mesh_proxy.wire.http2.seam import DATA, RESET, TRAILERS, Event, RequestFields
from tests.support import http2_frames as h2
from tests.support.http2_engines import fed, greeted, plain
from tests.support.http2_frames import Fields
from tests.support.http2_made_up import (
    BODY,
    FIELDS,
    METHOD,
    STATUS,
    TARGET,
    asked,
    pairs_of,
    response_of,
    rest_of,
)


def answered(events: list[Event]) -> list[tuple[object, ...]]:
    return [
        (kind, end, value.method, value.scheme, value.target, value.protocol, sorted(pairs_of(value.block)))
        for kind, _, value, end in events
        if isinstance(value, RequestFields)
    ]


@settings(deadline=None, max_examples=200)
@given(
    method=METHOD, target=TARGET, authority=st.sampled_from([b"a.test", b"", b"a:80", b"u@a"]), more=FIELDS
)
@example(b"GET", b"/", b"a.test", [(b"http2-settings", b"AAMA")])
@example(b"GET", b"/", b"a.test", [(b"host", b"A.TEST")])
@example(b"POST", b"/", b"a.test", [(b"content-length", b"0" * 20 + b"3")])
def test_the_engines_agree_on_heads(method: bytes, target: bytes, authority: bytes, more: Fields) -> None:
    pseudo = [(b":method", method)]
    if method == b"CONNECT":
        pseudo.append((b":authority", authority or target))
    else:
        pseudo += [(b":scheme", b"http"), (b":path", target), (b":authority", authority)]
    wire = h2.headers(1, pseudo + more)
    first, second = (answered(fed(greeted(name), wire)[0]) for name in NAMES)
    assert first == second  # whether a refusal ends the stream or the connection is in http2_known.py


def delivered(events: list[Event]) -> list[tuple[object, ...]]:
    """A message that came to its end, as far as bytes could move; nothing otherwise."""
    told = plain(events)
    if not told or told[-1][0] == RESET or not told[-1][3]:
        return []
    found: list[tuple[object, ...]] = []
    for kind, _, value, end in told:
        if kind == DATA:
            found.append((kind, value, end))
        elif kind == TRAILERS:
            found.append((kind, sorted(pairs_of(cast("bytes", value)))))
        else:
            *first, block = cast("tuple[Any, ...]", value)
            found.append((kind, first, sorted(pairs_of(block)), end))
    return found


@settings(deadline=None, max_examples=200)
@given(method=METHOD, more=FIELDS, body=BODY, trailers=FIELDS)
@example(b"POST", [], b"abc", [(b"te", b"trailers")])
@example(b"POST", [], b"abc", [(b"content-length", b"3")])
def test_the_engines_agree_on_requests(method: bytes, more: Fields, body: bytes, trailers: Fields) -> None:
    if method == b"CONNECT" and any(name == b"content-length" for name, _ in more):
        return  # of a tunnel: hyper-h2 holds it to that, nghttp2 does not
    pseudo = [(b":method", method), (b":authority", b"a.test:80")]
    if method != b"CONNECT":
        pseudo += [(b":scheme", b"http"), (b":path", b"/")]
    wire = h2.headers(1, pseudo + more, end=not body and not trailers) + rest_of(1, body, trailers)
    first, second = (delivered(fed(greeted(name), wire)[0]) for name in NAMES)
    assert first == second


@settings(deadline=None, max_examples=200)
@given(
    method=st.sampled_from([b"GET", b"HEAD"]),
    statuses=st.lists(STATUS, min_size=1, max_size=3),
    more=FIELDS,
    body=BODY,
    trailers=FIELDS,
)
@example(b"GET", [200], [(b"cookie", b"a"), (b"cookie", b"b")], b"", [])
def test_the_engines_agree_on_responses(
    method: bytes, statuses: list[int], more: Fields, body: bytes, trailers: Fields
) -> None:
    found = []
    for name in NAMES:
        engine, stream = asked(name, method)
        found.append(delivered(fed(engine, response_of(stream, statuses, more, body, trailers))[0]))
    assert found[0] == found[1]
