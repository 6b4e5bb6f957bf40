"""TCP and TLS for the client's HTTP library. Its own leaves the socket open when a handshake is cancelled."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable

import httpcore
import trio

# A peer that is gone without a word is noticed after half a minute, also where nothing is being sent.
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection; timeouts but the connection's own are the cancel scopes around it."""

    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType) -> None:
        self._stream = stream
        self._socket = sock

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpcore.ReadError(_said(exc)) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            if buffer:
                await self._stream.send_all(buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpcore.WriteError(_said(exc)) from None

    async def aclose(self) -> None:
        # Without close_notify, which could wait for the peer: HTTP/1.1 frames its bodies itself.
        await trio.aclose_forcefully(self._stream)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        secure = trio.SSLStream(
            self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True
        )
        try:
            with trio.fail_after(5.0 if timeout is None else timeout):
                await secure.do_handshake()
        except trio.TooSlowError:
            await trio.aclose_forcefully(self._stream)
            raise httpcore.ConnectTimeout("the TLS handshake took too long") from None
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(self._stream)
            raise httpcore.ConnectError(_said(exc)) from None
        except BaseException:
            await trio.aclose_forcefully(self._stream)
            raise
        return _Stream(secure, self._socket)

    def get_extra_info(self, info: str) -> object:
        """What httpcore asks to see whether an idle connection was closed by the server."""
        if info == "is_readable":
            return self._socket.is_readable()
        return None


class Backend(httpcore.AsyncNetworkBackend):
    """Connects on trio."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with trio.fail_after(5.0 if timeout is None else timeout):
                stream = await trio.open_tcp_stream(host, port)
        except trio.TooSlowError:
            raise httpcore.ConnectTimeout("the connection took too long") from None
        except OSError as exc:
            raise httpcore.ConnectError(_said(exc)) from None
        for option in _OPTIONS:
            stream.socket.setsockopt(*option)
        return _Stream(stream, stream.socket)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


def _said(exc: BaseException) -> str:
    """The words of the innermost cause: those of the outer ones are general."""
    said = str(exc)
    cause = exc.__cause__ or exc.__context__
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]  # one for each address that was tried
        said = str(cause) or said
        cause = cause.__cause__ or cause.__context__
    return said or type(exc).__name__
