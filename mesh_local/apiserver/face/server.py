"""Connections: TLS with optional client certificates, HTTP/1.1 by hypercorn's protocol, on trio.

Hypercorn's own server does not tell the application who the TLS peer is, so the connections are ours; its
HTTP/1.1 state machine and application tasks do the rest.
"""

import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http.client import responses
from pathlib import Path
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError, H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import EventWrapper, TrioSingleTask, WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from mesh_local.apiserver.face.app import App

MAX_CONNECTIONS = 500  # half of the usual limit on open files
MAX_HEAD = 64 * 1024
RECEIVE = 64 * 1024
HANDSHAKE_S = 10.0
IDLE_S = 120.0
SEND_S = 30.0
UNREAD = 8
GRACE_S = 3.0
_log = logging.getLogger(__name__)


def server_context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, HTTP/1.1 only; a client certificate is optional, but must be from `client_ca`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


class Server:
    """Serves one application on any number of listeners.

    Args:
        context: see `server_context`.

    Attributes:
        connections: how many are open.
    """

    def __init__(self, app: App, context: ssl.SSLContext, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self._app = app
        self._context = context
        self._max = max_connections
        self.connections = 0
        self._worker = WorkerContext(None)
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = IDLE_S
        self._config.h11_max_incomplete_size = MAX_HEAD
        self._config.max_app_queue_size = RECEIVE  # more than one read can hold; `_until_taken` is the bound

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        stop: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop`; then idle connections end at once, the others have a moment to finish.

        The listeners are closed. Whoever sets `stop` ends the watches (`Store.end_watches`).
        """
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(
                        trio.serve_listeners,
                        self._serve,
                        list(listeners),
                        handler_nursery=connections,
                    )
                )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await self._worker.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + GRACE_S

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection, whose failures concern nobody else."""
        if self.connections >= self._max:
            await trio.aclose_forcefully(stream)
            return
        self.connections += 1
        try:
            secure = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
            await _Connection(self._app, self._config, self._worker, secure).run()
        except Exception:
            _log.exception("a connection failed")
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)


class _Gone(Exception):
    """The client left while its next request waited for the response to the one before."""


class _Turn(EventWrapper):
    """What hypercorn waits for between pipelined requests; meanwhile `notice` reads on.

    Args:
        notice: returns when the client is gone.
    """

    def __init__(self, notice: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._notice = notice

    async def wait(self) -> None:
        """Raises _Gone."""
        gone = False

        async def watch_client() -> None:
            nonlocal gone
            await self._notice()
            gone = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_client)
            await super().wait()
            nursery.cancel_scope.cancel()
        if gone:
            raise _Gone


class _Protocol(H11Protocol):
    """Adds the reason phrases that hypercorn leaves out; clients show them to users."""

    async def _send_h11_event(self, event: Any) -> None:
        if isinstance(event, h11.Response) and not event.reason:
            reason = responses.get(event.status_code, "").encode()
            event = h11.Response(status_code=event.status_code, headers=event.headers, reason=reason)
        await super()._send_h11_event(event)


class _Connection:
    """One TLS connection with its HTTP/1.1 protocol."""

    def __init__(
        self, app: App, config: Config, worker: WorkerContext, stream: trio.SSLStream[trio.SocketStream]
    ) -> None:
        self._app = app
        self._config = config
        self._worker = worker
        self._stream = stream
        self._sending = trio.Lock()
        self._idle = TrioSingleTask()
        self._certificate: bytes | None = None
        self._waiting: trio.MemoryReceiveChannel[Any] | None = None
        self._taken = trio.Event()

    async def run(self) -> None:
        socket = self._stream.transport_stream.socket
        try:
            peer = parse_socket_addr(socket.family, socket.getpeername())
            with trio.fail_after(HANDSHAKE_S):
                await self._stream.do_handshake()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            return  # nobody there who speaks TLS with us
        # The TLS layer has verified it against our CA.
        self._certificate = self._stream.getpeercert(binary_form=True)
        async with TaskGroup() as self._tasks:
            self._protocol = _Protocol(
                self._respond,
                self._config,
                self._worker,
                self._tasks,
                ConnectionState({}),
                True,
                peer,
                parse_socket_addr(socket.family, socket.getsockname()),
                self._send,
            )
            self._protocol.can_read = _Turn(self._until_gone)
            try:
                await self._protocol.initiate()
                await self._idle.restart(self._tasks, self._close_when_idle)
                await self._read()
            except (H2ProtocolAssumedError, H2CProtocolRequiredError):
                pass  # HTTP/2 is not offered
            except _Gone:
                await self._protocol.handle(Closed())
            finally:
                await self._close()
                await self._idle.stop()

    async def _respond(self, scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any) -> None:
        """The application as hypercorn calls it."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        self._waiting = receive.__self__

        async def noting() -> Any:
            message = await receive()
            self._taken.set()
            return message

        try:
            await self._app.serve(scope, noting, send, self._certificate)
        finally:
            self._waiting = None
            self._taken.set()

    async def _read(self) -> None:
        data = b"first"
        while data:
            try:
                data = bytes(await self._stream.receive_some(RECEIVE))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            await self._protocol.handle(RawData(data) if data else Closed())
            await self._until_taken()

    async def _until_gone(self) -> None:
        """Keep what else the client sends ahead, within bounds, until it leaves."""
        ahead = 0
        while ahead <= MAX_HEAD:
            try:
                data = bytes(await self._stream.receive_some(RECEIVE))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            ahead += len(data)
            self._protocol.connection.receive_data(data)

    async def _until_taken(self) -> None:
        """Read no further while the application leaves much of the body unread.

        Hypercorn would block on its queue instead, also when the application has already answered.
        """
        while self._waiting is not None and self._waiting.statistics().current_buffer_used > UNREAD:
            self._taken = trio.Event()
            await self._taken.wait()

    async def _send(self, event: Event) -> None:
        """What the protocol wants done with the connection."""
        if isinstance(event, RawData):
            async with self._sending:
                try:
                    with trio.fail_after(SEND_S):
                        await self._stream.send_all(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                    await self._close()
                    await self._protocol.handle(Closed())
        elif isinstance(event, Closed):
            await self._close()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            if event.idle:
                await self._idle.restart(self._tasks, self._close_when_idle)
            else:
                await self._idle.stop()

    async def _close_when_idle(self) -> None:
        with trio.move_on_after(self._config.keep_alive_timeout):
            await self._worker.terminated.wait()
        await self._close()

    async def _close(self) -> None:
        """Close TLS within a moment, then the connection in any case."""
        with trio.move_on_after(1), contextlib.suppress(trio.BusyResourceError):
            await self._stream.aclose()
        await trio.aclose_forcefully(self._stream.transport_stream)
