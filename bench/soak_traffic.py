"""The mixed traffic of a soak: each kind is an endless task, and every byte that comes back is compared."""

from __future__ import annotations

import base64
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import h11
import trio

from bench.load import parse_h2load
from bench.net import get_bytes
from bench.origin import BULK, MEDIUM, SIZES, SMALL, body
from bench.procs import BenchError, output
from bench.soak_apps import SERVICE, Stopped, next_event
from bench.soak_config import GRPC, HTTP2, SHORT, STREAMS, TCP

Step = Callable[[], Awaitable[None]]
_REQUEST_S = 20.0
_LONGEST_S = 30.0
"""Of a WebSocket or an opaque connection."""
_H2_S = 5


@dataclass
class Totals:
    """What the traffic did."""

    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


async def exchange(stream: trio.SocketStream, path: str, read: int | None = None) -> None:
    """One GET; every byte of the answer is compared. With `read`, stop after that many bytes."""
    await stream.send_all(get_bytes(path))
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += await _some(stream)
    if not data.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"expected status 200, got {bytes(data[:400])!r}")
    del data[: end + 4]
    if read is not None:
        while len(data) < read:
            data += await _some(stream)
        return
    while len(data) < SIZES[path]:
        data += await _some(stream)
    if data != body(path):
        raise BenchError("the body is not what the origin sent")


async def _some(stream: trio.SocketStream) -> bytes | bytearray:
    data = await stream.receive_some(1 << 20)
    if not data:
        raise BenchError("the connection ended before the end of the answer")
    return data


