"""Texts and times as a log line shows them.

What clients send (method, path, host) ends up on an operator's terminal, so nothing unprintable survives:
control characters, escape sequences and direction marks are spelled as `\\xNN` or `\\uNNNN`.
"""

from __future__ import annotations

from datetime import UTC, datetime

Text = str | bytes
MAX_LINE_CHARS = 16 * 1024


def timestamp(unix_s: float) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def clean(text: Text, limit: int) -> str:
    """Printable text of at most `limit` characters; what was cut off leaves three dots."""
    if not text:
        return ""
    if isinstance(text, bytes):
        shown = text[: limit + 1].decode("ascii", "backslashreplace")
    else:
        shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join([char if char.isprintable() else _escape(char) for char in shown])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def clean_lines(text: str) -> str:
    """Text of somebody else for a terminal: its lines stay, each is as `clean` has it."""
    return "\n".join(clean(line, MAX_LINE_CHARS) for line in text.split("\n"))


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
