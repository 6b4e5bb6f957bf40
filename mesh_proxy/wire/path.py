"""One spelling of a request's path (RFC 3986, 6.2.2), so that all who decide by it mean the same.

    normalise(target, mode)     the target with its path in that spelling; the query stays as it is

It is idempotent: each sidecar on the way does it, and only the first may change anything. `%25` is never
decoded, and nothing is ever decoded twice. What stays ambiguous is refused:

| mode | changes | refuses |
|---|---|---|
| none | nothing | nothing |
| base | unreserved characters are decoded, `%2f` is `%2F`, `\\` is `/`, dot segments are resolved | `%00` |
| merge-slashes | also `//` is `/` | also `%2F`, `%5C`, `%` without two digits, dot segments above the root |
| decode-and-merge | also `%2F` and `%5C` are `/` | as merge-slashes, but for these |

`#` and characters that are not visible ASCII are refused in every mode, by the parser of heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mesh_api.traffic import PathNormalization
from mesh_proxy.wire.message import HttpError

_HEX2 = rb"[0-9A-Fa-f]{2}"
# A stray % could form an escape with what an escape behind it decodes to: that one is left alone.
_escape = re.compile(rb"%(?!" + _HEX2 + rb")[0-9A-Fa-f]?+(?:%" + _HEX2 + rb")?+|%(" + _HEX2 + rb")")
_stray = re.compile(rb"%(?!" + _HEX2 + rb")").search
_dots = re.compile(rb"/\.\.?+(?:/|\Z)").search
_slashes = re.compile(rb"//++").sub
_origin = re.compile(rb"(?i:https?+)://[^/?]*+").match
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SEPARATORS = {0x2F: b"/", 0x5C: b"/"}

_KEPT = {value: b"%%%02X" % value for value in range(256)}
_BASE = _KEPT | {value: bytes((value,)) for value in _UNRESERVED}
_DECODED = _BASE | _SEPARATORS


def plain(target: bytes) -> bool:
    """Whether a target in origin form is in its one spelling for `base`, as nearly all are, at a glance."""
    return b"%" not in target and b"/." not in target and b"\\" not in target


def plain_merged(target: bytes) -> bool:
    """The same for the modes that merge slashes."""
    return plain(target) and b"//" not in target


GLANCE: dict[PathNormalization, Callable[[bytes], bool] | None] = {
    PathNormalization.NONE: None,
    PathNormalization.BASE: plain,
    PathNormalization.MERGE_SLASHES: plain_merged,
    PathNormalization.DECODE_AND_MERGE: plain_merged,
}
"""Says that `normalise` would change nothing; None where it never does."""


def normalise(target: bytes, mode: PathNormalization) -> bytes:
    """A request target with its path in one spelling; those without a path stay as they are.

    Raises HttpError: the path is ambiguous.
    """
    if mode is PathNormalization.NONE:
        return target
    start = 0
    if target[:1] != b"/":
        match = _origin(target)
        if match is None:
            return target  # the asterisk of OPTIONS, the authority of CONNECT
        start = match.end()
    query = target.find(b"?", start)
    end = query if query >= 0 else len(target)
    path = target[start:end]
    spelled = _spell(path, mode) if path else path
    return target if spelled == path else target[:start] + spelled + target[end:]


def _spell(path: bytes, mode: PathNormalization) -> bytes:
    strict = mode is not PathNormalization.BASE
    if b"%" in path:
        path = _decode(path, strict, mode is PathNormalization.DECODE_AND_MERGE)
    path = path.replace(b"\\", b"/")
    if strict:
        path = _slashes(b"/", path)
    if _dots(path) is not None:
        path = _without_dots(path, strict)
    return path


def _decode(path: bytes, strict: bool, separators: bool) -> bytes:
    if strict and _stray(path) is not None:
        raise _ambiguous("a % without two hexadecimal digits behind it")
    spelled = _DECODED if separators else _BASE

    def escape(match: re.Match[bytes]) -> bytes:
        digits = match[1]
        if digits is None:
            return match[0]
        value = int(digits, 16)
        if value == 0:
            raise _ambiguous("%00")
        if strict and not separators and value in _SEPARATORS:
            raise _ambiguous("%2F" if value == 0x2F else "%5C")
        return spelled[value]

    return _escape.sub(escape, path)


def _without_dots(path: bytes, strict: bool) -> bytes:
    """Resolve dot segments (RFC 3986, 5.2.4)."""
    kept: list[bytes] = []
    last = b""
    for last in path.split(b"/")[1:]:
        if last == b"..":
            if kept:
                kept.pop()
            elif strict:
                raise _ambiguous("a dot segment above the root")
        elif last != b".":
            kept.append(last)
    if last in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def _ambiguous(what: str) -> HttpError:
    return HttpError(400, "ambiguous-path", f"the path has {what}, which the next reader may take otherwise")
