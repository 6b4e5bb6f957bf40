"""Answers that a route gives without an endpoint: prepared parts of a response.

`Answer(status, fields, content_type, text)`; the writer adds framing, the request id and the connection's
fields, and leaves the text out for HEAD, 204 and 304.
"""

from __future__ import annotations

from mesh_api import traffic
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.wire import grpc

TEXT = b"text/plain; charset=utf-8"
GRPC = b"application/grpc"


class Answer:
    """One response: `fields` are header lines, each with its CRLF; `content_type` is b"" without a text."""

    __slots__ = ("content_type", "fields", "status", "text")

    def __init__(self, status: int, fields: bytes, content_type: bytes, text: bytes) -> None:
        self.status = status
        self.fields = fields
        self.content_type = content_type
        self.text = text


def respond(spec: traffic.Respond) -> Answer:
    """The answer of a route that answers itself."""
    text = spec.body.encode()
    return Answer(spec.status, b"", TEXT if text else b"", text)


def abort(spec: traffic.Abort) -> Answer:
    """The answer of an injected fault; for gRPC a response without messages (trailers-only)."""
    if spec.grpc_status is not None:
        return Answer(200, grpc.status_fields(spec.grpc_status, "fault injected by policy"), GRPC, b"")
    return Answer(spec.status, b"", TEXT, b"fault injected by policy\n")


def for_grpc(given: Answer, flag: str, detail: str) -> Answer:
    """An error as a gRPC client reads it: trailers-only, its status that of the flag or of HTTP's."""
    late = flag is Flag.UT or flag is Flag.SI
    status = grpc.DEADLINE_EXCEEDED if late else grpc.of_http(given.status)
    return Answer(200, grpc.status_fields(status, detail) + given.fields, GRPC, b"")
