"""What exchanges with an HTTP/2 side go through, whichever version each of their two sides has.

A header block is lines as in HTTP/1.1, names of HTTP/2 messages in lower case; bodies are payload without
framing; trailers are a block. HTTP/2 streams are such sides by themselves, HTTP/1 connections have adapters
(`http1_call.py`, `http1_client.py`). An exchange between two HTTP/1 sides needs none of this.
"""

from __future__ import annotations

import re
from typing import Protocol

from mesh_proxy.base.errors import TransportError
from mesh_proxy.net.roles import Interruptible
from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http2.seam import RequestFields
from mesh_proxy.wire.message import TOKEN


class Down(Protocol):
    """The client's end as attempts see it: a connection, or one stream of one."""

    partner: Interruptible | None
    doom: TransportError | None

    @property
    def sending(self) -> bool:
        """The client does not take what it is sent."""
        ...

    def interrupt(self, error: TransportError) -> None:
        """Resume whoever waits on it, with `error`."""
        ...


class Client(Protocol):
    """Where a response goes. The errors of its methods are those of the client's end."""

    def interim(self, status: int, block: bytes) -> None:
        """Pass an interim response on, if the client can take one."""
        ...

    def respond(self, status: int, block: bytes, end: bool) -> None:
        """Take the final head; with `end` there is no body."""
        ...

    async def write(self, data: bytes, end: bool = False) -> None:
        """Send a part of the body."""
        ...

    async def end(self, trailers: bytes = b"") -> None:
        """End the response."""
        ...

    def reset(self, code: int) -> None:
        """Tell the client that the response is cut; `code` is one of RFC 9113, 7."""
        ...


class Call(Protocol):
    """One request to an endpoint, whose head is on its way, and its response."""

    complete: bool
    """The whole response has come: what was not read is in `take`."""
    trailers: bytes
    """Of the response, once `complete`."""

    async def write(self, data: bytes, end: bool = False) -> None:
        """Send a part of the body."""
        ...

    async def end(self, trailers: bytes = b"") -> None:
        """End the request."""
        ...

    async def response(self) -> tuple[int, bytes, bool]:
        """The next response head: status, block, whether that is all; interim ones too."""
        ...

    def take(self) -> bytes:
        """What has come of the body and was not read yet, without waiting."""
        ...

    async def read(self) -> bytes:
        """The next part of the body; b"" at its end."""
        ...

    def interrupt(self, error: TransportError) -> None:
        """Resume whoever waits on it, with `error`."""
        ...


class Request:
    """A request as it goes on, as much of it as has come."""

    __slots__ = ("dechunk", "fields", "first", "trailers")

    def __init__(
        self, fields: RequestFields, first: bytes, trailers: bytes = b"", dechunk: Dechunker | None = None
    ) -> None:
        self.fields = fields
        self.first = first
        """Payload that came with the head."""
        self.trailers = trailers
        """If the whole request has come."""
        self.dechunk = dechunk
        """What has had the first bytes of a chunked body, of which more will come."""


_mesh = re.compile(rb"\r\nx-triomesh-[^:]*+:[^\r]*+").sub
_mesh_but_error = re.compile(rb"\r\nx-triomesh-(?!error:)[^:]*+:[^\r]*+").sub
_no_trailer = re.compile(
    rb"\r\n(?i:authorization|connection|content[-_](?:encoding|length|range|type)|cookie|expect|forwarded|host"
    rb"|http2[-_]settings|keep[-_]alive|proxy[-_](?:authenticate|authorization|connection)|set[-_]cookie|te"
    rb"|trailer|transfer[-_]encoding|upgrade|www[-_]authenticate"
    rb"|x[-_]request[-_]id|x[-_](?:forwarded|triomesh)[-_]" + TOKEN + rb"*+):[^\r]*+"
).sub


def without_mesh_fields(block: bytes, keep_error: bool = False) -> bytes:
    """An HTTP/2 block (its names are in lower case) without the fields that only sidecars tell each other."""
    if b"x-triomesh-" not in block:
        return block
    drop = _mesh_but_error if keep_error else _mesh
    return drop(b"", b"\r\n" + block)[2:]


def trailers_passed_on(block: bytes) -> bytes:
    """Trailers without fields that must not be there (RFC 9110, 6.5.1), which a receiver could merge."""
    return _no_trailer(b"", b"\r\n" + block)[2:] if block else b""
