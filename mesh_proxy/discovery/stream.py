"""The sidecar's end of the discovery stream: connects, asks for what the store wants, and feeds it.

Whatever happens here, the data path goes on with what the store holds. A stream that breaks is followed by
the next, with growing waits; the control plane is told what is held, and sends the differences.
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import trio

from certs.credentials import Credentials, Holder
from certs.framing import FrameError, read_frame, write_frame
from certs.verify import PeerRejected, peer_identity
from mesh_api.discovery import (
    ALPN_DISCOVERY,
    MAX_FRAME_BYTES,
    SILENT_S,
    Applied,
    FromControl,
    FromSidecar,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Subscribe,
    Unsubscribe,
    Update,
    Welcome,
    decode_from_control,
    encode_message,
)
from mesh_api.sidecar import ConfigError
from mesh_proxy.discovery.store import StreamStore
from mesh_proxy.telemetry.stats import ProxyStats

RESOLVE_S = 5.0
CONNECT_S = 3.0
HANDSHAKE_S = 10.0
WELCOME_S = 25.0
SEND_S = 20.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
MOVE_S = 1.0
"""Sidecars that are sent to another replica come back spread over so long."""
STEADY_S = 5.0
"""A stream that held so long was a good one: the next wait is short again."""
MAX_ADDRESSES = 32


class Target(NamedTuple):
    """One address of the control plane."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


Resolve = Callable[[str, int], Awaitable[Sequence[Target]]]
OnEvent = Callable[[str, str, Mapping[str, object]], None]
"""Called with a log level, an event name and its fields."""


class StreamError(Exception):
    """The stream could not be made, or has ended; the message says why.

    `moving`: nothing is wrong, come back soon and elsewhere.
    """

    def __init__(self, reason: str, *, moving: bool = False) -> None:
        super().__init__(reason)
        self.moving = moving


