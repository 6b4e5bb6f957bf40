"""A connection over a non-blocking socket: plain here, TLS in `tls.py`.

Rules. One reader and one sender at a time. A short read means that the socket is drained, unless the peer
has ended (RDHUP, HUP and ERR are sticky: data and FIN may come as one edge). `read` returns b"" only for a
clean end. `abort` closes with a reset, `aclose` without.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import termios

import trio
from trio.lowlevel import Abort, current_task, wait_task_rescheduled

from mesh_proxy.base.errors import DeadlineExceeded, IdentityEnded, PeerReset, TransportError
from mesh_proxy.net.reactor import Reactor, fail
from mesh_proxy.net.roles import IdleOwner, Interruptible, Lease
from mesh_proxy.net.wheel import NEVER, Timed

READ_BYTES = 16 * 1024
MORE_READ_BYTES = 112 * 1024
BULK_READ_BYTES = 256 * 1024
"""How much is read at a time; each read that was full makes the next one larger. The allocator takes blocks
of 128 KiB and more from the kernel, so the largest is only for who fills it."""
FAIR_BYTES = 1024 * 1024
FAIR_COST = FAIR_BYTES // 64
"""After 1 MiB or 64 reads without parking, a task lets the others run."""
MOST_PARTS = 64
"""More are joined before they are sent: the kernel takes 1,024, and many are small."""
LINGER_S = 30.0
"""How long a connection that is being closed takes what its peer is still sending."""

_LINGER_RESET = struct.pack("ii", 1, 0)


class _WriteStall(Timed):
    __slots__ = ("conn",)

    def __init__(self, conn: Conn) -> None:
        super().__init__()
        self.conn = conn

    def on_deadline(self) -> None:
        task = self.conn.writer
        if task is not None:
            self.conn.writer = None
            fail(task, DeadlineExceeded(f"the peer took no byte for {self.conn.reactor.stall_s:g} s"))


class _LifeEnd(Timed):
    __slots__ = ("conn",)

    def __init__(self, conn: Conn) -> None:
        super().__init__()
        self.conn = conn

    def on_deadline(self) -> None:
        self.conn.interrupt(IdentityEnded("the peer's certificate has ended"))


class Conn(Timed):
    """A plain connection. `deadline` (see Timed) bounds every wait on it."""

    __slots__ = (
        "_life_end",
        "_recv",
        "_send",
        "_sendmsg",
        "_stall",
        "_want",
        "between",
        "closed",
        "doom",
        "ended",
        "expires",
        "fd",
        "fresh",
        "idle_in",
        "lease",
        "partner",
        "peer",
        "prefix",
        "reactor",
        "readable",
        "reader",
        "received",
        "sending",
        "sent",
        "sock",
        "spin",
        "uses",
        "writer",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        """Take over a connected or connecting non-blocking socket."""
        super().__init__()
        self.reactor = reactor
        self.sock = sock
        self.fd = sock.fileno()
        self.readable = False
        self.ended = 0
        self.reader: trio.lowlevel.Task | None = None
        self.writer: trio.lowlevel.Task | None = None
        self.idle_in: IdleOwner | None = None
        self.partner: Interruptible | None = None
        """Told when the peer resets this connection while nobody waits on it."""
        self.lease: Lease | None = None
        self.peer = ""
        """SPIFFE id that the peer has proved; empty on a plain connection."""
        self.expires = NEVER
        """On the reactor's clock: when the peer's certificate ends."""
        self.between = False
        """Nothing is under way: a draining sidecar may close it."""
        self.prefix = b""
        self.fresh = True
        """No response has come on it yet."""
        self.uses = 0
        """Exchanges that it has carried, where they are limited."""
        self.closed = False
        self.doom: TransportError | None = None
        """Why nobody should wait on this connection any more."""
        self.sending = False
        """A sender is part-way through its bytes."""
        self.sent = 0
        self.received = 0
        self.spin = 0
        self._stall: _WriteStall | None = None
        self._life_end: _LifeEnd | None = None
        self._want = READ_BYTES
        self._recv = sock.recv
        self._send = sock.send
        self._sendmsg = sock.sendmsg
        # The batch that brought us here may be long past: connections are not accepted by the reactor.
        reactor.now = trio.current_time()
        reactor.register(self, self.fd)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "ended" if self.ended else "open"
        return f"<{type(self).__name__} fd={self.fd} {state} in={self.received} out={self.sent}>"

    async def read(self) -> bytes:
        """The next bytes; b"" once the peer has cleanly ended.

        Raises PeerReset, DeadlineExceeded, PartnerGone; TLS connections also Truncated and TlsFailed.
        """
        if self.prefix:
            data, self.prefix = self.prefix, b""
            return data
        return await self._read_socket()

    async def read_parts(self) -> list[bytes]:
        """As `read`, without joining what comes in several parts; an empty list is the end."""
        data = await self.read()
        return [data] if data else []

    async def wait_readable(self) -> None:
        """Return once `read` would not wait; takes nothing."""
        if not self.prefix and not self.readable:
            await self._park_reader()

    async def take_turns(self) -> None:
        """Let the others run, if one more piece of work without waiting makes it too much for one turn."""
        self.spin += FAIR_COST
        if self.spin >= FAIR_BYTES:
            self.spin = 0
            await trio.lowlevel.checkpoint()

    def unread(self, data: bytes) -> None:
        """Give back bytes that `read` returned; the next `read` returns them again."""
        self.prefix = data + self.prefix

    async def _read_socket(self) -> bytes:
        while True:
            if not self.readable:
                await self._park_reader()
            elif self.spin >= FAIR_BYTES:
                self.spin = 0
                await trio.lowlevel.checkpoint()
            want = self._want
            try:
                data = self._recv(want)
            except BlockingIOError:
                self.readable = False
                continue
            except OSError as exc:
                raise PeerReset(exc.strerror or "connection error") from exc
            size = len(data)
            if size < want:
                if not size and self.doom is not None:
                    raise self.doom  # after a failed send the kernel reports a reset as an end
                if size <= READ_BYTES:
                    self._want = READ_BYTES
                elif size <= MORE_READ_BYTES:
                    self._want = MORE_READ_BYTES
                if not self.ended:
                    self.readable = False
            else:
                self._want = MORE_READ_BYTES if want == READ_BYTES else BULK_READ_BYTES
            self.received += size
            self.spin += size + FAIR_COST
            return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`; one sender at a time. After an error or a cancellation the connection is done.

        Raises PeerReset, DeadlineExceeded, PartnerGone.
        """
        if self.sending:
            raise trio.BusyResourceError("one sender at a time")
        try:
            n = self._send(data)
        except BlockingIOError:
            n = 0
        except OSError as exc:
            raise self._broken(exc) from exc
        self.sent += n
        if n != len(data):
            await self._write_rest(memoryview(data)[n:])

    async def write_parts(self, parts: list[bytes]) -> None:
        """As `write`, of several parts in one go."""
        if len(parts) == 1:
            await self.write(parts[0])
        else:
            await self._write_several(parts)

    async def _write_several(self, parts: list[bytes]) -> None:
        if self.sending:
            raise trio.BusyResourceError("one sender at a time")
        if len(parts) > MOST_PARTS:
            parts = [b"".join(parts)]
        try:
            n = self._sendmsg(parts)
        except BlockingIOError:
            n = 0
        except OSError as exc:
            raise self._broken(exc) from exc
        self.sent += n
        if n != sum(map(len, parts)):
            await self._write_rest(memoryview(b"".join(parts))[n:])

    async def _write_rest(self, rest: memoryview) -> None:
        stall = self._stall
        if stall is None:
            stall = self._stall = _WriteStall(self)
        self.sending = True
        try:
            while rest:
                self.reactor.set_deadline(stall, self.reactor.now + self.reactor.stall_s)
                await self._park_writer()
                try:
                    n = self._send(rest)
                except BlockingIOError:
                    continue
                except OSError as exc:
                    raise self._broken(exc) from exc
                self.sent += n
                rest = rest[n:]
        finally:
            self.sending = False
            stall.deadline = NEVER

    def _broken(self, exc: OSError) -> PeerReset:
        """The error for a failed send; whoever reads on meets it too, after the bytes that had come."""
        error = PeerReset(exc.strerror or "connection error")
        if self.doom is None:
            self.doom = error
        self.readable = True  # what had come may be there before its event is
        return error

    async def write_eof(self) -> None:
        """End our direction (FIN); reading goes on. Ending twice, or after the peer reset, is no error."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        await trio.lowlevel.cancel_shielded_checkpoint()

    def taken(self) -> tuple[int, int]:
        """How many bytes the peer's system has taken so far, and how many wait for it in ours (SIOCOUTQ)."""
        try:
            waiting = int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except (OSError, ValueError):
            waiting = 0
        return self.sent - waiting, waiting

    async def wait_connected(self) -> None:
        """Wait for a non-blocking connect; raises PeerReset with the reason it failed for."""
        await self._park_writer()
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise PeerReset(os.strerror(code))

    def set_deadline(self, after_s: float) -> None:
        """Bound every wait on this connection to `after_s` seconds from the last batch of events."""
        deadline = self.reactor.now + after_s
        if int(deadline * 100) + 1 < self.queued:
            self.reactor.set_deadline(self, deadline)
        else:
            self.deadline = deadline

    def end_life(self, deadline: float) -> None:
        """Whatever is under way then, nobody waits on this connection after `deadline` (reactor's clock)."""
        if self._life_end is None:
            self._life_end = _LifeEnd(self)
        self.reactor.set_deadline(self._life_end, deadline)

    def on_deadline(self) -> None:
        """Wake who waits, with DeadlineExceeded; an idle connection is dropped."""
        if self.idle_in is not None:
            self.idle_in.drop_idle(self)
        else:
            self._wake(DeadlineExceeded("deadline reached"))

    def interrupt(self, error: TransportError) -> None:
        """Resume the parked reader and sender with `error`; who parks later meets it too."""
        self.doom = error
        self._wake(error)

    def _wake(self, error: TransportError) -> None:
        task = self.reader
        if task is not None:
            self.reader = None
            fail(task, error)
        task = self.writer
        if task is not None:
            self.writer = None
            fail(task, error)

    def bye(self) -> None:
        """Close a connection on which nothing is under way, without waiting."""
        self.close()

    def abort(self) -> None:
        """Close with a reset: what was not delivered is lost, and the peer learns that."""
        if not self.closed:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            except OSError:
                pass
            self.close()

    def close(self) -> None:
        """Close at once. Whoever is parked on the connection is woken with PeerReset."""
        if self.closed:
            return
        self.closed = True
        self.reactor.wheel.forget(self)
        if self._stall is not None:
            self.reactor.wheel.forget(self._stall)
            self._stall = None
        if self._life_end is not None:
            self.reactor.wheel.forget(self._life_end)
            self._life_end = None
        self.idle_in = None
        self.partner = None
        self.reactor.forget(self.fd)
        self.sock.close()
        if self.lease is not None:
            self.lease.closed()
            self.lease = None
        self.interrupt(PeerReset("closed here"))

    async def linger_close(self, wait_s: float = 1.0, limit_s: float = LINGER_S) -> None:
        """End our direction and let the peer read it before the socket goes.

        Closing with unread input would reset the connection and could destroy the last response, so what a
        peer sends on is read: it may look for an answer only behind its whole request (RFC 9112, 9.6).

        Args:
            wait_s: how long it may be silent.
            limit_s: how long it may go on.
        """
        reactor = self.reactor
        last = reactor.now + limit_s
        try:
            self.set_deadline(wait_s)
            await self.write_eof()
            while await self.read() and reactor.now < last:
                self.set_deadline(wait_s)
        except TransportError:
            pass
        finally:
            self.close()

    async def _park_reader(self) -> None:
        if self.doom is not None:
            raise self.doom
        if self.deadline <= self.reactor.now:
            raise DeadlineExceeded("deadline reached")
        if self.reader is not None:
            raise trio.BusyResourceError("one reader at a time")
        self.reader = current_task()
        self.spin = 0
        await wait_task_rescheduled(self._unpark_reader)

    def _unpark_reader(self, _: object) -> Abort:
        self.reader = None
        return Abort.SUCCEEDED

    async def _park_writer(self) -> None:
        if self.writer is not None:
            raise trio.BusyResourceError("one sender at a time")
        if self.doom is not None:
            raise self.doom
        if self.deadline <= self.reactor.now:
            raise DeadlineExceeded("deadline reached")
        self.writer = current_task()
        self.spin = 0
        await wait_task_rescheduled(self._unpark_writer)

    def _unpark_writer(self, _: object) -> Abort:
        self.writer = None
        return Abort.SUCCEEDED
