"""Why a head is refused: asked once the fast way has said that it is, so only refused messages pay for it.

A response is refused with 502 whatever is wrong with it: the client has not done it.
"""

from __future__ import annotations

import re

from mesh_api.limits import Limits
from mesh_proxy.wire.message import TARGET, TEXT, TOKEN, WS, HttpError, bad_line_end

_name_ok = re.compile(TOKEN + rb"++").fullmatch
_value_ok = re.compile(TEXT + rb"*+").fullmatch
_target_ok = re.compile(TARGET + rb"++").fullmatch
_status_line_ok = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9](?: " + TEXT + rb"*+)?+").fullmatch
_other_version = re.compile(rb"HTTP/[0-9]++(?:\.[0-9]++)?+").fullmatch


def head_too_large(limits: Limits) -> HttpError:
    """The whole head is over its bound."""
    return HttpError(431, "head-too-large", f"the head is longer than {limits.head_bytes} bytes")


def first_line_too_long(limits: Limits) -> HttpError:
    """The request line is over its bound."""
    return HttpError(414, "first-line-too-long", f"the first line is longer than {limits.line_bytes} bytes")


def too_many_headers(limits: Limits, status: int) -> HttpError:
    """There are more header lines than the bound."""
    return HttpError(status, "too-many-headers", f"more than {limits.header_count} header lines")


def check_sizes(head: bytes, limits: Limits, status: int) -> None:
    """Refuse a complete head that is over a bound, or has a line that is."""
    if len(head) > limits.head_bytes:
        raise _as_status(head_too_large(limits), status)
    lines = head.split(b"\r\n")
    if len(lines[0]) > limits.line_bytes:
        raise _as_status(first_line_too_long(limits), status)
    if any(len(line) > limits.line_bytes for line in lines):
        raise HttpError(status, "header-too-long", f"a header line is longer than {limits.line_bytes} bytes")


def _as_status(error: HttpError, status: int) -> HttpError:
    if status == 502:
        error.status = status
    return error


def _diagnose_bytes(head: bytes, status: int) -> HttpError | None:
    if not head.endswith(b"\r\n\r\n"):
        return HttpError(status, "incomplete-head", "the head does not end with an empty line")
    return bad_line_end(head, 0, status)


def _diagnose_fields(lines: list[bytes], status: int) -> HttpError:
    for line in lines:
        if not line:
            return HttpError(status, "early-empty-line", "an empty line before the end of the head")
        if line[0] in WS:
            return HttpError(status, "folded-header", "a header line that begins with white space")
        name, colon, value = line.partition(b":")
        if not colon:
            return HttpError(status, "header-without-colon", "a header line without a colon")
        if not name:
            return HttpError(status, "empty-header-name", "a header line without a name")
        if name[-1] in WS:
            return HttpError(
                status, "space-before-colon", "white space between a header's name and its colon"
            )
        if _name_ok(name) is None:
            return HttpError(status, "bad-header-name", "a header name with a character that is not allowed")
        if _value_ok(value) is None:
            return HttpError(
                status, "bad-header-value", "a header value with a character that is not allowed"
            )
    return HttpError(status, "malformed-head", "the head is malformed")


def diagnose_request(head: bytes) -> HttpError:
    """What is wrong with a request head."""
    error = _diagnose_bytes(head, 400)
    if error is not None:
        return error
    line, *fields = head[:-4].split(b"\r\n")
    if not line:
        return HttpError(400, "empty-request-line", "an empty line where a request line is due")
    parts = line.split(b" ")
    if len(parts) != 3:
        return HttpError(
            400, "bad-request-line", "the request line is not three words with one space between"
        )
    method, target, version = parts
    if _name_ok(method) is None:
        return HttpError(400, "bad-method", "the method is not a token")
    if _target_ok(target) is None:
        return HttpError(400, "bad-target", "the request target has a character that is not allowed")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _other_version(version) is not None:
            return HttpError(505, "bad-version", "the protocol version is neither HTTP/1.1 nor HTTP/1.0")
        return HttpError(400, "bad-request-line", "the request line does not end with a protocol version")
    return _diagnose_fields(fields, 400)


def diagnose_response(head: bytes) -> HttpError:
    """What is wrong with a response head."""
    error = _diagnose_bytes(head, 502)
    if error is not None:
        return error
    line, *fields = head[:-4].split(b"\r\n")
    if _status_line_ok(line) is None:
        return HttpError(502, "bad-status-line", "the status line is malformed")
    return _diagnose_fields(fields, 502)
