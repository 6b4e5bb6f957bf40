"""Paths of every shape: normalising twice is normalising once, and nothing is decoded a second time."""

import re
from urllib.parse import unquote_to_bytes

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_api.traffic import PathNormalization
from mesh_proxy.wire.message import HttpError
from mesh_proxy.wire.path import GLANCE, normalise

pieces = st.sampled_from(
    b"/ // . .. %2e %2E %2f %5c \\ % %2 %25 %00 %41 %c3 2 e F f a ; ? %7E %3f %23 %32 %46".split(b" ")
)
targets = st.lists(pieces, max_size=14).map(lambda parts: b"/" + b"".join(parts))
forms = st.sampled_from([b"", b"http://a.example", b"https://[::1]:80"])
modes = st.sampled_from(list(PathNormalization))


@settings(deadline=None, max_examples=3000)
@given(forms, targets, modes)
def test_a_second_time_changes_nothing(form, path, mode):
    target = form + path
    try:
        once = normalise(target, mode)
    except HttpError:
        assert mode is not PathNormalization.NONE
        return
    assert normalise(once, mode) == once
    assert once.startswith(form)
    assert once.partition(b"?")[2] == target.partition(b"?")[2]
    glance = GLANCE[mode]
    if glance is not None and glance(target):
        assert once == target


@settings(deadline=None, max_examples=3000)
@given(targets, st.sampled_from([PathNormalization.MERGE_SLASHES, PathNormalization.DECODE_AND_MERGE]))
def test_nothing_ambiguous_is_left_by_the_strict_modes(target, mode):
    try:
        path = normalise(target, mode).partition(b"?")[0]
    except HttpError:
        return
    assert b"//" not in path
    assert b"\\" not in path
    assert re.search(rb"%(?:00|2[Ff]|5[Cc]|(?![0-9A-F]{2}))", path) is None
    assert not {b".", b".."} & set(unquote_to_bytes(path).split(b"/"))
    assert path.count(b"%25") == target.partition(b"?")[0].count(b"%25") or b".." in unquote_to_bytes(target)


@settings(deadline=None, max_examples=3000)
@given(targets)
def test_base_means_the_same_to_who_decodes_once(target):
    """As long as no dot segment is resolved, decoding the result gives what decoding the path gave."""
    path = target.partition(b"?")[0]
    if b"%00" in path or b"\\" in path:
        return
    plain = unquote_to_bytes(path)
    if {b".", b".."} & set(plain.split(b"/")):
        return
    assert unquote_to_bytes(normalise(path, PathNormalization.BASE)) == plain
