"""Load generators that run as processes of their own: `python -m bench.clients COMMAND`, JSON on stdout.

Times are those of the machine's monotonic clock, so that results of two processes can be compared.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import selectors
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import Generator
from time import perf_counter

import click
import msgspec

from bench.net import get_bytes, read_response
from bench.origin import MEDIUM, SIZES, SMALL

_GRACE_S = 5.0
_CHUNK = 1 << 20


class RateResult(msgspec.Struct):
    """`samples`: when a request was due, and seconds from then to its answer."""

    samples: list[tuple[float, float]]


class HandshakeResult(msgspec.Struct):
    """Connections that were set up and carried one request, and when the first began and the last ended."""

    count: int
    start: float
    end: float
    errors: int
    error: str


class TcpResult(msgspec.Struct):
    """Bytes that came out at the other end, and the time from the first sent to the last received."""

    sent: int
    received: int
    seconds: float


def client_context(cert: str, root: str, alpn: str) -> ssl.SSLContext:
    """A TLS 1.3 client with a certificate that verifies the chain of its peer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(root)
    context.load_cert_chain(cert)
    context.set_alpn_protocols([alpn])
    return context


def rate(port: int, path: str, rps: float, connections: int, seconds: float) -> RateResult:
    """An open loop: requests are due every 1/rps seconds whatever the answers do; waiting is latency too."""
    request = get_bytes(path)
    size = SIZES[path]
    socks = []
    for _ in range(connections):
        sock = socket.socket()
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        socks.append(sock)
    idle = deque(socks)
    busy: dict[socket.socket, float] = {}
    got: dict[socket.socket, bytes] = {}
    backlog: deque[float] = deque()
    samples: list[tuple[float, float]] = []
    start = perf_counter() + 0.01
    total = int(rps * seconds)
    due = 0
    give_up = start + seconds + _GRACE_S
    while due < total or backlog or busy:
        now = perf_counter()
        if now > give_up:
            raise click.ClickException(f"{len(backlog) + len(busy)} requests without an answer at the end")
        while due < total and start + due / rps <= now:
            backlog.append(start + due / rps)
            due += 1
        while backlog and idle:
            sock = idle.popleft()
            sock.send(request)
            busy[sock] = backlog.popleft()
            got[sock] = b""
        wait = start + due / rps - perf_counter() if due < total else 1.0
        for sock in select.select(list(busy), [], [], max(wait, 0.0))[0]:
            data = got[sock] + sock.recv(65536)
            if not data.startswith(b"HTTP/1.1 200"):
                raise click.ClickException(f"expected status 200, got {data[:40]!r}")
            got[sock] = data
            end = data.find(b"\r\n\r\n")
            if end >= 0 and len(data) >= end + 4 + size:
                when = busy.pop(sock)
                samples.append((when, perf_counter() - when))
                idle.append(sock)
    return RateResult(samples)


def _session(
    context: ssl.SSLContext, port: int, request: bytes, least: int
) -> Generator[tuple[socket.socket, int], None, None]:
    """One connection from connect to close; yields what it waits for."""
    sock = socket.socket()
    try:
        sock.setblocking(False)
        # Else the request waits until the peer has acknowledged the end of the handshake, up to 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(("127.0.0.1", port))
        if code == errno.EINPROGRESS:
            yield sock, selectors.EVENT_WRITE
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        sock = tls = context.wrap_socket(sock, do_handshake_on_connect=False)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield sock, selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                yield sock, selectors.EVENT_WRITE
        tls.send(request)
        data = b""
        while len(data) < least:
            try:
                more = tls.recv(65536)
            except ssl.SSLWantReadError:
                yield sock, selectors.EVENT_READ
                continue
            if not more:
                break
            data += more
        if not data.startswith(b"HTTP/1.1 200") or len(data) < least:
            raise OSError(f"expected status 200 and a body, got {data[:40]!r}")
        try:
            tls.unwrap()
        except OSError:
            pass
    finally:
        sock.close()


def handshakes(
    context: ssl.SSLContext, port: int, concurrency: int, count: int, seconds: float
) -> HandshakeResult:
    """New mTLS connections with one request each, until there were `count` or `seconds` are over."""
    request, least = get_bytes(SMALL), SIZES[SMALL] + 60
    selector = selectors.EpollSelector()
    done = errors = started = 0
    error = ""
    start = perf_counter()
    ready = deque(_session(context, port, request, least) for _ in range(min(concurrency, count)))
    started = len(ready)
    waiting = 0
    while ready or waiting:
        while ready:
            session = ready.popleft()
            try:
                sock, events = next(session)
            except StopIteration:
                done += 1
            except OSError as exc:
                errors += 1
                error = str(exc)
            else:
                selector.register(sock, events, session)
                waiting += 1
                continue
            if started < count and perf_counter() - start < seconds:
                ready.append(_session(context, port, request, least))
                started += 1
        events_now = selector.select(_GRACE_S) if waiting else []
        if waiting and not events_now:
            errors += waiting
            error = f"no answer within {_GRACE_S:g} s"
            break
        for key, _ in events_now:
            selector.unregister(key.fileobj)
            waiting -= 1
            ready.append(key.data)
    return HandshakeResult(done, start, perf_counter(), errors, error)