class Traffic:
    """The mix. Every kind pauses a little between its steps."""

    def __init__(self, port: int, directory: Path, totals: Totals, rng: random.Random) -> None:
        self.port = port
        self.directory = directory
        self.totals = totals
        self.rng = rng
        self.stopped = Stopped()

    async def run(self) -> None:
        """All kinds until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(self._kept)
            for _ in range(2):
                nursery.start_soon(self._repeat, "new", self._new, 0.05)
                nursery.start_soon(self._repeat, "aborted", self._aborted, 0.1)
                nursery.start_soon(self._repeat, "stream", self._stream, 0.2)
                nursery.start_soon(self._long, "websocket", self._websocket)
                nursery.start_soon(self._long, "tcp", self._tcp)
            nursery.start_soon(self._repeat, "bulk", self._bulk, 0.5)
            nursery.start_soon(self._http2, SMALL, "-c2", "-m10", "--rps=40", f"-D{_H2_S}")
            nursery.start_soon(self._http2, BULK, "-c1", "-m2", "-n4")
            try:
                await trio.to_thread.run_sync(self._grpc, abandon_on_cancel=True)
            finally:
                self.stopped.set()

    async def _connect(self, destination: int) -> trio.SocketStream:
        return await trio.open_tcp_stream(f"127.0.0.{destination}", self.port)

    async def _repeat(self, kind: str, step: Step, pause_s: float) -> None:
        while True:
            await self._counted(kind, step)
            await trio.sleep(pause_s * (0.5 + self.rng.random()))

    async def _counted(self, kind: str, step: Step) -> bool:
        try:
            with trio.fail_after(_REQUEST_S):
                await step()
        except (BenchError, OSError, trio.TooSlowError, trio.BrokenResourceError, h11.ProtocolError) as exc:
            self.totals.failed[f"{kind}: {str(exc) or type(exc).__name__}"] += 1
            return False
        self.totals.done[kind] += 1
        return True

    # HTTP/1.1.

    async def _kept(self) -> None:
        while True:
            async with await self._connect(SHORT) as stream:
                for turn in itertools.count():
                    path = MEDIUM if turn % 20 == 19 else SMALL
                    if not await self._counted("kept", lambda: exchange(stream, path)):  # noqa: B023
                        break
                    await trio.sleep(0.02 * self.rng.random())

    async def _new(self) -> None:
        async with await self._connect(SHORT) as stream:
            await exchange(stream, SMALL)

    async def _bulk(self) -> None:
        async with await self._connect(SHORT) as stream:
            await exchange(stream, BULK)

    async def _aborted(self) -> None:
        """Go away within the request, before the answer, or within the body."""
        async with await self._connect(SHORT) as stream:
            match self.rng.randrange(3):
                case 0:
                    await stream.send_all(get_bytes(SMALL)[:20])
                case 1:
                    await stream.send_all(get_bytes(BULK))
                case _:
                    await exchange(stream, BULK, self.rng.randrange(1, 1_000_000))

    async def _stream(self) -> None:
        """A chunked body that comes back while it is sent."""
        parts = [self.rng.randbytes(self.rng.randrange(1, 40_000)) for _ in range(10)]
        conn = h11.Connection(h11.CLIENT)
        async with await self._connect(STREAMS) as stream:
            head = h11.Request(
                method="POST", target="/echo", headers=[("host", "d4"), ("transfer-encoding", "chunked")]
            )
            await stream.send_all(conn.send(head) or b"")
            got = bytearray()
            sent = 0
            for part in parts:
                await stream.send_all(conn.send(h11.Data(part)) or b"")
                sent += len(part)
                while len(got) < sent:
                    event = await next_event(conn, stream)
                    if isinstance(event, h11.Response) and event.status_code != 200:
                        raise BenchError(f"expected status 200, got {event.status_code}")
                    got += event.data if isinstance(event, h11.Data) else b""
            await stream.send_all(conn.send(h11.EndOfMessage()) or b"")
            if not isinstance(await next_event(conn, stream), h11.EndOfMessage) or got != b"".join(parts):
                raise BenchError("the body did not come back as it was sent")

    # Streams of bytes that live through many configurations.

    async def _long(self, kind: str, open_stream: Callable[[], Awaitable[trio.SocketStream]]) -> None:
        while True:
            streams: list[trio.SocketStream] = []

            async def opened() -> None:
                streams.append(await open_stream())  # noqa: B023

            if not await self._counted(f"{kind} opened", opened):
                await trio.sleep(0.5)
                continue
            (stream,) = streams
            until = trio.current_time() + _LONGEST_S * self.rng.random()
            async with stream:
                while trio.current_time() < until:
                    if not await self._counted(kind, lambda: self._ping(stream)):  # noqa: B023
                        break
                    await trio.sleep(0.1 * self.rng.random())

    async def _tcp(self) -> trio.SocketStream:
        return await self._connect(TCP)

    async def _websocket(self) -> trio.SocketStream:
        stream = await self._connect(STREAMS)
        key = base64.b64encode(self.rng.randbytes(16)).decode()
        lines = ("Host: d4", "Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {key}")
        head = "\r\n".join(("GET /chat HTTP/1.1", *lines, "Sec-WebSocket-Version: 13", "", ""))
        await stream.send_all(head.encode())
        data = bytearray()
        while not data.endswith(b"\r\n\r\n"):
            data += await _some(stream)
        if not data.startswith(b"HTTP/1.1 101"):
            raise BenchError(f"expected status 101, got {bytes(data[:400])!r}")
        return stream

    async def _ping(self, stream: trio.SocketStream) -> None:
        message = self.rng.randbytes(self.rng.randrange(1, 20_000))
        await stream.send_all(message)
        data = bytearray()
        while len(data) < len(message):
            data += await _some(stream)
        if data != message:
            raise BenchError("other bytes came back than were sent")

    # HTTP/2.

    async def _http2(self, path: str, *options: str) -> None:
        log = self.directory / f"h2load{path.replace('/', '-')}.log"
        command = ["h2load", *options, f"--log-file={log}", f"http://127.0.0.{HTTP2}:{self.port}{path}"]
        while True:
            try:
                result = parse_h2load(await output(command, _H2_S + _REQUEST_S), log.read_text())
                self.totals.done[f"http2 {path}"] += result.requests
            except BenchError as exc:
                self.totals.failed[f"http2 {path}: {exc}"] += 1
            log.unlink(missing_ok=True)
            await trio.sleep(0.5)

    def _grpc(self) -> None:
        rng = random.Random(self.rng.randbytes(8))
        with grpc.insecure_channel(f"127.0.0.{GRPC}:{self.port}") as channel:
            unary = channel.unary_unary(f"/{SERVICE}/unary")
            stream = channel.stream_stream(f"/{SERVICE}/stream")
            while not self.stopped.wait(0.01):
                parts = [rng.randbytes(rng.randrange(20_000)) for _ in range(20)]
                try:
                    for part in parts:
                        if unary(part, timeout=_REQUEST_S) != part:
                            raise BenchError("another message came back than was sent")
                        self.totals.done["grpc unary"] += 1
                    if list(stream(iter(parts), timeout=_REQUEST_S)) != parts:
                        raise BenchError("other messages came back than were sent")
                    self.totals.done["grpc stream"] += 1
                except grpc.RpcError as exc:
                    self.totals.failed[f"grpc: {exc.code().name} {exc.details()}"] += 1
                except BenchError as exc:
                    self.totals.failed[f"grpc: {exc}"] += 1
