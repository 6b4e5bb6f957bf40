"""What a TLS ClientHello offers: ALPN protocols, server name, versions (RFC 8446 4.1.2, RFC 7301, RFC 6066).

Only the offer is read; the handshake itself belongs to the TLS library, which reads the same bytes again.
The message may be cut over several records and, by the network, anywhere; it has to be whole and consistent
before anything in it is believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_BYTES", "MAX_RECORDS", "ClientHello", "HelloWatch", "NotTls", "parse"]

MAX_BYTES: Final = 16384  # the hello has to end within this many bytes, record headers included
MAX_RECORDS: Final = 64  # a hello cut finer than this is an attempt to make us work

_HANDSHAKE = 0x16
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ALPN = 16
_SUPPORTED_VERSIONS = 43

_host_name = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.\-]*+").fullmatch


class NotTls(Exception):
    """The bytes are not a well-formed ClientHello; `reason` is one machine-readable word."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a TLS ClientHello: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client offers, in its own order."""

    alpn: tuple[bytes, ...]  # empty when the extension is absent
    sni: str  # "" when the extension is absent
    versions: tuple[int, ...]  # from supported_versions, or else the one legacy version


def parse(data: bytes | bytearray) -> ClientHello | None:
    """Parse the ClientHello at the front of `data`; None when its end has not arrived.

    What follows the message in later records is not looked at.
    """
    body = _handshake_body(data)
    return None if body is None else _parse_body(body)


class HelloWatch:
    """Reads the ClientHello at the front of a stream that goes past in pieces, without holding it up."""

    __slots__ = ("_seen", "hello")

    def __init__(self) -> None:
        self._seen = b""
        self.hello: ClientHello | None = None

    def feed(self, data: bytes) -> bool:
        """Look at the next bytes of the stream; true once there is nothing more to see."""
        self._seen += data[:MAX_BYTES]
        try:
            self.hello = parse(self._seen)
        except NotTls:
            self._seen = b""
            return True
        if self.hello is None:
            return False
        self._seen = b""
        return True


def _handshake_body(data: bytes | bytearray) -> bytes | None:
    """Join the fragments of the first handshake message; None when it is incomplete."""
    have = min(len(data), MAX_BYTES)
    at = 0
    message = bytearray()
    wanted = 4
    for _ in range(MAX_RECORDS):
        if at >= have:
            break
        _check_record_start(data, at, have)
        if have - at < 5:
            break
        length = data[at + 3] << 8 | data[at + 4]
        if not 0 < length <= 16384:
            raise NotTls("bad-record-length")
        at += 5
        fragment = data[at : min(at + length, have)]
        before = len(message)
        message += fragment
        if message and message[0] != _CLIENT_HELLO:
            raise NotTls("not-a-client-hello")
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if wanted > MAX_BYTES:
                raise NotTls("too-long")
            if before + length > wanted:
                raise NotTls("bytes-after-hello")
            if len(message) == wanted:
                return bytes(message[4:])
        if len(fragment) < length:
            break
        at += length
    else:
        raise NotTls("too-many-records")
    if have == MAX_BYTES:
        raise NotTls("too-long")
    return None


def _check_record_start(data: bytes | bytearray, at: int, have: int) -> None:
    if data[at] != _HANDSHAKE:
        sslv2 = at == 0 and data[0] & 0x80 and have > 2 and data[2] == _CLIENT_HELLO
        raise NotTls("sslv2-hello" if sslv2 else "not-a-handshake-record")
    if at + 1 < have and data[at + 1] != 3:
        raise NotTls("bad-record-version")
    if at + 2 < have and data[at + 2] > 4:
        raise NotTls("bad-record-version")


class _Reader:
    """Takes length-prefixed fields off a byte string; running short is NotTls(reason)."""

    __slots__ = ("_at", "_data", "_reason")

    def __init__(self, data: bytes, reason: str) -> None:
        self._data = data
        self._at = 0
        self._reason = reason

    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise NotTls(self._reason)
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """A field behind its own length, which is `size` bytes wide."""
        return self.take(self.number(size))


def _parse_body(body: bytes) -> ClientHello:
    reader = _Reader(body, "bad-hello-length")
    legacy_version = reader.number(2)
    if legacy_version >> 8 != 3:
        raise NotTls("bad-hello-version")
    reader.take(32)
    if len(reader.vector(1)) > 32:
        raise NotTls("bad-session-id")
    suites = reader.vector(2)
    if not suites or len(suites) % 2:
        raise NotTls("bad-cipher-suites")
    if not reader.vector(1):
        raise NotTls("bad-compression-methods")
    alpn: tuple[bytes, ...] = ()
    sni = ""
    versions: tuple[int, ...] = (legacy_version,)
    if reader.more():
        extensions = _Reader(reader.vector(2), "bad-extension-length")
        if reader.more():
            raise NotTls("bad-hello-length")
        seen: set[int] = set()
        while extensions.more():
            kind = extensions.number(2)
            content = extensions.vector(2)
            if kind in seen:
                raise NotTls("repeated-extension")
            seen.add(kind)
            if kind == _ALPN:
                alpn = _parse_alpn(content)
            elif kind == _SERVER_NAME:
                sni = _parse_server_name(content)
            elif kind == _SUPPORTED_VERSIONS:
                versions = _parse_versions(content)
    return ClientHello(alpn, sni, versions)


def _only_vector(content: bytes, size: int, reason: str) -> bytes:
    """The one vector that has to fill an extension exactly."""
    reader = _Reader(content, reason)
    inner = reader.vector(size)
    if not inner or reader.more():
        raise NotTls(reason)
    return inner


def _parse_alpn(content: bytes) -> tuple[bytes, ...]:
    names = _Reader(_only_vector(content, 2, "bad-alpn"), "bad-alpn")
    found: list[bytes] = []
    while names.more():
        name = names.vector(1)
        if not name:
            raise NotTls("bad-alpn")
        found.append(name)
    return tuple(found)


def _parse_server_name(content: bytes) -> str:
    names = _Reader(_only_vector(content, 2, "bad-server-name"), "bad-server-name")
    sni = ""
    while names.more():
        kind = names.number(1)
        name = names.vector(2)
        if kind != 0:
            continue
        if sni or len(name) > 255 or _host_name(name) is None or b".." in name:
            raise NotTls("bad-server-name")
        sni = name.decode("ascii")
    return sni


def _parse_versions(content: bytes) -> tuple[int, ...]:
    listed = _only_vector(content, 1, "bad-supported-versions")
    if len(listed) % 2:
        raise NotTls("bad-supported-versions")
    return tuple([listed[i] << 8 | listed[i + 1] for i in range(0, len(listed), 2)])
