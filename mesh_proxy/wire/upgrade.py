"""What a client asks its connection to become, and whether an endpoint agrees (RFC 9110, 7.8 and 9.3.6)."""

from __future__ import annotations

from mesh_proxy.wire.http1 import RequestHead, ResponseHead
from mesh_proxy.wire.message import NO_BODY, WS, HttpError


class Asked:
    """What a client asks its connection to become: one of the protocols offered, or a tunnel by CONNECT."""

    __slots__ = ("agreed", "offered")

    def __init__(self, offered: tuple[bytes, ...]) -> None:
        self.offered = offered
        """As the client spells them; none is CONNECT."""
        self.agreed = b""

    @property
    def lines(self) -> bytes:
        """The header lines that ask the next hop."""
        return b"connection: upgrade\r\nupgrade: %s\r\n" % b", ".join(self.offered) if self.offered else b""

    def granted(self, response: ResponseHead) -> bool:
        """Whether a response that is not interim makes a tunnel; HttpError if it may not."""
        if not self.offered:
            if response.status == 101:
                raise HttpError(502, "unexpected-upgrade", "the endpoint switched protocols upon CONNECT")
            if response.status >= 300:
                return False
            if response.announces_body:
                # RFC 9110, 9.3.6 forbids it: a server that does not know CONNECT has answered a request, and
                # would read the bytes of the tunnel as requests that no sidecar has looked at.
                raise HttpError(502, "no-tunnel", "the endpoint answered CONNECT with a message body")
            return True
        if response.status != 101:
            return False
        named = b", ".join(value for name, value in response.special if name == b"upgrade")
        offered = {protocol.lower() for protocol in self.offered}
        if not response.minor or not _upgrades(response) or named.lower() not in offered:
            raise HttpError(
                502, "bad-upgrade", "the endpoint switched to no protocol, or to another than was offered"
            )
        self.agreed = named
        return True


def asked(head: RequestHead, listed: frozenset[bytes]) -> Asked | None:
    """What a request asks its connection to become; None for nothing that is `listed`.

    A request with a body is served without its Upgrade: the protocol could change only after the body.
    """
    if head.method == b"CONNECT":
        if head.framing != NO_BODY:
            raise HttpError(400, "connect-with-body", "CONNECT with a body")
        return Asked(())
    if not head.minor or head.framing != NO_BODY or not _upgrades(head):
        return None
    names = [
        protocol.strip(WS)
        for name, value in head.special
        if name == b"upgrade"
        for protocol in value.split(b",")
    ]
    offered = tuple(protocol for protocol in names if protocol.lower() in listed)
    return Asked(offered) if offered else None


def _upgrades(head: RequestHead | ResponseHead) -> bool:
    return any(
        name == b"connection" and b"upgrade" in [option.strip(WS) for option in value.lower().split(b",")]
        for name, value in head.special
    )
