"""Small requests to this pod's own application, as the kubelet or Prometheus would make them.

They go to the pod's address, from the source address that the rules let pass: not captured, and not to
loopback, where an application may listen that nobody outside can reach.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import trio

from mesh_proxy.net.addr import INBOUND_SOURCE, IP_BIND_ADDRESS_NO_PORT

MAX_HEAD_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?:[ \r\n])", re.ASCII)
_UNSAFE = re.compile(r"[\r\n\0]")

Headers = Sequence[tuple[str, str]]


class FetchError(Exception):
    """The application did not answer properly; the message says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the application answered; `body` is empty unless it was asked for."""

    status: int
    location: str = ""
    body: bytes = b""


def host_port(ip: str, port: int) -> str:
    """As in a URL."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


async def dial(ip: str, port: int) -> trio.SocketStream:
    """Connect to the application. Raises FetchError."""
    version, family = (6, socket.AF_INET6) if ":" in ip else (4, socket.AF_INET)
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        await sock.bind((INBOUND_SOURCE[version], 0))
        await sock.connect((ip, port))
    except OSError as exc:
        sock.close()
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        raise FetchError(f"connect to {host_port(ip, port)}: {reason}") from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def get(
    ip: str,
    port: int,
    path: str,
    *,
    https: bool = False,
    headers: Headers = (),
    body_limit: int | None = None,
) -> Answer:
    """One GET. The caller sets the deadline; the certificate of the application is not verified.

    Args:
        ip: the pod's address.
        port: of the application.
        path: with its query.
        https: whether to speak TLS.
        headers: take the place of the usual ones of the same name.
        body_limit: bytes of the body to read; None does not read it. The request is then HTTP/1.0, to which
            nobody answers in chunks.

    Raises:
        FetchError: no answer, or none that is HTTP.
    """
    request = _request(ip, port, path, headers, "1.1" if body_limit is None else "1.0")
    transport = await dial(ip, port)
    stream: trio.abc.Stream = transport
    try:
        if https:
            stream = trio.SSLStream(transport, _unverified(), https_compatible=True)
        await stream.send_all(request)
        return await _answer(stream, body_limit)
    except trio.BrokenResourceError as exc:
        cause = exc.__cause__
        raise FetchError(f"{host_port(ip, port)}: {cause or 'the connection broke'}") from None
    finally:
        await trio.aclose_forcefully(transport)


def _request(ip: str, port: int, path: str, headers: Headers, version: str) -> bytes:
    given = {name.lower() for name, _ in headers}
    usual = (("Host", host_port(ip, port)), ("User-Agent", "kube-probe/triomesh"), ("Accept", "*/*"))
    lines = [f"GET /{quote(path.lstrip('/'), safe=_SAFE)} HTTP/{version}"]
    for name, value in (
        *(one for one in usual if one[0].lower() not in given),
        *headers,
        ("Connection", "close"),
    ):
        if _UNSAFE.search(name + value):
            raise FetchError(f"header {name!r}: a line break or NUL in it")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")


_SAFE = "/?%#:@!$&'()*+,;=-._~[]"


async def _answer(stream: trio.abc.Stream, body_limit: int | None) -> Answer:
    buf = bytearray()
    while True:
        while (end := buf.find(b"\r\n\r\n")) < 0:
            if len(buf) > MAX_HEAD_BYTES:
                raise FetchError(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
            data = await stream.receive_some(_READ_BYTES)
            if not data:
                raise FetchError("the connection was closed before a whole answer")
            buf += data
        head = bytes(buf[: end + 2])
        del buf[: end + 4]
        match = _STATUS.match(head)
        if match is None:
            raise FetchError(f"the answer is not HTTP/1: {head[:40]!r}")
        status = int(match[1])
        if status >= 200:
            break  # what came before is provisional
    location = re.search(rb"\r\nlocation:[ \t]*([^\r\n]*)", head, re.IGNORECASE)
    found = location[1].decode("latin-1").strip() if location else ""
    if body_limit is None:
        return Answer(status, found)
    if re.search(rb"\r\ntransfer-encoding:", head, re.IGNORECASE):
        raise FetchError("the answer to an HTTP/1.0 request is in chunks")
    return Answer(status, found, await _body(stream, buf, head, body_limit))


async def _body(stream: trio.abc.Stream, buf: bytearray, head: bytes, limit: int) -> bytes:
    length = re.search(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", head, re.IGNORECASE)
    wanted = int(length[1]) if length else None
    while max(len(buf), wanted or 0) <= limit and (wanted is None or len(buf) < wanted):
        data = await stream.receive_some(_READ_BYTES)
        if not data:
            break
        buf += data
    if max(len(buf), wanted or 0) > limit:
        raise FetchError(f"the answer is longer than {limit} bytes")
    if wanted is not None and len(buf) < wanted:
        raise FetchError("the connection was closed before the whole body")
    return bytes(buf[:wanted])


def _unverified() -> ssl.SSLContext:
    """The kubelet does not verify the certificates of what it probes either."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
