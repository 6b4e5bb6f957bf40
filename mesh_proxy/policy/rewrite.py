"""Rewriting of a request's path and host, and the Location of a redirect (RFC 9110, 10.2.2).

- `Rewrite(path, spec, matched).target(target) -> bytes`: the new request target, in origin form.
- `Rewrite.block(block) -> bytes`: the header lines with the new Host; `Rewrite.host` is b"" if it stays.
- `Redirect(path, spec, matched).answer(target, host, scheme) -> Answer`.

`matched` is the prefix (or the exact path) of the match that held; without one it is `/`. Replacing follows
Gateway API: `/foo/bar` with `/foo` replaced by `/xyz` or `/xyz/` is `/xyz/bar`, replaced by `/` it is `/bar`.
"""

from __future__ import annotations

import re

from mesh_api import traffic
from mesh_api.sidecar import ConfigError
from mesh_proxy.policy.answers import Answer
from mesh_proxy.policy.edits import dropper
from mesh_proxy.policy.matching import path_of, query_of

_path_ok = re.compile(r"/[\x21\x22\x24-\x3e\x40-\x7e]{0,4095}").fullmatch  # no space, control, # or ?
_host_ok = re.compile(r"[A-Za-z0-9._~\-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]").fullmatch
_authority_ok = re.compile(r"(?:[A-Za-z0-9._~\-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?").fullmatch
_SCHEMES = {"": b"", "http": b"http", "https": b"https"}
_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_drop_host = dropper(("host",))


class PathEdit:
    """A prepared PathRewrite. Raises ConfigError unless exactly one field is set, to a path without query."""

    __slots__ = ("_full", "_matched", "_prefix")

    def __init__(self, path: str, spec: traffic.PathRewrite, matched: str) -> None:
        if bool(spec.replace_full) is bool(spec.replace_prefix):
            raise ConfigError(path, "expected exactly one of replacePrefix and replaceFull")
        text = spec.replace_full or spec.replace_prefix
        if _path_ok(text) is None:
            raise ConfigError(
                path, f"expected a path that begins with / and has no query, got {text[:100]!r}"
            )
        self._full = spec.replace_full.encode()
        self._prefix = spec.replace_prefix.encode().rstrip(b"/")
        self._matched = len(matched.rstrip("/").encode())

    def apply(self, path: bytes) -> bytes:
        """The new path; where the prefix meets the rest there is one slash."""
        if path[:1] != b"/":
            return path  # the asterisk of OPTIONS
        if self._full:
            return self._full
        rest = path[self._matched :]
        if rest[:2] == b"//":
            rest = b"/" + rest.lstrip(b"/")
        return self._prefix + rest or b"/"


class Rewrite:
    """Prepared changes to the request line and the Host header."""

    __slots__ = ("_host_line", "_path", "host")

    def __init__(self, path: str, spec: traffic.Rewrite, matched: str) -> None:
        if spec.host and _authority_ok(spec.host) is None:
            raise ConfigError(
                f"{path}.host", f"expected a host name with an optional port, got {spec.host[:100]!r}"
            )
        self.host = spec.host.encode()
        self._host_line = b"host: %s\r\n" % self.host if spec.host else b""
        self._path = PathEdit(f"{path}.path", spec.path, matched) if spec.path is not None else None

    def target(self, target: bytes) -> bytes:
        """The new request target: origin form, as another authority in it would speak against Host.

        The authority that a CONNECT names stays: it has no path.
        """
        if target[:1] != b"/" and target != b"*" and b"://" not in target:
            return target
        path = path_of(target)
        if self._path is not None:
            path = self._path.apply(path)
        return path + query_of(target)

    def block(self, block: bytes) -> bytes:
        """The header lines with the new Host first."""
        if not self._host_line:
            return block
        return self._host_line + _drop_host(block)


class Redirect:
    """A prepared redirect.

    Where a scheme is set and no port, the port is the scheme's own; otherwise what is not set is the
    request's. A port that is the scheme's default is left out.
    """

    __slots__ = ("_host", "_path", "_port", "_scheme", "_status")

    def __init__(self, path: str, spec: traffic.Redirect, matched: str) -> None:
        scheme = _SCHEMES.get(spec.scheme)
        if scheme is None:
            raise ConfigError(f"{path}.scheme", f"expected http or https, got {spec.scheme[:100]!r}")
        if spec.status not in _REDIRECTS:
            raise ConfigError(f"{path}.status", f"expected 301, 302, 303, 307 or 308, got {spec.status}")
        if not 0 <= spec.port <= 65535:
            raise ConfigError(f"{path}.port", f"expected 1 to 65535, got {spec.port}")
        host = f"[{spec.host}]" if ":" in spec.host and spec.host[:1] != "[" else spec.host
        if host and _host_ok(host) is None:
            raise ConfigError(f"{path}.host", f"expected a host name or address, got {spec.host[:100]!r}")
        self._scheme = scheme
        self._host = host.encode()
        self._port = b"%d" % spec.port if spec.port else b""
        self._status = spec.status
        self._path = PathEdit(f"{path}.path", spec.path, matched) if spec.path is not None else None

    def answer(self, target: bytes, host: bytes, scheme: bytes = b"http") -> Answer:
        """The redirect of one request.

        Args:
            target: as the client wrote it.
            host: value of its Host header; b"" if there is none (HTTP/1.0).
            scheme: how the client came.
        """
        location = self.location(target, host, scheme)
        return Answer(self._status, b"location: %s\r\n" % location, b"", b"")

    def location(self, target: bytes, host: bytes, scheme: bytes) -> bytes:
        """The value of Location; a path alone when nobody has named a host."""
        path = path_of(target)
        if path[:1] != b"/":
            path = b"/"
        if self._path is not None:
            path = self._path.apply(path)
        name, own_port = _split_authority(host)
        name = self._host or name
        path += query_of(target)
        if not name:
            return b"/" + path.lstrip(b"/")  # never //, which would name a host
        new_scheme = self._scheme or scheme
        port = self._port or (b"" if self._scheme else own_port)
        if port and port != _DEFAULT_PORTS[new_scheme]:
            name = b"%s:%s" % (name, port)
        return b"%s://%s%s" % (new_scheme, name, path)


def _split_authority(authority: bytes) -> tuple[bytes, bytes]:
    # A colon within brackets belongs to an IPv6 address.
    name, colon, port = authority.rpartition(b":")
    return (name, port) if colon and not port.endswith(b"]") else (authority, b"")
