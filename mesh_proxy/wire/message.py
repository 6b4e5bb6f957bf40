"""What every part of HTTP/1.x reading shares: the refusal, the characters of lines, names that matter."""

from __future__ import annotations

import re
from typing import Final

from mesh_api.limits import Limits

DEFAULT_LIMITS: Final = Limits()

NO_BODY: Final = 0
LENGTH: Final = 1
CHUNKED: Final = 2
UNTIL_CLOSE: Final = 3

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TEXT = rb"[\t\x20-\x7e\x80-\xff]"
WS = b" \t"
TARGET = rb"[\x21\x22\x24-\x7e]"

FIELD_LINES = rb"(?:" + TOKEN + rb"++:" + TEXT + rb"*+\r\n)*+"
HOP = (
    rb"[Cc](?i:onnection)|[Kk](?i:eep-alive)|[Pp](?i:roxy-connection)|[Tt](?i:e)|[Uu](?i:pgrade)"
    rb"|[Hh](?i:ttp2-settings)"
)

HOP_NAMES = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
    )
)
"""What is between two neighbours only (RFC 9110, 7.6.1); each hop says its own."""
KEPT_PREFIXES = (b"x-triomesh-", b"x-forwarded-")

_KEPT_WHATEVER_CONNECTION_SAYS = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"expect",
        b"forwarded",
        b"x-request-id",
    )
)
NOTHING: Final[frozenset[bytes]] = frozenset()

length_ok = re.compile(rb"[0-9]{1,18}+").fullmatch
_name_ok = re.compile(TOKEN + rb"++").fullmatch
# Matches as far as an unfinished head can still become a valid one.
_plausible = re.compile(TEXT + rb"*+(?:\r\n" + TEXT + rb"*+)*+(?:\r\Z)?+").match


class HttpError(Exception):
    """A message that is refused: `status` to answer with, `reason` as one machine-readable word."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


def bad_line_end(data: bytes | bytearray, start: int, status: int) -> HttpError | None:
    """What is wrong with the line ends and control characters from `start` on; None when nothing is (yet)."""
    match = _plausible(data, start)
    at = match.end() if match else start
    if at == len(data):
        return None
    byte = data[at]
    if byte == 13:
        return HttpError(status, "bare-cr", "a CR that is not followed by LF")
    if byte == 10:
        return HttpError(status, "bare-lf", "an LF that does not follow a CR")
    if byte == 0:
        return HttpError(status, "nul", "a NUL byte in the head")
    return HttpError(status, "control-char", f"control character 0x{byte:02x} in the head")


def connection_options(lowered: bytes, status: int) -> frozenset[bytes]:
    """The options of a Connection header; refuses one that asks to remove what must stay."""
    options: set[bytes] = set()
    for part in lowered.split(b","):
        option = part.strip(WS)
        if not option:
            continue
        if _name_ok(option) is None:
            raise HttpError(status, "bad-connection", "the Connection header is not a list of tokens")
        if option in _KEPT_WHATEVER_CONNECTION_SAYS or option.startswith(KEPT_PREFIXES):
            raise HttpError(
                status,
                "bad-connection",
                f"Connection asks to remove {option.decode('ascii')}, which must stay",
            )
        options.add(option)
    options.discard(b"")
    return frozenset(options)


def without(block: bytes, names: frozenset[bytes]) -> bytes:
    """The header lines that have none of these names (in lower case)."""
    return b"".join(
        [line for line in block.splitlines(keepends=True) if line[: line.index(b":")].lower() not in names]
    )
