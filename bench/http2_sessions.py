"""What HTTP/2 sessions alone cost: `python -m bench.http2_sessions [ENGINE ...]`.

A server process answers, a client process asks: 8 connections with 10 streams each over loopback, without any
proxy code. What both ends cost together is what one hop cannot cost less than.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import trio

from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.server import ServerSession
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.wire.http2.engines import NAMES, load
from mesh_proxy.wire.http2.seam import Http2Limits, RequestFields

CONNECTIONS = 8
STREAMS = 10
WARM_UP_S = 0.5
MEASURE_S = 3.0
BODY = b"hello, world\n"
BLOCK = b"content-type: text/plain\r\ncontent-length: 13\r\n"
HEAD = RequestFields(b"GET", b"http", b"/", b"", b"host: bench\r\nuser-agent: bench\r\naccept: */*\r\n")


async def answer(stream: ServerStream) -> None:
    """Serve one request."""
    stream.respond(200, BLOCK)
    await stream.write(BODY, end=True)


async def serve(engine: str) -> None:
    """Serve until stdin ends; the port is told on stdout."""
    make = load(engine).make
    reactor, budget, settings, limits = Reactor(), Budget(), SessionSettings(), Http2Limits()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        print(listener.getsockname()[1], flush=True)

        async def accept() -> None:
            while True:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                session = ServerSession(Conn(reactor, sock), make(True, limits), settings, budget, limits)
                nursery.start_soon(session.run, answer)

        nursery.start_soon(accept)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


class Load:
    """Asks on every stream as soon as the last answer has come."""

    def __init__(self) -> None:
        self.done = 0

    async def one(self, session: ClientSession) -> None:
        """One stream after the other."""
        while True:
            stream = session.open(HEAD, True)
            await stream.response()
            while await stream.read():
                pass
            stream.close()
            self.done += 1


async def ask(engine: str, port: int, server: int) -> tuple[float, float, float]:
    """Requests a second, and CPU microseconds a request of client and server."""
    make = load(engine).make
    reactor, budget, settings, limits = Reactor(), Budget(), SessionSettings(), Http2Limits()
    load_ = Load()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        for _ in range(CONNECTIONS):
            with socket.socket() as plain:
                plain.connect(("127.0.0.1", port))
                plain.setblocking(False)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock = socket.socket(fileno=plain.detach())
            session = ClientSession(Conn(reactor, sock), make(False, limits), settings, budget, limits)
            nursery.start_soon(session.run)
            for _ in range(STREAMS):
                nursery.start_soon(load_.one, session)
        await trio.sleep(WARM_UP_S)
        done, own, other, started = load_.done, time.process_time(), cpu_s(server), trio.current_time()
        await trio.sleep(MEASURE_S)
        done = load_.done - done
        own, other = time.process_time() - own, cpu_s(server) - other
        seconds = trio.current_time() - started
        nursery.cancel_scope.cancel()
    return done / seconds, own * 1e6 / done, other * 1e6 / done


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        after = file.read().rpartition(")")[2].split()
    return (int(after[11]) + int(after[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str]) -> None:
    """Measure the engines that are named, or all."""
    if arguments[:1] == ["serve"]:
        trio.run(serve, arguments[1])
        return
    for engine in arguments or NAMES:
        command = [sys.executable, "-m", "bench.http2_sessions", "serve", engine]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            port = int(process.stdout.readline())
            rate, client, server = trio.run(ask, engine, port, process.pid)
            process.stdin.close()
        print(
            f"{engine}: {rate:.0f} requests/s; CPU a request: client {client:.1f} us, server {server:.1f} us"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
