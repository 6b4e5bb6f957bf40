"""HTTP messages over ASGI: reading bounded bodies, writing responses and streams."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import trio
import yaml

from mesh_local.apiserver.face.formats import JSON, YAML
from mesh_local.machinery import errors

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[str, str]]

MAX_BODY = 3 * 1024 * 1024
# Of a body that nobody wants: more, or more slowly, and the connection is closed after the answer.
MAX_DISCARDED = 256 * 1024
DISCARD_S = 2.0
NO_CACHE = ("Cache-Control", "no-cache, private")


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class Incoming:
    """The body of one request, as ASGI messages.

    Attributes:
        complete: whether nothing more of it is to come.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.complete = message["type"] != "http.request" or not message.get("more_body")
        return message

    async def discard(self) -> bool:
        """Read what is left, so that the connection can go on (as in Go); whether that was all."""
        left = MAX_DISCARDED
        with trio.move_on_after(DISCARD_S):
            while not self.complete and left > 0:
                left -= len((await self()).get("body", b""))
        return self.complete


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; header names are in lower case, repeated query parameters count once."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Sequence[tuple[str, str]]
    receive: Incoming

    @staticmethod
    def of(scope: Scope, receive: Receive) -> "Request":
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        headers = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in scope["headers"]]
        return Request(scope["method"], scope["path"], dict(reversed(pairs)), headers, Incoming(receive))

    def header(self, name: str) -> str:
        """All values of a header, joined."""
        return ", ".join(v for k, v in self.headers if k == name)

    def values(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k == name]

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            ApiError: 413.
            ClientGone: it never came.
        """
        chunks, size = [], 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > MAX_BODY:
                raise errors.failure(
                    413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY}"
                )
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    status: int
    body: bytes = b""
    media: str = JSON
    headers: Headers = field(default_factory=tuple)
    cache: str = "no-cache, private"


def data_answer(
    status: int, data: Any, *, media: str = JSON, pretty: bool = False, headers: Headers = ()
) -> Answer:
    """An object as JSON or YAML."""
    if media == YAML:
        text = yaml.safe_dump(data, sort_keys=True, allow_unicode=True, default_flow_style=False)
        return Answer(status, text.encode(), YAML, headers)
    body = msgspec.json.encode(data)
    if pretty:
        body = msgspec.json.format(body, indent=2)
    return Answer(status, body + b"\n", JSON, headers)


def text_answer(status: int, text: str) -> Answer:
    return Answer(
        status, text.encode(), "text/plain; charset=utf-8", (("X-Content-Type-Options", "nosniff"),)
    )


def page_not_found() -> Answer:
    return text_answer(404, "404 page not found\n")


async def respond(send: Send, answer: Answer) -> None:
    await start(
        send,
        answer.status,
        answer.media if answer.body else "",
        answer.headers,
        answer.cache,
        len(answer.body),
    )
    await send({"type": "http.response.body", "body": answer.body})


async def start(
    send: Send,
    status: int,
    media: str,
    headers: Headers = (),
    cache: str = NO_CACHE[1],
    length: int | None = None,
) -> None:
    """Send the head; without a length the body is chunked."""
    found = [("Cache-Control", cache), *headers]
    if media:
        found.append(("Content-Type", media))
    if length is not None:
        found.append(("Content-Length", str(length)))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.lower().encode("latin-1"), v.encode("latin-1", "replace")) for k, v in found],
        }
    )


def with_headers(send: Send, headers: Headers) -> Send:
    """`send` that adds headers to the response."""
    added = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending


def warning_headers(texts: Sequence[str]) -> list[tuple[str, str]]:
    """One Warning header per text (RFC 7234, section 5.5), as apiserver writes them."""
    found = []
    for text in dict.fromkeys(texts):
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        clean = "".join(c if c.isprintable() else " " for c in quoted)
        found.append(("Warning", f'299 - "{clean}"'))
    return found
