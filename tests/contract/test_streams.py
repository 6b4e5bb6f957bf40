"""What every connection of the data path must do, plain or TLS, whichever side shook hands."""

import fcntl
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading

import pytest
import trio
import trio.testing

from certs.credentials import ALPN_TCP
from mesh_proxy.base.errors import DeadlineExceeded, PeerReset, TlsFailed, TransportError, Truncated
from mesh_proxy.net.conn import READ_BYTES, Conn
from mesh_proxy.net.reactor import BROKEN
from mesh_proxy.net.tls import Handshaker, TlsConn
from tests.contract.streams import KINDS, ca, reactor, reset, stream, tcp_pair
from tests.support.mesh import run, wait_until

TLS = [kind for kind in KINDS if kind != "plain"]
in_thread = trio.to_thread.run_sync


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=TLS)
def tls_kind(request):
    return request.param


async def read_all(conn):
    parts = []
    while data := await conn.read():
        parts.append(data)
    return b"".join(parts)


async def failure(wait):
    """The transport error that ends `wait`."""
    with pytest.raises(TransportError) as info:
        await wait
    return info.value


def test_echo(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            for message in (b"x", b"hello" * 1000, os.urandom(100_000)):
                peer.send(message)
                got = b""
                while len(got) < len(message):
                    got += await conn.read()
                assert got == message
                await conn.write(message)
                assert await in_thread(peer.recv_exactly, len(message)) == message

    run(main)


def test_much_both_ways_at_once(kind):
    size = 20 * 1024 * 1024
    block = os.urandom(256 * 1024)

    async def main():
        got = 0

        async with stream(kind) as (conn, peer):
            # One engine, two threads of blocking code would race: the peer encodes what it sends beforehand.
            blob = peer.encode(block * (size // len(block)) if kind == "plain" else block * 20)
            want = size if kind == "plain" else 20 * len(block)

            async def reading():
                nonlocal got
                while got < want:
                    got += len(await conn.read())

            async def writing():
                for _ in range(size // len(block)):
                    await conn.write(block)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, peer.sock.sendall, blob)
                nursery.start_soon(in_thread, peer.recv_exactly, size)
                nursery.start_soon(reading)
                nursery.start_soon(writing)
            assert got == want
            assert conn.sent >= size

    run(main)


def test_reading_goes_on_after_our_end(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            await conn.write(b"last words")
            await conn.write_eof()
            assert await in_thread(peer.recv_all) == b"last words"
            for n in range(3):
                peer.send(b"later %d" % n)
                assert await conn.read() == b"later %d" % n
            big = os.urandom(500_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, peer.send, big)
                got = b""
                while len(got) < len(big):
                    got += await conn.read()
            assert got == big
            peer.send_eof()
            assert await conn.read() == b""
            assert await conn.read() == b""
            await conn.write_eof()

    run(main)


def test_writing_goes_on_after_the_peers_end(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            peer.send(b"question")
            peer.send_eof()
            assert await conn.read() == b"question"
            assert await conn.read() == b""
            big = os.urandom(500_000)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _():
                    assert await in_thread(peer.recv_all) == big

                await conn.write(big)
                await conn.write_eof()

    run(main)


def test_bytes_that_came_before_our_end_are_read_after_it(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            peer.send(b"early")
            await wait_until(lambda: conn.readable)
            await conn.write_eof()
            assert await conn.read() == b"early"
            peer.send_eof()
            assert await conn.read() == b""

    run(main)


@pytest.mark.parametrize("size", [1, 1000, 16 * 1024, 40_000])
@pytest.mark.parametrize("parked", [False, True])
def test_last_bytes_and_fin_in_one_segment(kind, size, parked):
    async def main():
        async with stream(kind) as (conn, peer):
            data = os.urandom(size)
            peer.send(b"x")
            assert await conn.read() == b"x"
            got = []

            async def reader():
                got.append(await read_all(conn))

            async with trio.open_nursery() as nursery:
                if parked:
                    nursery.start_soon(reader)
                    await trio.testing.wait_all_tasks_blocked()
                peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                peer.sock.sendall(peer.encode(data) + peer.encode_eof())
                peer.sock.shutdown(socket.SHUT_WR)
                if not parked:
                    await wait_until(lambda: conn.ended)
                    nursery.start_soon(reader)
            assert got == [data]
            assert conn.ended

    run(main)


@pytest.mark.parametrize("parked", [False, True])
def test_reset_right_after_data(kind, parked):
    async def main():
        async with stream(kind) as (conn, peer):
            got = []
            errors = []

            async def reader():
                try:
                    while True:
                        got.append(await conn.read())
                        assert got[-1], "a reset is not an end"
                except TransportError as exc:
                    errors.append(exc)

            async with trio.open_nursery() as nursery:
                if parked:
                    nursery.start_soon(reader)
                    await trio.testing.wait_all_tasks_blocked()
                peer.sock.sendall(peer.encode(b"data"))
                reset(peer.sock)
                if not parked:
                    await wait_until(lambda: conn.ended & BROKEN)
                    nursery.start_soon(reader)
            assert b"".join(got) in {b"data", b""}
            assert isinstance(errors[0], PeerReset)
            with pytest.raises(PeerReset):
                await conn.write(b"more")

    run(main)


def test_a_reset_met_by_the_writer_is_not_an_end_for_the_reader(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            reset(peer.sock)
            await wait_until(lambda: conn.ended & BROKEN)
            with pytest.raises(PeerReset):
                await conn.write(b"x")
            with pytest.raises(PeerReset):
                await conn.read()

    run(main)


def test_fin_without_close_notify_is_truncation(tls_kind):
    async def main():
        async with stream(tls_kind) as (conn, peer):
            peer.sock.sendall(peer.encode(b"part"))
            peer.sock.shutdown(socket.SHUT_WR)
            assert await conn.read() == b"part"
            for _ in range(2):
                with pytest.raises(Truncated):
                    await conn.read()

    run(main)


def test_fin_within_a_record_is_truncation(tls_kind):
    async def main():
        async with stream(tls_kind) as (conn, peer):
            peer.sock.sendall(peer.encode(b"part")[:-3])
            peer.sock.shutdown(socket.SHUT_WR)
            assert isinstance(await failure(conn.read()), Truncated)

    run(main)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x17\x03\x03\x00\x20" + b"z" * 32, b"\x17\x03\x03\xff\xff", b"\0" * 100],
)
def test_garbage_record(tls_kind, garbage):
    async def main():
        async with stream(tls_kind) as (conn, peer):
            peer.sock.sendall(garbage)
            for _ in range(2):
                assert isinstance(await failure(conn.read()), TlsFailed)

    run(main)


@pytest.mark.parametrize("before", [1, 100_000])
def test_garbage_after_good_bytes_in_one_segment(tls_kind, before):
    async def main():
        async with stream(tls_kind) as (conn, peer):
            data = os.urandom(before)
            peer.sock.sendall(peer.encode(data) + b"\x17\x03\x03\x00\x20" + b"z" * 32)
            got = b""
            while len(got) < before:
                got += await conn.read()
            assert got == data
            # The peer stays silent from here on: the error must not wait for more bytes.
            assert isinstance(await failure(conn.read()), TlsFailed)

    run(main)


def test_close_notify_with_the_last_bytes_marks_the_connection(tls_kind):
    """Whoever keeps idle connections must see that this one can carry nothing more, FIN or no FIN."""

    async def main():
        async with stream(tls_kind) as (conn, peer):
            peer.sock.sendall(peer.encode(b"bye") + peer.encode_eof())
            assert await conn.read() == b"bye"
            assert conn.ended
            with trio.fail_after(2):
                await conn.wait_readable()
            assert await conn.read() == b""

    run(main)


def test_back_pressure(kind):
    """A peer that does not read stops the sender, with bounded memory, and loses nothing."""

    async def main():
        async with stream(kind) as (conn, peer):
            sent = 0
            block = b"x" * 65536

            async def sender():
                nonlocal sent
                while sent < 64 * 1024 * 1024:
                    await conn.write(block)
                    sent += len(block)

            with trio.move_on_after(5) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sender)
                    await wait_until(lambda: conn.writer is not None)
                    before = sent
                    await trio.testing.wait_all_tasks_blocked()
                    assert sent == before
                    assert sent < 16 * 1024 * 1024
                    with pytest.raises(trio.BusyResourceError):
                        await conn.write(b"y")
                    got = 0
                    while got < before + len(block):
                        data = await in_thread(peer.recv)
                        assert set(data) <= {120}
                        got += len(data)
                    await wait_until(lambda: sent > before)
                    scope.cancel()

    run(main)


def test_deadline_wakes_reader_and_writer(kind):
    async def main():
        async with stream(kind) as (conn, _peer):
            failures = []

            async def expect(work):
                try:
                    await work
                except DeadlineExceeded as exc:
                    failures.append(exc)

            async def fill():
                while True:
                    await conn.write(b"x" * 1_000_000)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, conn.read())
                nursery.start_soon(expect, fill())
                await wait_until(lambda: conn.writer is not None)
                started = trio.current_time()
                conn.set_deadline(0.2)
            assert len(failures) == 2
            assert 0.15 < trio.current_time() - started < 2
            with pytest.raises(DeadlineExceeded):
                await conn.read()

    run(main)


def test_deadline_survives_the_change_to_tls(tls_kind):
    """A peer that goes silent within the handshake must not hold it for ever."""

    async def main():
        async with reactor() as react:
            ours, theirs = tcp_pair()
            plain = Conn(react, ours)
            plain.set_deadline(0.2)
            client, server = ca()
            context = client.client[ALPN_TCP] if tls_kind == "tls-client" else server.server
            conn = TlsConn.over(plain, context, server_side=tls_kind == "tls-server")
            with trio.fail_after(3), pytest.raises(DeadlineExceeded):
                await conn.handshake(Handshaker())
            conn.abort()
            theirs.close()
            assert not react.conns

    run(main)


def test_cancellation_leaves_nothing_registered(kind):
    async def main():
        async with reactor() as react:
            async with stream(kind, react) as (conn, _peer):
                for work in (conn.read, lambda: conn.write(b"x" * 50_000_000)):
                    with trio.move_on_after(0.1) as scope:
                        await work()
                    assert scope.cancelled_caught
                    assert conn.reader is conn.writer is None
                fd = conn.fd
            assert not react.conns
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)

    run(main)


def test_cancelled_handshake(tls_kind):
    async def main():
        async with reactor() as react:
            ours, theirs = tcp_pair()
            handshaker = Handshaker()
            client, server = ca()
            context = client.client[ALPN_TCP] if tls_kind == "tls-client" else server.server
            conn = TlsConn.over(Conn(react, ours), context, server_side=tls_kind == "tls-server")
            with trio.move_on_after(0.1) as scope:
                await conn.handshake(handshaker)
            assert scope.cancelled_caught
            conn.close()
            assert handshaker.active == 0
            assert not react.conns
            theirs.close()

    run(main)


def test_one_reader(kind):
    async def main():
        async with stream(kind) as (conn, peer), trio.open_nursery() as nursery:
            nursery.start_soon(conn.read)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await conn.read()
            peer.send(b"x")

    run(main)


def test_closing_wakes_who_waits_and_stops_who_comes_later(kind):
    async def main():
        async with stream(kind) as (conn, _peer):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _():
                    with pytest.raises(PeerReset):
                        await conn.read()

                await trio.testing.wait_all_tasks_blocked()
                conn.close()
            with pytest.raises(TransportError):
                await conn.read()
            with pytest.raises(TransportError):
                await conn.write(b"x")
            conn.close()
            conn.abort()

    run(main)


def test_unread_comes_back_first(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            peer.send(b"world")
            conn.unread(await conn.read())
            conn.unread(b"hello ")
            await conn.wait_readable()
            assert await conn.read() == b"hello world"

    run(main)


def test_wait_readable_takes_nothing(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            peer.send(b"ab")
            await conn.wait_readable()
            await conn.wait_readable()
            assert await conn.read() == b"ab"

    run(main)


def test_spurious_wake_ups(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            got = []

            async def reader():
                got.append(await conn.read())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader)
                for _ in range(3):
                    await trio.testing.wait_all_tasks_blocked()
                    # As if an edge had come: an EPOLL_CTL_MOD of a writable socket reports it again.
                    conn.readable = True
                    task, conn.reader = conn.reader, None
                    trio.lowlevel.reschedule(task)
                await trio.testing.wait_all_tasks_blocked()
                assert not got
                peer.send(b"real")
            assert got == [b"real"]

    run(main)


def test_a_busy_reader_lets_others_run(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            turns = 0
            reads = 0
            limit = 3000 if kind == "plain" else 300
            stop = threading.Event()

            def flood():
                try:
                    while not stop.is_set():
                        peer.send(b"x" * 65536)
                except OSError:
                    pass

            async def reader():
                nonlocal reads
                while reads < limit:
                    await conn.read()
                    reads += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, flood)

                @nursery.start_soon
                async def _():
                    nonlocal turns
                    while reads < limit:
                        await trio.lowlevel.checkpoint()
                        turns += 1

                await reader()
                stop.set()
                conn.abort()
            assert turns >= limit // 65

    run(main)


def test_a_sender_within_its_bytes_is_not_interleaved(tls_kind):
    """A KeyUpdate answered by the reader must not land in the middle of a half-sent record."""

    async def main():
        async with stream(tls_kind) as (conn, peer):
            payload = os.urandom(8 * 1024 * 1024)

            async def sender():
                await conn.write(payload)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender)
                await wait_until(lambda: conn.writer is not None)
                # The window: the sender has been woken and has not run yet.
                task, conn.writer = conn.writer, None
                with pytest.raises(trio.BusyResourceError):
                    await conn.write(b"intruder")
                trio.lowlevel.reschedule(task)
                assert await in_thread(peer.recv_exactly, len(payload)) == payload

    run(main)


def test_many_small_pieces(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            data = os.urandom(3000)
            wire = peer.encode(data)

            def trickle():
                for n in range(len(wire)):
                    peer.sock.send(wire[n : n + 1])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, trickle)
                got = b""
                while len(got) < len(data):
                    got += await conn.read()
            assert got == data

    run(main)


def test_reads_are_as_large_as_what_comes():
    """So that messages of one size cost one read each, and small ones no large block of memory."""

    async def main():
        async with stream("plain") as (conn, peer):

            async def sizes(total):
                peer.send(b"x" * total)
                await wait_until(lambda: waiting() == total)
                got = []
                while sum(got) < total:
                    got.append(len(await conn.read()))
                return got

            def waiting():
                return struct.unpack("i", fcntl.ioctl(conn.fd, termios.FIONREAD, bytes(4)))[0]

            assert await sizes(65_000) == [READ_BYTES, 65_000 - READ_BYTES]
            assert await sizes(65_000) == await sizes(65_000) == [65_000]
            assert await sizes(10) == [10]
            assert await sizes(READ_BYTES + 1) == [READ_BYTES, 1]

    run(main)


def test_parts_are_what_read_would_give(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            conn.unread(b"first")
            assert await conn.read_parts() == [b"first"]
            message = os.urandom(100_000)
            peer.send(message)
            got = b""
            while len(got) < len(message):
                parts = await conn.read_parts()
                assert all(parts)
                got += b"".join(parts)
            assert got == message
            peer.send_eof()
            for _ in range(2):
                assert await conn.read_parts() == []

    run(main)


@pytest.mark.parametrize("sizes", [[1], [0, 3, 0], [16384] * 300, [7] * 5000, [1, 300_000, 20, 16385] * 8])
def test_parts_arrive_as_one(kind, sizes):
    """More of them than the kernel takes at once, and more bytes than it has room for."""

    async def main():
        async with stream(kind) as (conn, peer):
            parts = [os.urandom(size) for size in sizes]
            expected = b"".join(parts)
            got = b""

            def receive():
                nonlocal got
                got = peer.recv_exactly(len(expected))

            async with trio.open_nursery() as nursery:
                if len(expected) > 4_000_000:
                    nursery.start_soon(conn.write_parts, parts)
                    await wait_until(lambda: conn.writer is not None)
                    with pytest.raises(trio.BusyResourceError):
                        await conn.write_parts([b"in", b"truder"])
                    nursery.start_soon(in_thread, receive)
                else:
                    nursery.start_soon(in_thread, receive)
                    await conn.write_parts(parts)
            assert got == expected

    run(main)


def test_parts_for_a_peer_that_has_gone(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            reset(peer.sock)
            await wait_until(lambda: conn.ended)
            assert isinstance(await failure(conn.write_parts([b"x", b"y"])), PeerReset)
            assert isinstance(await failure(conn.read_parts()), PeerReset)

    run(main)


def test_empty_write(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            await conn.write(b"")
            await conn.write(b"x")
            assert await in_thread(peer.recv) == b"x"

    run(main)


def test_bye_says_goodbye(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            await conn.write(b"done")
            conn.bye()
            assert await in_thread(peer.recv_all) == b"done"

    run(main)


def test_abort_resets(kind):
    async def main():
        async with stream(kind) as (conn, peer):
            conn.abort()
            with pytest.raises(ConnectionResetError):
                await in_thread(peer.recv)

    run(main)


@pytest.mark.parametrize("letter", ["k", "K"])
def test_key_update_from_the_peer(tmp_path, letter):
    """OpenSSL's own server changes its keys in mid-stream; with K it asks for ours too."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-subj", "/CN=x", "-days", "1"),
            "-keyout",
            str(key),
            "-out",
            str(cert),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl command")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(cert), "-key", str(key)]

    async def main():
        process = subprocess.Popen(  # noqa: ASYNC220
            [*command, "-tls1_3", "-naccept", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.set_blocking(process.stdout.fileno(), False)
        seen = b""

        def output():
            nonlocal seen
            seen += process.stdout.read() or b""
            return seen

        def type_in(text):
            process.stdin.write(text)
            process.stdin.flush()

        try:
            await wait_until(lambda: b"ACCEPT" in output())
            sock = socket.socket()
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
            async with reactor() as react:
                conn = TlsConn.over(Conn(react, sock), context, server_side=False)
                await conn.handshake(Handshaker())
                await conn.write(b"one\n")
                await wait_until(lambda: b"one" in output())
                got = b""

                async def reader():
                    nonlocal got
                    while True:
                        got += await conn.read()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader)
                    for n in range(3):
                        before = conn.received
                        type_in(letter.encode() + b"\n")
                        await wait_until(lambda: conn.received > before)  # noqa: B023
                        type_in(b"text %d\n" % n)
                        await wait_until(lambda: b"text %d\n" % n in got)  # noqa: B023
                        await conn.write(b"again %d\n" % n)
                        await wait_until(lambda: b"again %d" % n in output())  # noqa: B023
                    nursery.cancel_scope.cancel()
                conn.close()
                sock.close()
        finally:
            process.kill()
            process.communicate()

    run(main)


MEMORY = """
import trio, os
from tests.contract.streams import stream, reactor
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
async def main():
    async with reactor() as react:
        async with trio.open_nursery() as nursery:
            kept = []
            count = 0
            done = trio.Event()
            async def one(first):
                nonlocal count
                async with stream("tls-client", react) as (conn, peer):
                    payload = b"x" * 262144
                    async with trio.open_nursery() as inner:
                        inner.start_soon(trio.to_thread.run_sync, peer.recv_exactly, len(payload))
                        await conn.write(payload)
                    blob = peer.encode(payload)
                    async with trio.open_nursery() as inner:
                        inner.start_soon(trio.to_thread.run_sync, peer.sock.sendall, blob)
                        got = 0
                        while got < len(payload):
                            got += len(await conn.read())
                    # Only our side is measured: the peer's engine goes.
                    peer.tls = peer.incoming = peer.outgoing = None
                    del blob, payload
                    count += 1
                    await done.wait()
            for _ in range(10):
                nursery.start_soon(one, True)
            while count < 10: await trio.sleep(0.01)
            before = rss()
            for n in range(20):
                for _ in range(10):
                    nursery.start_soon(one, False)
                while count < 10 * (n + 2): await trio.sleep(0.005)
            print((rss() - before) / 200 / 1024)
            done.set()
trio.run(main)
"""


@pytest.mark.slow
def test_memory_kept_by_an_idle_connection():
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=50
    )
    # Pages that the allocators keep are in it: 60 to 105 KB were seen. Engines fed whole keep over 500 KB.
    assert float(result.stdout) < 200, "KB a connection"


def test_epoll_constants_are_those_of_the_kernel():
    assert BROKEN == select.EPOLLHUP | select.EPOLLERR
