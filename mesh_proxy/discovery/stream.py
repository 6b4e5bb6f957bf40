"""The sidecar's end of the discovery stream: connects, asks for what the store wants, and feeds it.

Whatever happens here, the data path goes on with what the store holds. A stream that breaks is followed by
the next, with growing waits; the control plane is told what is held, and sends the differences.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from certs.credentials import Credentials, Holder
from certs.framing import FrameError, read_frame, write_frame
from certs.verify import PeerRejected, peer_identity
from mesh_api.discovery import (
    ALPN_DISCOVERY,
    MAX_FRAME_BYTES,
    REPORT_S,
    SILENT_S,
    Applied,
    Ask,
    FromControl,
    FromSidecar,
    Goodbye,
    Hello,
    Page,
    Ping,
    Pong,
    Report,
    Subscribe,
    Unsubscribe,
    Update,
    Welcome,
    decode_from_control,
    encode_message,
)
from mesh_api.sidecar import ConfigError
from mesh_proxy.discovery.answers import Answers, Handler
from mesh_proxy.discovery.dial import Resolve, Resolver, StreamError, Target, dial
from mesh_proxy.discovery.store import StreamStore
from mesh_proxy.telemetry.stats import ProxyStats

HANDSHAKE_S = 10.0
WELCOME_S = 25.0
SEND_S = 20.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
MOVE_S = 1.0
LAST_REPORT_S = 1.0
"""Sidecars that are sent to another replica come back spread over so long."""
STEADY_S = 5.0
"""A stream that held so long was a good one: the next wait is short again."""


T = TypeVar("T")
OnEvent = Callable[[str, str, Mapping[str, object]], None]
"""Called with a log level, an event name and its fields."""
TakeReport = Callable[[float], Report]
"""What was counted since the last call, so many seconds ago."""


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
        pages: Mapping[Page, Handler] | None = None,
        take_report: TakeReport = Report,
    ) -> None:
        """`control_identity` is exactly whom to trust with the discovery of this sidecar.

        `pages` is what the control plane can ask, and `take_report` what it is told about every REPORT_S.
        """
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
        self._pages = pages if pages is not None else {}
        self._take_report = take_report
        self._writing = trio.Lock()
        self._reported_at = trio.current_time()
        self._live: trio.abc.Stream | None = None
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
        transport = await dial(target)
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
        """Ask, answer, report and apply until the stream ends."""
        failure: StreamError | None = None

        async def say(message: FromSidecar) -> None:
            await self._say(stream, message)

        answers = Answers(self._pages, say)
        async with trio.open_nursery() as nursery:

            async def alongside(work: Callable[[T], Awaitable[None]], of: T) -> None:
                try:
                    await work(of)
                except StreamError:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(alongside, self._ask, stream)
            nursery.start_soon(alongside, self._report, stream)
            self._live = stream
            try:
                while True:
                    message = await self._hear(stream, SILENT_S)
                    if not isinstance(message, Ask):
                        await self._take(stream, message)
                    elif answers.admit():
                        nursery.start_soon(alongside, answers.answer, message)
                    else:
                        await answers.refuse(message)
            except StreamError as exc:
                failure = exc
            finally:
                self._live = None
            nursery.cancel_scope.cancel()
        raise failure or StreamError("cannot send")

    async def _ask(self, stream: trio.abc.Stream) -> None:
        keys, holds = self._store.everything()
        await self._say(stream, Subscribe(keys, holds))
        while True:
            await self._store.wait_requests()
            subscribe, unsubscribe = self._store.take_requests()
            if unsubscribe:
                await self._say(stream, Unsubscribe(unsubscribe))
            if subscribe:
                await self._say(stream, Subscribe(subscribe))

    async def last_report(self) -> None:
        """Say what was counted since the last report, before the process ends."""
        if self._live is not None:
            with trio.move_on_after(LAST_REPORT_S):
                try:
                    await self._report_once(self._live)
                except StreamError:
                    pass  # nobody is there to be told

    async def _report(self, stream: trio.abc.Stream) -> None:
        while True:
            await trio.sleep(REPORT_S * self._rng.uniform(0.8, 1.2))
            await self._report_once(stream)

    async def _report_once(self, stream: trio.abc.Stream) -> None:
        now = trio.current_time()
        span, self._reported_at = now - self._reported_at, now
        try:
            report = self._take_report(span)
        except Exception as exc:  # a defect there must not end the stream
            self._on_event("error", "report failed", {"error": repr(exc)})
        else:
            await self._say(stream, report)

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
