"""TLS 1.3 on a connection, driven through memory BIOs.

One `recv` a wake-up feeds the engine; one `send` carries what it made. The BIOs are fed and drained in
pieces of 16 KiB, since a memory BIO never gives back what it once held.

Ends (RFC 8446 6.1): close_notify is a clean end and reads as b""; a FIN without it is `Truncated`. Our own
end is sent once: everything readable is taken first, then `unwrap` runs a single time with no await between,
and the direction is shut down. After each read, what the engine itself wants to send (a KeyUpdate, an alert)
goes out through the connection's one sender.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable
from typing import TypeVar

import trio

from mesh_proxy.base.errors import Overloaded, PeerReset, TlsFailed, TransportError, Truncated
from mesh_proxy.net.conn import Conn

PIECE = 16 * 1024
SEND_BYTES = 256 * 1024
_T = TypeVar("_T")


class Handshaker:
    """Runs the costly steps of handshakes in a few worker threads, so that the loop stays free.

    OpenSSL releases the GIL during a handshake step (1-2 ms for a full mutual one). At most `workers` steps
    run and `waiting` handshakes exist at once; one more is refused with Overloaded.
    """

    def __init__(self, workers: int = 2, waiting: int = 2048) -> None:
        self._limiter = trio.CapacityLimiter(workers)
        self._free = waiting
        self.active = 0

    async def run(self, step: Callable[[], _T]) -> _T:
        """One step in a worker thread; waits its turn."""
        return await trio.to_thread.run_sync(step, limiter=self._limiter)

    def enter(self) -> None:
        """Claim a place for one handshake; raises Overloaded."""
        if self.active >= self._free:
            raise Overloaded("too many TLS handshakes at once")
        self.active += 1

    def leave(self) -> None:
        """Give the place back."""
        self.active -= 1


class TlsConn(Conn):
    """A TLS connection. Takes over the socket of a plain one with `TlsConn.over`."""

    __slots__ = ("_clear", "_ended_clean", "_failed", "_in", "_obj", "_out", "_owed", "_shut")

    _in: ssl.MemoryBIO
    _out: ssl.MemoryBIO
    _obj: ssl.SSLObject
    _clear: bytes
    _owed: bytes
    _ended_clean: bool
    _shut: bool
    _failed: TlsFailed | None

    @classmethod
    def over(cls, plain: Conn, context: ssl.SSLContext, *, server_side: bool) -> TlsConn:
        """A TLS connection on the socket of `plain`, which must not be used again; no byte is sent yet."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        obj = context.wrap_bio(incoming, outgoing, server_side=server_side)
        plain.reactor.forget(plain.fd)
        self = cls.__new__(cls)
        for slot in _CONN_SLOTS:
            setattr(self, slot, getattr(plain, slot))
        self._in, self._out, self._obj = incoming, outgoing, obj
        self._clear = self._owed = b""
        self._ended_clean = self._shut = False
        self._failed = None
        self.queued = 1 << 62
        self._stall = None
        plain.closed = True
        self.reactor.conns[self.fd] = self
        # The deadline goes over to this object: the wheel knows the plain one.
        self.reactor.wheel.forget(plain)
        self.reactor.set_deadline(self, self.deadline)
        return self

    async def handshake(self, handshaker: Handshaker) -> None:
        """Complete the handshake within the connection's deadline.

        Raises TlsFailed, PeerReset, DeadlineExceeded, Overloaded.
        """
        handshaker.enter()
        try:
            if self.prefix:
                self._in.write(self.prefix)
                self.prefix = b""
            step = self._obj.do_handshake
            while True:
                try:
                    if self._in.pending:
                        await handshaker.run(step)
                    else:
                        step()
                except ssl.SSLWantReadError:
                    if self._out.pending:
                        await self._send_all(self._out.read())
                    raw = await self._read_socket()
                    if not raw:
                        raise PeerReset("the peer closed during the TLS handshake") from None
                    self._in.write(raw)
                    continue
                except ssl.SSLError as exc:
                    await self._send_alert()
                    raise TlsFailed(_tls_reason(exc)) from exc
                if self._out.pending:
                    await self._send_all(self._out.read())
                return
        finally:
            handshaker.leave()

    @property
    def alpn(self) -> str | None:
        """The negotiated protocol, None if there is none in common."""
        return self._obj.selected_alpn_protocol()

    def certificate(self) -> dict[str, object]:
        """The peer's verified certificate as `ssl.SSLSocket.getpeercert` gives it."""
        return dict(self._obj.getpeercert() or {})

    async def wait_readable(self) -> None:
        if not (self._clear or self._ended_clean or self._in.pending or self._obj.pending()):
            await super().wait_readable()

    async def read(self) -> bytes:
        if self._clear:
            data, self._clear = self._clear, b""
            return data
        if self._ended_clean:
            return b""
        if self._failed is not None:
            raise self._failed
        incoming = self._in
        obj = self._obj
        while True:
            if incoming.pending or obj.pending():
                data = self._decrypt()
                if data or self._ended_clean:
                    return data
            raw = await self._read_socket()
            if not raw:
                raise Truncated("the connection ended without a TLS close_notify")
            if len(raw) <= PIECE:
                incoming.write(raw)
                continue
            data = self._decrypt_bulk(raw)
            if data or self._ended_clean:
                return data

    async def write(self, data: bytes) -> None:
        if self.sending:
            raise trio.BusyResourceError("one sender at a time")
        obj = self._obj
        try:
            if len(data) <= PIECE:
                obj.write(data)
                out = self._out.read()
                if self._owed:
                    out, self._owed = self._owed + out, b""
            else:
                await self._write_bulk(data)
                return
        except ssl.SSLError as exc:
            raise TlsFailed(_tls_reason(exc)) from exc
        try:
            n = self._send(out)
        except BlockingIOError:
            n = 0
        except OSError as exc:
            raise self._broken(exc) from exc
        self.sent += n
        if n != len(out):
            await self._write_rest(memoryview(out)[n:])
            await self._flush()

    def unread(self, data: bytes) -> None:
        self._clear = data + self._clear

    def bye(self) -> None:
        if not self._shut and not self.ended and not self.sending:
            self._shut = True
            try:
                self._obj.unwrap()
            except (ssl.SSLError, OSError):
                pass
            self._flush_nowait()
        self.close()

    async def write_eof(self) -> None:
        if self._shut:
            return
        self._shut = True
        if not self._ended_clean:
            # Data still inside the engine would make unwrap fail: take it out first.
            self._clear += self._decrypt()
        try:
            self._obj.unwrap()
        except ssl.SSLError:
            pass
        try:
            await self._flush()
        except TransportError:
            return
        await super().write_eof()

    def _decrypt(self) -> bytes:
        """Every byte that the engine can give without new input."""
        obj = self._obj
        incoming = self._in
        data = b""
        parts: list[bytes] | None = None
        try:
            while True:
                piece = obj.read(PIECE)
                if not piece:
                    self._end()
                    break
                if not data:
                    data = piece
                elif parts is None:
                    parts = [data, piece]
                else:
                    parts.append(piece)
                if not incoming.pending and not obj.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._end()  # the same end, as it is told once we have ended too
        except ssl.SSLError as exc:
            # What came before the bad record is delivered first.
            self._failed = TlsFailed(_tls_reason(exc))
            self.ended |= select.EPOLLRDHUP
        if self._out.pending and not self.sending:
            self._flush_nowait()
        if len(self._owed) + self._out.pending > 4 * PIECE and not self.sending:
            self._failed = TlsFailed("the peer asks for answers that it does not read")
            self.ended |= select.EPOLLRDHUP
        if self._failed is not None and not data:
            raise self._failed
        return data if parts is None else b"".join(parts)

    def _end(self) -> None:
        self._ended_clean = True
        self.ended |= select.EPOLLRDHUP  # an idle connection in this state is of no more use

    def _decrypt_bulk(self, raw: bytes) -> bytes:
        incoming = self._in
        view = memoryview(raw)
        parts: list[bytes] = []
        for start in range(0, len(raw), PIECE):
            incoming.write(view[start : start + PIECE])
            try:
                data = self._decrypt()
            except TlsFailed:
                if not parts:
                    raise
                break
            if data:
                parts.append(data)
            if self._ended_clean or self._failed is not None:
                break
        return b"".join(parts)

    async def _write_bulk(self, data: bytes) -> None:
        obj, out = self._obj, self._out
        view = memoryview(data)
        parts = [self._owed] if self._owed else []
        self._owed = b""
        size = 0
        for start in range(0, len(data), PIECE):
            obj.write(view[start : start + PIECE])
            piece = out.read()
            parts.append(piece)
            size += len(piece)
            if size >= SEND_BYTES:
                await self._send_all(b"".join(parts))
                parts.clear()
                size = 0
        if parts:
            await self._send_all(b"".join(parts))
        await self._flush()

    async def _send_all(self, data: bytes) -> None:
        await Conn.write(self, data)

    async def _flush(self) -> None:
        """Send what the engine made on its own; only the connection's sender calls this."""
        while self._owed or self._out.pending:
            data, self._owed = self._owed + self._out.read(), b""
            await self._send_all(data)

    def _flush_nowait(self) -> None:
        data = self._owed + self._out.read()
        try:
            n = self._send(data)
        except OSError:
            n = 0
        self.sent += n
        self._owed = data[n:]

    async def _send_alert(self) -> None:
        """Tell the peer why the handshake failed, as far as the socket takes it at once."""
        if self._out.pending:
            self._flush_nowait()
        await trio.lowlevel.checkpoint_if_cancelled()


def _tls_reason(exc: ssl.SSLError) -> str:
    """OpenSSL's own words for an error, without file names and line numbers."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {exc.verify_message}"
    reason = exc.reason or str(exc)
    return reason.replace("_", " ").lower()[:120]


_CONN_SLOTS = (*Conn.__slots__, "deadline")
