"""One edge-triggered epoll for every socket of the data path, inside trio.

A socket is registered once, when its connection is made, for every event. One task waits until the epoll
object itself is readable, harvests the events in one call and reschedules the tasks that are parked on the
connections named there. So a wait costs no epoll_ctl and no trio bookkeeping beyond one park.

The reactor also owns the data path's clock: `now` is read once per batch of events, and deadlines come from
one coarse wheel.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

import trio
from outcome import Error
from trio.lowlevel import reschedule, wait_readable

from mesh_proxy.base.errors import PartnerGone
from mesh_proxy.net.wheel import Timed, Wheel

if TYPE_CHECKING:
    from mesh_proxy.net.conn import Conn

_EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
BROKEN = select.EPOLLHUP | select.EPOLLERR
_RESET = select.EPOLLERR
"""Not HUP: that also comes once both directions have ended as they should."""
_ENDED = BROKEN | select.EPOLLRDHUP | select.EPOLLPRI
_READ = _ENDED | select.EPOLLIN | select.EPOLLPRI
_WRITE = BROKEN | select.EPOLLOUT
_BATCH = 512


class Reactor:
    """Waits for all connections; see the module docstring. One per process, closed after its tasks."""

    def __init__(self, stall_s: float = 3600.0) -> None:
        """`stall_s`: how long a peer may take no byte of what is sent to it."""
        self.epoll = select.epoll()
        self.stall_s = stall_s
        self.conns: dict[int, Conn] = {}
        self.wheel = Wheel()
        self.now = 0.0
        self._sleeper = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve events and deadlines until cancelled."""
        self.now = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_wheel)
                task_status.started()
                await self._run_events()
        finally:
            for conn in list(self.conns.values()):
                if conn.idle_in is not None:
                    conn.idle_in.drop_idle(conn)
            self.epoll.close()

    def register(self, conn: Conn, fd: int) -> None:
        """Start to report the events of `fd` to `conn`. Raises OSError, also once `run` has ended."""
        try:
            self.epoll.register(fd, _EVENTS)
        except ValueError:
            raise OSError(errno.ECANCELED, "the sidecar has stopped") from None
        self.conns[fd] = conn

    def forget(self, fd: int) -> None:
        """Stop reporting; the caller closes `fd`, which takes it out of the epoll object."""
        self.conns.pop(fd, None)

    def set_deadline(self, item: Timed, deadline: float) -> None:
        """Call `item.on_deadline` soon after `deadline`; NEVER clears it."""
        if self.wheel.set(item, deadline):
            self._sleeper.deadline = self.wheel.next_due()

    async def _run_events(self) -> None:
        epoll = self.epoll
        poll = epoll.poll
        fd = epoll.fileno()
        get = self.conns.get
        while True:
            await wait_readable(fd)
            self.now = trio.current_time()
            while True:
                events = poll(0, _BATCH)
                for sock_fd, event in events:
                    conn = get(sock_fd)
                    if conn is None:
                        continue
                    if event & _READ:
                        conn.readable = True
                        task = conn.reader
                        if event & _ENDED:
                            conn.ended |= event & _ENDED
                        if task is not None:
                            conn.reader = None
                            reschedule(task)
                        elif conn.idle_in is not None:
                            conn.idle_in.drop_idle(conn)
                        elif event & _RESET and conn.partner is not None:
                            conn.partner.interrupt(PartnerGone("the peer reset the connection"))
                    if event & _WRITE:
                        task = conn.writer
                        if task is not None:
                            conn.writer = None
                            reschedule(task)
                if len(events) < _BATCH:
                    break

    async def _run_wheel(self) -> None:
        while True:
            with trio.CancelScope(deadline=self.wheel.next_due()) as self._sleeper:
                await trio.sleep_forever()
            self.now = now = trio.current_time()
            for item in self.wheel.due(now):
                item.on_deadline()


def fail(task: trio.lowlevel.Task, error: BaseException) -> None:
    """Resume a parked task with an error."""
    reschedule(task, Error(error))
