"""Changes to header fields, prepared once and applied to a block of header lines.

A block is what RequestHead and ResponseHead carry: lines, each with its CRLF, without the empty line.
`Edits(path, spec).apply(block) -> bytes` removes, then sets, then adds; `field(block, name)` reads a field.
What could split a line or a message (CR, LF, NUL), or change how a message is framed, is refused when the
configuration is applied, so that nothing is left to check on a request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from mesh_api.sidecar import ConfigError
from mesh_api.traffic import HeaderEdits

_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}").fullmatch
_value = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]{0,8192}").fullmatch

# Framing, the hop's own fields, and Host, which a rewrite changes.
PROTECTED = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
PROTECTED_PREFIX = "x-triomesh-"


def check_value(path: str, value: str) -> bytes:
    """The bytes of a field's value. Raises ConfigError for what could end a line, or is over 8 KiB."""
    if _value(value) is None:
        raise ConfigError(path, "expected a header value: at most 8192 characters, no control characters")
    return value.strip(" \t").encode()


def _check_name(path: str, name: str) -> str:
    if _token(name) is None:
        raise ConfigError(path, f"expected a header name, got {name[:100]!r}")
    lowered = name.lower()
    if lowered in PROTECTED or lowered.startswith(PROTECTED_PREFIX):
        raise ConfigError(path, f"expected a header that a policy may change; {lowered} is the sidecar's own")
    return lowered


def _alternatives(names: Iterable[str]) -> bytes:
    # The first letter as a set: the engine skips a line that is not meant without entering the alternative.
    parts = []
    for name in sorted(names):
        first, rest = re.escape(name[0].encode()), re.escape(name[1:].encode())
        start = b"[%s%s]" % (first, name[0].upper().encode()) if name[0].isalpha() else first
        parts.append(start + (b"(?i:%s)" % rest if rest else b""))
    return b"|".join(parts)


def dropper(names: Iterable[str]) -> Callable[[bytes], bytes]:
    """A function that takes a block and returns it without the fields of these names."""
    drop = re.compile(rb"\r\n(?:" + _alternatives(names) + rb"):[^\r]*+").sub

    def apply(block: bytes) -> bytes:
        return drop(b"", b"\r\n" + block)[2:]

    return apply


@lru_cache(maxsize=4096)  # by names that policies have: a request asks for as many as one destination has
def _finder(name: bytes) -> Callable[[bytes], list[bytes]]:
    return re.compile(rb"(?:\A|\n)(?i:" + re.escape(name) + rb"):[\t ]*+([^\r]*+)").findall


def field(block: bytes, name: bytes) -> bytes | None:
    """The value of a field, several of one name joined with ", " (RFC 9110, 5.3); None if there is none."""
    found = _finder(name)(block)
    if not found:
        return None
    return b", ".join([value.rstrip(b" \t") for value in found])


class Edits:
    """Prepared HeaderEdits. Raises ConfigError, with a path below `path`, for what may not be changed."""

    __slots__ = ("_drop", "_lines")

    def __init__(self, path: str, spec: HeaderEdits) -> None:
        gone = {_check_name(f"{path}.remove[{i}]", name) for i, name in enumerate(spec.remove)}
        lines: list[bytes] = []
        for part, fields in (("set", spec.set), ("add", spec.add)):
            for name, value in fields.items():
                at = f"{path}.{part}.{name[:100]}"
                lowered = _check_name(at, name)
                lines.append(b"%s: %s\r\n" % (lowered.encode(), check_value(at, value)))
                if part == "set":
                    gone.add(lowered)
        self._drop = dropper(gone) if gone else None
        self._lines = b"".join(lines)

    def apply(self, block: bytes) -> bytes:
        """The block with the changes made; what is set or added comes last."""
        if self._drop is not None:
            block = self._drop(block)
        return block + self._lines
