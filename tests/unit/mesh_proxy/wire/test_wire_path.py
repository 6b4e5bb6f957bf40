"""Normalisation of paths: what each mode changes, what it refuses, and that a second time changes nothing."""

import pytest

from mesh_api.traffic import PathNormalization
from mesh_proxy.wire.message import HttpError
from mesh_proxy.wire.path import GLANCE, normalise

NONE, BASE = PathNormalization.NONE, PathNormalization.BASE
MERGE, DECODE = PathNormalization.MERGE_SLASHES, PathNormalization.DECODE_AND_MERGE
REFUSED = None

CASES = [
    # target, base, merge-slashes, decode-and-merge
    (b"/", b"/", b"/", b"/"),
    (b"/a/b?x=1", b"/a/b?x=1", b"/a/b?x=1", b"/a/b?x=1"),
    (b"/a/../b", b"/b", b"/b", b"/b"),
    (b"/a/./b/.", b"/a/b/", b"/a/b/", b"/a/b/"),
    (b"/a/b/..", b"/a/", b"/a/", b"/a/"),
    (b"/a/b/../", b"/a/", b"/a/", b"/a/"),
    (b"/...", b"/...", b"/...", b"/..."),
    (b"/.a/..b", b"/.a/..b", b"/.a/..b", b"/.a/..b"),
    (b"/..", b"/", REFUSED, REFUSED),
    (b"/a/../../b", b"/b", REFUSED, REFUSED),
    (b"/%41%7e%2D", b"/A~-", b"/A~-", b"/A~-"),
    (b"/%2e%2E/admin", b"/admin", REFUSED, REFUSED),
    (b"/a/%2e%2e/b", b"/b", b"/b", b"/b"),
    (b"/caf%c3%a9", b"/caf%C3%A9", b"/caf%C3%A9", b"/caf%C3%A9"),
    (b"/a%2fb", b"/a%2Fb", REFUSED, b"/a/b"),
    (b"/a%5Cb", b"/a%5Cb", REFUSED, b"/a/b"),
    (b"/a/..%2fb", b"/a/..%2Fb", REFUSED, b"/b"),
    (b"/a\\b", b"/a/b", b"/a/b", b"/a/b"),
    (b"/a\\..\\b", b"/b", b"/b", b"/b"),
    (b"//a", b"//a", b"/a", b"/a"),
    (b"/a///b//", b"/a///b//", b"/a/b/", b"/a/b/"),
    (b"/a//../b", b"/a/b", b"/b", b"/b"),
    (b"/a%2f%2Fb", b"/a%2F%2Fb", REFUSED, b"/a/b"),
    (b"/%25", b"/%25", b"/%25", b"/%25"),
    (b"/%252e%252e/%252f", b"/%252e%252e/%252f", b"/%252e%252e/%252f", b"/%252e%252e/%252f"),
    (b"/%2525", b"/%2525", b"/%2525", b"/%2525"),
    (b"/a%00b", REFUSED, REFUSED, REFUSED),
    (b"/100%", b"/100%", REFUSED, REFUSED),
    (b"/%zz", b"/%zz", REFUSED, REFUSED),
    (b"/%%32F", b"/%%32F", REFUSED, REFUSED),
    (b"/%4%31", b"/%4%31", REFUSED, REFUSED),
    (b"/%%2e%2e", b"/%%2e.", REFUSED, REFUSED),
    (b"/a%20b%0d", b"/a%20b%0D", b"/a%20b%0D", b"/a%20b%0D"),
    (b"/a;b=%2E.", b"/a;b=..", b"/a;b=..", b"/a;b=.."),
    # queries, and what has no path
    (b"/a?/../%2e//", b"/a?/../%2e//", b"/a?/../%2e//", b"/a?/../%2e//"),
    (b"/b/../a?%00", b"/a?%00", b"/a?%00", b"/a?%00"),
    (b"*", b"*", b"*", b"*"),
    (b"a.example:443", b"a.example:443", b"a.example:443", b"a.example:443"),
    # absolute form
    (b"http://a.example", b"http://a.example", b"http://a.example", b"http://a.example"),
    (b"http://a.example?/../x", b"http://a.example?/../x", *[b"http://a.example?/../x"] * 2),
    (b"HTTP://A%2e/x/../%7E", b"HTTP://A%2e/~", b"HTTP://A%2e/~", b"HTTP://A%2e/~"),
    (b"https://a//x", b"https://a//x", b"https://a/x", b"https://a/x"),
    (b"http://a/..", b"http://a/", REFUSED, REFUSED),
]


@pytest.mark.parametrize("mode", list(PathNormalization))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].decode())
def test_each_mode(case, mode):
    target = case[0]
    expected = {NONE: target, BASE: case[1], MERGE: case[2], DECODE: case[3]}[mode]
    if expected is REFUSED:
        with pytest.raises(HttpError) as caught:
            normalise(target, mode)
        assert (caught.value.status, caught.value.reason) == (400, "ambiguous-path")
        return
    assert normalise(target, mode) == expected
    assert normalise(expected, mode) == expected


@pytest.mark.parametrize("mode", [BASE, MERGE, DECODE])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].decode())
def test_the_glance_never_passes_what_would_change(case, mode):
    glance = GLANCE[mode]
    assert glance is not None
    if glance(case[0]):
        assert normalise(case[0], mode) == case[0]


def test_the_mode_none_has_no_glance():
    assert GLANCE[NONE] is None