class Resolver:
    """Names to addresses, in threads of its own: a name server that does not answer stops nobody else."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(2)

    async def __call__(self, host: str, port: int) -> Sequence[Target]:
        """The addresses of `host`. Raises StreamError."""
        try:
            return [Target(str(ipaddress.ip_address(host)), port)]
        except ValueError:
            pass
        try:
            with trio.fail_after(RESOLVE_S):
                found = await trio.to_thread.run_sync(
                    lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
                    abandon_on_cancel=True,
                    limiter=self._threads,
                )
        except trio.TooSlowError:
            raise StreamError(f"{host}: no address within {RESOLVE_S:g} s") from None
        except (OSError, UnicodeError) as exc:
            raise StreamError(f"{host}: {getattr(exc, 'strerror', None) or exc}") from None
        targets = dict.fromkeys(Target(str(info[4][0]), port) for info in found)
        return list(targets)[:MAX_ADDRESSES]


class DiscoveryStream:
    """Keeps one stream to the control plane, for as long as it runs."""

    def __init__(
        self,
        address: tuple[str, int],
        control_identity: str,
        trust_domain: str,
        hello: Hello,
        holder: Holder,
        store: StreamStore,
        stats: ProxyStats,
        rng: random.Random,
        on_event: OnEvent,
        resolve: Resolve | None = None,
    ) -> None:
        """`control_identity` is exactly whom to trust with the discovery of this sidecar."""
        self._address = address
        self._control_identity = control_identity
        self._trust_domain = trust_domain
        self._hello = hello
        self._holder = holder
        self._store = store
        self._stats = stats
        self._rng = rng
        self._on_event = on_event
        self._resolve = resolve or Resolver()
        self._writing = trio.Lock()
        self._left: Target | None = None
        """Where this sidecar was sent away from."""
        self.connected_to = ""
        self.replica = ""
        self.last_update: float | None = None
        """On trio's clock."""
        self.problem = "not connected yet"
        """Why there is no stream; empty while there is one."""

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        await self._holder.wait_ready()
        attempt = 0
        while True:
            began = trio.current_time()
            try:
                await self._connect_and_follow()
            except StreamError as exc:
                ended = exc
            except Exception as exc:  # a defect here must not take the data path with it
                ended = StreamError(f"a defect of this sidecar: {_innermost(exc)!r}")
            self.problem = str(ended)
            if trio.current_time() - began > STEADY_S:
                attempt = 0
            wait = self._wait(attempt, ended.moving)
            attempt += 1
            level = "info" if ended.moving else "warning"
            self._on_event(level, "discovery lost", {"reason": str(ended), "retry_in_s": round(wait, 3)})
            await trio.sleep(wait)

    def status(self) -> dict[str, object]:
        """For the admin page."""
        now = trio.current_time()
        return {
            "control_plane": f"{self._address[0]}:{self._address[1]}",
            "connected_to": self.connected_to or None,
            "replica": self.replica or None,
            "problem": self.problem or None,
            "last_update_s_ago": None if self.last_update is None else round(now - self.last_update, 3),
            **self._store.status(),
        }

    def _wait(self, attempt: int, moving: bool) -> float:
        if moving:
            return self._rng.uniform(0, MOVE_S)
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt, 16))
        return longest * self._rng.uniform(0.5, 1.0)

    async def _connect_and_follow(self) -> None:
        """One stream from its beginning to its end, which is always a StreamError."""
        targets = list(await self._resolve(*self._address))
        self._rng.shuffle(targets)
        targets.sort(key=lambda target: target == self._left)
        problems = []
        for target in targets:
            try:
                stream = await self._open(target)
            except StreamError as exc:
                problems.append(f"{target}: {exc}")
                continue
            try:
                replica = await self._greet(stream)
                self._connected(target, replica)
                self._left = None
                await self._follow(stream)
            except StreamError as exc:
                if self.connected_to:
                    self._left = target if exc.moving else None
                    raise StreamError(f"{target}: {exc}", moving=exc.moving) from None
                problems.append(f"{target}: {exc}")
            finally:
                self._disconnected()
                await trio.aclose_forcefully(stream)
        raise StreamError("; ".join(problems)[:1000] or f"{self._address[0]}: no address")

    def _connected(self, target: Target, replica: Welcome) -> None:
        self.connected_to, self.replica, self.problem = str(target), replica.replica, ""
        self._stats.discovery_connected.set(1)
        self._on_event("info", "discovery connected", {"to": str(target), "replica": replica.replica})

    def _disconnected(self) -> None:
        self.connected_to = self.replica = ""
        self._stats.discovery_connected.set(0)

    # -- one stream ----------------------------------------------------------------------------------------

    async def _open(self, target: Target) -> trio.SSLStream[trio.SocketStream]:
        """A TLS stream to exactly the control plane; nothing has been sent on it."""
        credentials = self._holder.current
        if credentials is None:
            raise StreamError("this sidecar has no certificate yet")
        transport = await _dial(target)
        tls = trio.SSLStream(transport, credentials.client[ALPN_DISCOVERY], server_side=False)
        try:
            with trio.fail_after(HANDSHAKE_S):
                await tls.do_handshake()
            self._check(tls, credentials)
        except trio.TooSlowError:
            await trio.aclose_forcefully(tls)
            raise StreamError(f"no TLS handshake within {HANDSHAKE_S:g} s") from None
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(tls)
            raise StreamError(f"TLS: {_reason(exc)}") from None
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        return tls

    def _check(self, tls: trio.SSLStream[trio.SocketStream], credentials: Credentials) -> None:
        if tls.selected_alpn_protocol() != ALPN_DISCOVERY:
            raise StreamError(f"expected ALPN {ALPN_DISCOVERY}, got {tls.selected_alpn_protocol()}")
        try:
            peer = peer_identity(tls.getpeercert(), credentials.trust_domain)
        except PeerRejected as exc:
            raise StreamError(str(exc)) from None
        if peer.identity != self._control_identity:
            raise StreamError(f"expected {self._control_identity}, the peer is {peer.identity}")

    async def _greet(self, stream: trio.abc.Stream) -> Welcome:
        await self._say(stream, self._hello)
        message = await self._hear(stream, WELCOME_S)
        if isinstance(message, Goodbye):
            raise StreamError(f"refused: {message.reason}", moving=message.moving)
        if not isinstance(message, Welcome):
            raise StreamError(f"expected welcome, got {type(message).__name__.lower()}")
        return message

    async def _follow(self, stream: trio.abc.Stream) -> None:
        """Ask and apply until the stream ends."""
        failure: StreamError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask, stream, nursery.cancel_scope)
            try:
                while True:
                    await self._take(stream, await self._hear(stream, SILENT_S))
            except StreamError as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        raise failure or StreamError("cannot send")

    async def _ask(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        try:
            keys, holds = self._store.everything()
            await self._say(stream, Subscribe(keys, holds))
            while True:
                await self._store.wait_requests()
                subscribe, unsubscribe = self._store.take_requests()
                if unsubscribe:
                    await self._say(stream, Unsubscribe(unsubscribe))
                if subscribe:
                    await self._say(stream, Subscribe(subscribe))
        except StreamError:
            scope.cancel()

    async def _take(self, stream: trio.abc.Stream, message: FromControl) -> None:
        if isinstance(message, Update):
            await self._say(stream, Applied(message.nonce, self._apply(message)))
        elif isinstance(message, Ping):
            await self._say(stream, Pong())
        elif isinstance(message, Goodbye):
            raise StreamError(message.reason[:500], moving=message.moving)
        else:
            raise StreamError("expected one welcome, at the beginning")

    def _apply(self, update: Update) -> str:
        """Put an update in force; returns what is wrong with it, empty for nothing."""
        try:
            self._store.apply(update)
        except ConfigError as exc:
            self._stats.config_updates.child("rejected").value += 1
            fields = {
                "path": exc.path,
                "expected": exc.expected,
                "consequence": "the last good one stays in force",
            }
            self._on_event("error", "configuration refused", fields)
            return f"{exc.path}: {exc.expected}"[:1000]
        self._stats.config_updates.child("accepted").value += 1
        self.last_update = trio.current_time()
        return ""

    async def _hear(self, stream: trio.abc.Stream, within_s: float) -> FromControl:
        try:
            with trio.fail_after(within_s):
                frame = await read_frame(stream, MAX_FRAME_BYTES)
            return decode_from_control(frame)
        except trio.TooSlowError:
            raise StreamError(f"nothing heard for {within_s:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as exc:
            raise StreamError(_reason(exc)) from None
        except ValueError as exc:
            raise StreamError(str(exc)[:500]) from None

    async def _say(self, stream: trio.abc.Stream, message: FromSidecar) -> None:
        try:
            with trio.fail_after(SEND_S):
                async with self._writing:
                    await write_frame(stream, encode_message(message), MAX_FRAME_BYTES)
        except trio.TooSlowError:
            raise StreamError(f"nothing could be sent for {SEND_S:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as exc:
            raise StreamError(_reason(exc)) from None


async def _dial(target: Target) -> trio.SocketStream:
    family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        with trio.fail_after(CONNECT_S):
            await sock.connect((target.ip, target.port))
        return trio.SocketStream(sock)
    except trio.TooSlowError:
        sock.close()
        raise StreamError(f"no connection within {CONNECT_S:g} s") from None
    except OSError as exc:
        sock.close()
        raise StreamError(exc.strerror or str(exc)) from None
    except BaseException:
        sock.close()
        raise


def _innermost(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _reason(exc: BaseException) -> str:
    """What broke a stream: trio wraps the error that says it."""
    cause = exc.__cause__ or exc
    return str(
        getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or cause or "closed"
    )[:300]