def idle(port: int, count: int, context: ssl.SSLContext | None) -> list[socket.socket]:
    """Connections that each have carried one 64 KB answer and stay open."""
    held: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket()
        sock.settimeout(_GRACE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(("127.0.0.1", port))
        if context is not None:
            sock = context.wrap_socket(sock)
        sock.sendall(get_bytes(MEDIUM))
        status, data = read_response(sock)
        if status != 200 or len(data) != SIZES[MEDIUM]:
            raise click.ClickException(f"status {status}, {len(data)} bytes")
        held.append(sock)
    return held


def spread(port: int, destinations: int, count: int) -> None:
    """Requests of 1 KB, in turn to each destination, on one connection for each."""
    connections = []
    for n in range(1, destinations + 1):
        sock = socket.socket()
        sock.settimeout(_GRACE_S)
        sock.connect((f"127.0.0.{n}", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections.append((sock, get_bytes(SMALL).replace(b"server.bench", b"d%d" % n)))
    for _ in range(count // destinations):
        for sock, request in connections:
            sock.sendall(request)
        for sock, _ in connections:
            status, data = read_response(sock)
            if status != 200 or len(data) != SIZES[SMALL]:
                raise click.ClickException(f"status {status}, {len(data)} bytes")


def tcp(entry: int, listen: int, seconds: float) -> TcpResult:
    """Send as fast as it goes to `entry`; what arrives at `listen` is counted."""
    received = 0
    ended = 0.0
    failure = ""

    def receive() -> None:
        nonlocal received, ended, failure
        try:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(_GRACE_S)
                buffer = bytearray(_CHUNK)
                while n := sock.recv_into(buffer):
                    received += n
            ended = perf_counter()
        except OSError as exc:
            failure = f"receiver: {exc}"

    sent = 0
    with socket.socket() as listener, socket.socket() as sender:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", listen))
        listener.listen(8)
        listener.settimeout(_GRACE_S)
        thread = threading.Thread(target=receive)
        thread.start()
        sender.settimeout(_GRACE_S)
        sender.connect(("127.0.0.1", entry))
        source = os.memfd_create("bench")
        os.truncate(source, 8 * _CHUNK)
        start = perf_counter()
        while perf_counter() - start < seconds:
            select.select([], [sender], [], _GRACE_S)
            try:
                sent += os.sendfile(sender.fileno(), source, 0, 8 * _CHUNK)
            except BlockingIOError:
                continue
        sender.shutdown(socket.SHUT_WR)
        thread.join()
    if failure:
        raise click.ClickException(failure)
    return TcpResult(sent, received, ended - start)


def _print(result: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.flush()


@click.group()
def main() -> None:
    """Load generators of the bench."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@main.command("rate")
@click.argument("port", type=int)
@click.argument("rps", type=float)
@click.argument("connections", type=int)
@click.argument("seconds", type=float)
def rate_command(port: int, rps: float, connections: int, seconds: float) -> None:
    """A fixed rate of 1 KB requests."""
    _print(rate(port, SMALL, rps, connections, seconds))


@main.command("handshakes")
@click.argument("port", type=int)
@click.argument("cert")
@click.argument("root")
@click.argument("alpn")
@click.argument("concurrency", type=int)
@click.argument("count", type=int)
@click.argument("seconds", type=float)
def handshakes_command(
    port: int, cert: str, root: str, alpn: str, concurrency: int, count: int, seconds: float
) -> None:
    """New mTLS connections, one request each."""
    _print(handshakes(client_context(cert, root, alpn), port, concurrency, count, seconds))


@main.command("idle")
@click.argument("port", type=int)
@click.argument("count", type=int)
@click.argument("ready_file")
@click.option("--tls", nargs=3, help="certificate, root and ALPN protocol")
def idle_command(port: int, count: int, ready_file: str, tls: tuple[str, str, str] | None) -> None:
    """Hold idle connections until terminated; `ready_file` appears when all are up."""
    held = idle(port, count, client_context(*tls) if tls else None)
    with open(ready_file, "x") as file:
        file.write(str(len(held)))
    threading.Event().wait()


@main.command("spread")
@click.argument("port", type=int)
@click.argument("destinations", type=int)
@click.argument("count", type=int)
def spread_command(port: int, destinations: int, count: int) -> None:
    """Requests over many destinations."""
    spread(port, destinations, count)


@main.command("tcp")
@click.argument("entry", type=int)
@click.argument("listen", type=int)
@click.argument("seconds", type=float)
def tcp_command(entry: int, listen: int, seconds: float) -> None:
    """Throughput of opaque bytes."""
    _print(tcp(entry, listen, seconds))


if __name__ == "__main__":
    main()
