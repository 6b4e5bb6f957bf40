"""Request targets (RFC 9112, 3.2): what form they have, and that they say the same as Host."""

from __future__ import annotations

import re

from mesh_proxy.wire.message import HttpError

HOST_NAME = rb"(?:[A-Za-z0-9._~%!$&'()*+;=\-]++|\[[0-9A-Fa-fv:.]++\])"
_absolute = re.compile(rb"(?i:https?+)://(" + HOST_NAME + rb"(?::[0-9]{0,5}+)?+)(?:[/?].*+)?+").fullmatch
_authority = re.compile(rb"(" + HOST_NAME + rb"):([0-9]{1,5}+)").fullmatch


def check_target(method: bytes, target: bytes, host: bytes) -> None:
    """Refuse a request target that is neither a path nor says the same as the Host header.

    Absolute form (RFC 9112, 3.2.2) must name the authority that Host names, since the next hop may believe
    either, and goes on as it is: what the mesh believes to be a server may be a proxy. Asterisk form belongs
    to OPTIONS, authority form to CONNECT.

    Args:
        method: as the client wrote it.
        target: likewise.
        host: value of its Host header; b"" if there is none.
    """
    if method == b"CONNECT":
        _check_authority(target, host)
        return
    if target.startswith(b"/"):
        return
    if target == b"*":
        if method != b"OPTIONS":
            raise HttpError(400, "bad-target", "the target * belongs to OPTIONS")
        return
    match = _absolute(target)
    if match is None:
        raise HttpError(400, "bad-target", "expected a path or an http URL as the target")
    if match.group(1).lower() != host.lower():
        raise HttpError(400, "target-and-host-differ", "the URL of the target names another host than Host")


def authority_of(method: bytes, target: bytes) -> bytes:
    """The authority that a target names; b"" for a path."""
    if method == b"CONNECT":
        return target
    match = None if target.startswith(b"/") else _absolute(target)
    return match.group(1) if match is not None else b""


def in_short(method: bytes, target: bytes) -> bytes:
    """The target, or `*` where it is about the whole server: OPTIONS, and a URL of an authority alone.

    RFC 9112, 3.2.4. Whoever looks at the path would take that for `/`.
    """
    if method != b"OPTIONS":
        return target
    match = _absolute(target)
    return b"*" if match is not None and match.end(1) == len(target) else target


def _check_authority(target: bytes, host: bytes) -> None:
    """CONNECT names host and port (RFC 9110, 9.3.6); Host agrees, is missing, or has no port."""
    match = _authority(target)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise HttpError(400, "bad-target", "expected HOST:PORT as the target of CONNECT")
    if host and host.lower() not in (target.lower(), match[1].lower()):
        raise HttpError(400, "target-and-host-differ", "the target of CONNECT names another host than Host")
