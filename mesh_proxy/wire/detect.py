"""Which protocol do these first bytes belong to?

The answers err towards HTTP: bytes that a lenient server might still read as a request are called HTTP, so
that the HTTP parser refuses them, rather than passed on as opaque bytes past every HTTP policy.
"""

from __future__ import annotations

import enum
import re
from typing import Final

__all__ = ["H2_PREFACE", "MAX_PREFIX", "LateHttp", "Verdict", "classify", "server_undecided"]

H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_PREFIX: Final = 16384  # what may be a request after this many bytes is one, to be refused as such


class Verdict(enum.Enum):
    """What a client's first bytes say."""

    HTTP1 = "http1"
    HTTP2 = "http2"
    TLS = "tls"
    OPAQUE = "opaque"
    NEED_MORE = "need-more"


_known_method = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH"
    rb"|PROPFIND|PROPPATCH|MKCOL|COPY|MOVE|LOCK|UNLOCK|REPORT|SEARCH|QUERY) "
).match
# A request line with any other method, or as much of one as there is; group 1 is set when it is whole enough.
_request_line = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}+(?:\Z| (?:\Z|[\x21-\x7e\x80-\xff]++(?:\Z| (?:(HTTP/1\.)"
    rb"|(?:H(?:T(?:T(?:P(?:/(?:1)?+)?+)?+)?+)?+)?+\Z))))"
).match


def classify(prefix: bytes | bytearray) -> Verdict:
    """Judge the bytes a client has sent so far; NEED_MORE asks to be called again with more of them."""
    if not prefix:
        return Verdict.NEED_MORE
    first = prefix[0]
    if first == 0x16:
        if len(prefix) > 1 and prefix[1] != 3:
            return Verdict.OPAQUE
        if len(prefix) < 3:
            return Verdict.NEED_MORE
        return Verdict.TLS if prefix[2] <= 4 else Verdict.OPAQUE
    if first in b"\r\n":
        # Servers skip empty lines before a request, so they cannot be a way round HTTP policy.
        line = prefix.lstrip(b"\r\n")
    else:
        if first == 0x50:  # P
            if prefix.startswith(H2_PREFACE):
                return Verdict.HTTP2
            if H2_PREFACE.startswith(prefix):
                return Verdict.NEED_MORE
        line = prefix
    if _known_method(line) is not None:
        return Verdict.HTTP1
    if line:
        match = _request_line(line)
        if match is None:
            return Verdict.OPAQUE
        if match[1] is not None:
            return Verdict.HTTP1
    return Verdict.NEED_MORE if len(prefix) < MAX_PREFIX else Verdict.HTTP1


class LateHttp:
    """Watches a connection that was taken for opaque because its client stopped within its first bytes.

    A server might read what follows as the rest of a request, which would have gone past every HTTP policy.
    """

    __slots__ = ("_first",)

    def __init__(self) -> None:
        self._first = b""

    def feed(self, data: bytes) -> Verdict:
        """Judge the client's bytes, from the first one on; `data` is the next of them."""
        self._first += data
        return classify(self._first)


def server_undecided(prefix: bytes | bytearray) -> bool:
    """Whether a server's first bytes leave open that the client is to speak first.

    An HTTP/2 server may send its SETTINGS before it has heard anything, and an HTTP/1 server may answer a
    connection it dislikes. A prefix of either is as undecided as the whole.
    """
    if b"HTTP/1.".startswith(prefix[:7]):
        return True
    # Length (a multiple of 6, at most 16,384), type 4, flags without ACK, stream 0 (reserved bit ignored).
    size = len(prefix)
    if prefix[0] != 0 or (size > 1 and prefix[1] > 0x40):
        return False
    if size > 2:
        length = prefix[1] << 8 | prefix[2]
        if length > 16384 or length % 6:
            return False
    if size > 3 and prefix[3] != 4:
        return False
    if size > 4 and prefix[4] & 1:
        return False
    if size > 5 and prefix[5] & 0x7F:
        return False
    return not any(prefix[6:9])
