"""Conditions of a route on one request, prepared once: method, path regex, header fields, query parameters.

Regular expressions are RE2, so no pattern and no request can make a match take more than linear time. `re2`
is only imported when a pattern is met: a sidecar without one does not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mesh_api.sidecar import ConfigError
from mesh_api.traffic import ValueMatch

MAX_PARAMETERS = 128
"""Query parameters looked at; what comes after them does not take part in matching."""
MAX_PATTERN_CHARS = 1024
MAX_PATTERN_BYTES = 1024 * 1024
"""Memory that RE2 may use for one pattern; a pattern that needs more is refused."""

ReadHeader = Callable[[bytes], bytes | None]
"""The value of the field with this lower-case name, or None. Several fields of one name are one value joined
with ", " (RFC 9110, 5.3; Envoy joins with "," alone, Gateway API leaves it open)."""

_escape = re.compile(rb"%([0-9A-Fa-f]{2})").sub


def path_of(target: bytes) -> bytes:
    """The raw path of a request target, without the query: of `/a?b` and `http://host/a?b` it is `/a`.

    `*` stays as it is; it only matches where no path is asked for.
    """
    if target[:1] != b"/" and target != b"*":
        start = target.find(b"//") + 2
        slash = target.find(b"/", start)
        query = target.find(b"?", start)
        if slash < 0 or 0 <= query < slash:
            return b"/"
        return target[slash:query] if query >= 0 else target[slash:]
    query = target.find(b"?")
    return target if query < 0 else target[:query]


def query_of(target: bytes) -> bytes:
    """The query of a request target from its question mark on, or b""."""
    at = target.find(b"?")
    return b"" if at < 0 else target[at:]


def parameters(query: bytes) -> dict[bytes, bytes]:
    """The first value of each parameter, percent-decoded (`+` stays: RFC 3986 gives it no meaning).

    Args:
        query: with or without its question mark.
    """
    found: dict[bytes, bytes] = {}
    for part in query.removeprefix(b"?").split(b"&", MAX_PARAMETERS)[:MAX_PARAMETERS]:
        name, _, value = part.partition(b"=")
        if b"%" in part:
            name, value = _decode(name), _decode(value)
        if name:
            found.setdefault(name, value)
    return found


def _decode(text: bytes) -> bytes:
    return _escape(lambda match: bytes((int(match[1], 16),)), text)


class Pattern:
    """An RE2 pattern that has to match the whole text.

    Raises ConfigError, with `path` as given, for one that RE2 does not accept.
    """

    __slots__ = ("_fullmatch",)

    def __init__(self, path: str, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARS:
            raise ConfigError(path, f"expected at most {MAX_PATTERN_CHARS} characters, got {len(pattern)}")
        import re2  # only where a pattern exists: docstring

        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        options.max_mem = MAX_PATTERN_BYTES
        try:
            self._fullmatch: Callable[[bytes], Any] = re2.compile(pattern, options).fullmatch
        except re2.error as exc:
            reason = exc.args[0].decode("utf-8", "replace") if exc.args else "no reason given"
            raise ConfigError(path, f"expected a regular expression that RE2 accepts: {reason}") from None

    def __call__(self, text: bytes) -> bool:
        return self._fullmatch(text) is not None


class Condition:
    """One ValueMatch; `name` is what to look up. Raises ConfigError unless exactly one field is set."""

    __slots__ = ("_test", "absent", "exact", "name")

    def __init__(self, path: str, spec: ValueMatch) -> None:
        set_ = [v for v in (spec.exact, spec.prefix, spec.regex, spec.present) if v is not None]
        if len(set_) != 1:
            raise ConfigError(path, "expected exactly one of exact, prefix, regex and present")
        self.name = spec.name.encode()
        self.exact: bytes | None = None
        """The value that is asked for, if it is one."""
        self.absent = spec.present is False
        self._test: Callable[[bytes], bool]
        if spec.exact is not None:
            self.exact = spec.exact.encode()
            self._test = self.exact.__eq__
        elif spec.prefix is not None:
            prefix = spec.prefix.encode()
            self._test = lambda value: value.startswith(prefix)
        elif spec.regex is not None:
            self._test = Pattern(f"{path}.regex", spec.regex)
        else:
            present = bool(spec.present)
            self._test = lambda value: present

    def holds(self, value: bytes | None) -> bool:
        """Whether a value, or its absence (None), is what is asked for."""
        return self.absent if value is None else self._test(value)


class Facts:
    """What conditions ask of one request, each looked up once however many routes there are."""

    __slots__ = ("_parameters", "_read", "_seen", "_target")

    def __init__(self, target: bytes, read: ReadHeader) -> None:
        self._target = target
        self._read = read
        self._seen: dict[bytes, bytes | None] = {}
        self._parameters: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The value of a header field."""
        seen = self._seen
        if name in seen:
            return seen[name]
        value = seen[name] = self._read(name)
        return value

    def parameter(self, name: bytes) -> bytes | None:
        """The first value of a query parameter."""
        if self._parameters is None:
            self._parameters = parameters(query_of(self._target))
        return self._parameters.get(name)


def headers_hold(conditions: Sequence[Condition], facts: Facts) -> bool:
    """Whether all conditions on header fields hold."""
    return all(condition.holds(facts.header(condition.name)) for condition in conditions)


def query_holds(conditions: Sequence[Condition], facts: Facts) -> bool:
    """Whether all conditions on query parameters hold."""
    return all(condition.holds(facts.parameter(condition.name)) for condition in conditions)
