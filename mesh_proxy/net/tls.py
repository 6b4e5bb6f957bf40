"""TLS 1.3 on a connection, driven through memory BIOs.

One `recv` a wake-up feeds the engine; one `send` carries what it made. The engine is given one whole record
at a time: it is never asked for what it cannot give (that costs an exception), and its BIOs stay small (a
memory BIO never gives back what it once held). Of a record that has not wholly come, the beginning waits in
the BIO. Records that came together are passed on together, but not joined: large blocks of memory are dear,
since the allocator returns them to the kernel.

Ends (RFC 8446 6.1): close_notify is a clean end and reads as b""; a FIN without it is `Truncated`. Our own
end is sent once: `unwrap`, which fails if there is data inside the engine, runs a single time, and the
direction is shut down. After each read, what the engine itself wants to send (a KeyUpdate, an alert)
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
_HEADER = 5
_MAX_RECORD = _HEADER + 16 * 1024 + 256
_DATA_RECORD = 23
"""After the handshake everything goes as this (RFC 8446, 5.2)."""
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

    __slots__ = (
        "_clear",
        "_ended_clean",
        "_failed",
        "_header",
        "_in",
        "_missing",
        "_obj",
        "_out",
        "_owed",
        "_shut",
    )

    _in: ssl.MemoryBIO
    _out: ssl.MemoryBIO
    _obj: ssl.SSLObject
    _clear: bytes
    _owed: bytes
    _header: bytes
    _missing: int
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
        self._clear = self._owed = self._header = b""
        self._missing = 0
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
                if self._in.pending:
                    self._clear = b"".join(self._take(self._in.read()))
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
        if not (self._clear or self._ended_clean or self._failed is not None):
            await super().wait_readable()

    async def read(self) -> bytes:
        if self._clear or self._ended_clean or self._failed is not None:
            return b"".join(self._known())
        raw = await self._read_socket()
        size = len(raw)
        if self._missing or size <= _HEADER or raw[3] << 8 | raw[4] != size - _HEADER:
            return b"".join(await self._parts(raw))
        # Exactly one record, as small messages come.
        self._in.write(raw)
        return self._open(size) or b"".join(await self.read_parts())

    async def read_parts(self) -> list[bytes]:
        if self._clear or self._ended_clean or self._failed is not None:
            return self._known()
        return await self._parts(await self._read_socket())

    def _known(self) -> list[bytes]:
        """What can be said without a look at the socket."""
        if self._clear:
            data, self._clear = self._clear, b""
            return [data]
        if self._failed is not None and not self._ended_clean:
            raise self._failed
        return []

    async def _parts(self, raw: bytes) -> list[bytes]:
        while True:
            if not raw:
                raise Truncated("the connection ended without a TLS close_notify")
            parts = self._take(raw)
            if parts or self._ended_clean:
                return parts
            if self._failed is not None:
                raise self._failed
            raw = await self._read_socket()

    async def write(self, data: bytes) -> None:
        if self.sending:
            raise trio.BusyResourceError("one sender at a time")
        if len(data) > PIECE:
            await self._write_several([data])
            return
        try:
            self._obj.write(data)
            out = self._out.read()
            if self._owed:
                out, self._owed = self._owed + out, b""
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
        try:
            self._obj.unwrap()
        except ssl.SSLError:
            pass
        try:
            await self._flush()
        except TransportError:
            return
        await super().write_eof()

    def _take(self, raw: bytes) -> list[bytes]:
        """What the records hold that are whole with `raw`; one that has begun is left in the BIO."""
        if self._missing < 0:
            raw, self._missing = self._header + raw, 0
        incoming = self._in
        view = memoryview(raw)
        size = len(raw)
        parts: list[bytes] = []
        start, end = 0, self._missing
        while True:
            if start == end:
                if size - start < _HEADER:
                    self._header = raw[start:]
                    self._missing = -1 if self._header else 0
                    break
                end += _HEADER + (raw[start + 3] << 8 | raw[start + 4])
                if end > size and (end - start > _MAX_RECORD or raw[start] != _DATA_RECORD):
                    end = size  # the engine says at once what is wrong with it
            incoming.write(view[start:end])
            if end > size:
                self._missing = end - size
                break
            data = self._open(PIECE)
            if data:
                parts.append(data)
            elif self._ended_clean or self._failed is not None:
                break
            start = end
        return parts

    def _open(self, most: int) -> bytes:
        """The bytes in the record that the engine has been given; there are none in what is its own."""
        try:
            data = self._obj.read(most)
            if data:
                return data
            self._end()
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
        if len(self._owed) + self._out.pending > 4 * PIECE:
            self._failed = TlsFailed("the peer asks for answers that it does not read")
            self.ended |= select.EPOLLRDHUP
        return b""

    def _end(self) -> None:
        self._ended_clean = True
        self.ended |= select.EPOLLRDHUP  # an idle connection in this state is of no more use

    async def _write_several(self, parts: list[bytes]) -> None:
        if self.sending:
            raise trio.BusyResourceError("one sender at a time")
        obj, out = self._obj, self._out
        records = [self._owed] if self._owed else []
        self._owed = b""
        size = 0
        try:
            for data in parts:
                view = memoryview(data)
                for start in range(0, len(data), PIECE):
                    obj.write(view[start : start + PIECE])
                    records.append(out.read())
                    size += PIECE
                    if size >= SEND_BYTES:
                        await Conn._write_several(self, records)
                        records = []
                        size = 0
        except ssl.SSLError as exc:
            raise TlsFailed(_tls_reason(exc)) from exc
        if records:
            await Conn._write_several(self, records)
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
