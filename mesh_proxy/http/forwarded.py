"""What a request says about where it comes from, and who may say it.

`x-forwarded-client-cert` is written by the sidecar in front of the application alone, from the certificate
that the caller's sidecar has proved, in Envoy's form; what a caller sends under that name never goes on.
Several names are read as one by applications behind gateway interfaces (CGI, WSGI), which take `_` for `-`:
such look-alikes of names that sidecars act on are removed too, those of framing fields refused by the parser.
`x-forwarded-for`, `x-forwarded-proto` and `forwarded` are the application's business and pass unchanged.
"""

from __future__ import annotations

import re

from mesh_proxy.wire.message import TOKEN

_claims = re.compile(
    rb"\r\n(?:[Xx][-_](?i:forwarded[-_]client[-_]cert)|[Xx](?:_(?i:request[-_]id)|-(?i:request_id))"
    rb"|[Xx](?:_(?i:triomesh[-_])|-(?i:triomesh_))" + TOKEN + rb"*+"
    rb"|(?i:content_length|transfer_encoding)):[^\r]*+"
)


def caller_line(identity: str, by: str) -> bytes:
    """The header line that tells an application who calls it; b"" where nobody has proved who it is.

    Args:
        identity: SPIFFE id of the caller.
        by: that of this workload.
    """
    if not identity:
        return b""
    return b"x-forwarded-client-cert: By=%s;URI=%s\r\n" % (by.encode(), identity.encode())


def without_claims(block: bytes) -> bytes:
    """The header lines of an HTTP/2 request without what no caller may say; mostly the block itself.

    The parser of HTTP/1 heads does the same for its requests.
    """
    lines = b"\r\n" + block
    if _claims.search(lines) is None:
        return block
    return _claims.sub(b"", lines)[2:]
