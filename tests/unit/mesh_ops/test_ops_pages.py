import errno
import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from mesh_ops import listeners as listeners_module
from mesh_ops import pages
from mesh_ops.listeners import open_listeners
from mesh_ops.pages import LOCAL_HOSTS, Response, Route, serve, text

LARGE = b"x" * 20_000_000


def pieces():
    yield b"one "
    yield b"two"


def broken_pieces():
    yield b"one "
    raise KeyError("two")


def fail(query, body):
    raise RuntimeError("secret")


ROUTES = {
    "/": ("GET", lambda query, body: text(200, "root")),
    "/echo": Route("POST", lambda query, body: Response(200, "x/y", repr((dict(query), body)).encode())),
    "/both": [
        Route("GET", lambda query, body: text(200, "got")),
        Route("PUT", lambda query, body: text(201, "put")),
    ],
    "/pieces": ("GET", lambda query, body: Response(200, "x/y", pieces())),
    "/broken-pieces": ("GET", lambda query, body: Response(200, "x/y", broken_pieces())),
    "/fail": ("GET", fail),
    "/large": ("GET", lambda query, body: Response(200, "x/y", LARGE)),
}


@asynccontextmanager
async def running(routes=ROUTES, loopback=True, **options):
    listeners = open_listeners(0, loopback=loopback)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: serve(listeners, routes, task_status=task_status, **options))
        yield [listener.socket.getsockname()[:2] for listener in listeners]
        nursery.cancel_scope.cancel()


async def connect(address):
    return await trio.open_tcp_stream(*address)


async def read_response(stream):
    data = b""
    async for piece in stream:
        data += piece
    return parse(data)


def parse(data):
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    return int(status), dict(line.split(": ", 1) for line in lines), body


async def ask(address, request):
    async with await connect(address) as stream:
        await stream.send_all(request)
        return await read_response(stream)


def get(path, host="localhost", method="GET", more=""):
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def asking(*requests, **options):
    """Responses of one server to one request per connection."""

    async def main():
        async with running(**options) as addresses:
            return [await ask(addresses[0], request) for request in requests]

    return trio.run(main)


def statuses(*requests, **options):
    return [status for status, _, _ in asking(*requests, **options)]


def test_a_page():
    [(status, headers, body)] = asking(get("/"))
    assert (status, body) == (200, b"root\n")
    assert headers.pop("Date").endswith(" GMT")
    assert headers == {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": "5",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
    }


def test_head_has_the_headers_alone():
    [(status, headers, body)] = asking(get("/", method="HEAD"))
    assert (status, headers["Content-Length"], body) == (200, "5", b"")


def test_query_and_body():
    request = get("/echo?a=1&b=%20x&c", method="POST", more="Content-Length: 3\r\n") + b"abc"
    [(status, _, body)] = asking(request)
    assert (status, body) == (200, repr(({"a": "1", "b": " x", "c": ""}, b"abc")).encode())


def test_a_body_in_pieces():
    assert asking(get("/pieces"))[0][2] == b"one two"


def test_a_request_in_pieces():
    async def main():
        async with running() as addresses, await connect(addresses[0]) as stream:
            for byte in b"\r\n" + get("/echo", method="POST", more="Content-Length: 2\r\n") + b"ok":
                await stream.send_all(bytes([byte]))
            return await read_response(stream)

    status, _, body = trio.run(main)
    assert (status, body) == (200, b"({}, b'ok')")


def test_expect_continue():
    async def main():
        async with running() as addresses, await connect(addresses[0]) as stream:
            more = "Content-Length: 2\r\nExpect: 100-continue\r\n"
            await stream.send_all(get("/echo", method="POST", more=more))
            interim = await stream.receive_some(100)
            await stream.send_all(b"ok")
            return interim, await read_response(stream)

    interim, (status, _, body) = trio.run(main)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (status, body) == (200, b"({}, b'ok')")


def test_an_unknown_path_lists_the_known_ones():
    [(status, _, body)] = asking(get("/nothing"))
    assert status == 404
    assert body.decode().splitlines()[1:] == sorted(ROUTES)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/", "GET, HEAD"),
        ("GET", "/echo", "POST"),
        ("HEAD", "/echo", "POST"),
        ("DELETE", "/both", "GET, HEAD, PUT"),
        ("get", "/", "GET, HEAD"),
    ],
)
def test_a_wrong_method(method, path, allow):
    [(status, headers, _)] = asking(get(path, method=method))
    assert (status, headers["Allow"]) == (405, allow)


def test_one_path_with_two_methods():
    assert statuses(get("/both"), get("/both", method="PUT")) == [200, 201]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (get("http://localhost/"), 400),
        (get("*", method="OPTIONS"), 400),
        (get("/", more="X: " + "x" * 9_000 + "\r\n"), 431),
        (get("/", more="X: x\r\n" * 100), 431),
        (b"GET /" + b"x" * 20_000, 431),
        (get("/echo", method="POST", more="Content-Length: 20000\r\n") + b"x" * 20_000, 413),
        (get("/echo", method="POST", more="Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", 411),
        (get("/?" + "&".join("a=1" for _ in range(100))), 400),
    ],
)
def test_what_is_refused(request_bytes, status):
    assert statuses(request_bytes, get("/")) == [status, 200]


def test_a_broken_handler_is_reported_and_contained():
    errors = []
    responses = asking(get("/fail"), get("/broken-pieces"), get("/"), on_error=errors.append)
    assert [status for status, _, _ in responses] == [500, 500, 200]
    assert [type(error) for error in errors] == [RuntimeError, KeyError]
    assert b"secret" not in responses[0][2]
    assert statuses(get("/fail"), get("/")) == [500, 200]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:15000", 200),
        ("127.0.0.1:15000", 200),
        ("[::1]:15000", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("evil.example:15000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::2]", 403),
        ("10.0.0.1", 403),
        ("", 403),
    ],
)
def test_hosts(host, status):
    assert statuses(get("/", host=host), hosts=LOCAL_HOSTS) == [status]
    assert statuses(get("/", host=host)) == [200]


def test_an_old_request_without_host():
    request = b"GET / HTTP/1.0\r\n\r\n"
    assert statuses(request, hosts=LOCAL_HOSTS) == [403]
    assert statuses(request) == [200]


def test_a_web_page_may_look_but_not_touch():
    more = "ORIGIN: http://localhost:8080\r\n"
    requests = [get("/both", method="PUT", more=more), get("/both", more=more), get("/both", method="PUT")]
    assert statuses(*requests, hosts=LOCAL_HOSTS) == [403, 200, 201]


def test_a_silent_client_is_answered_at_the_deadline():
    async def main():
        async with running() as addresses, await connect(addresses[0]) as stream:
            started = trio.current_time()
            await stream.send_all(b"GET / HT")
            response = await read_response(stream)
            return response[0], trio.current_time() - started

    status, waited = trio.run(main, clock=MockClock(autojump_threshold=0.01))
    assert status == 408
    assert pages.DEADLINE_S <= waited <= pages.DEADLINE_S + 2


def test_a_client_that_does_not_read_is_cut_off():
    async def main():
        async with running() as addresses:
            async with await connect(addresses[0]) as stream:
                await stream.send_all(get("/large"))
                await trio.sleep(pages.DEADLINE_S * 3)
                size = 0
                try:
                    async for piece in stream:
                        size += len(piece)
                except trio.BrokenResourceError:
                    pass
                assert 0 < size < len(LARGE)
            assert (await ask(addresses[0], get("/")))[0] == 200

    trio.run(main, clock=MockClock(autojump_threshold=0.05))


def test_a_client_that_goes_away():
    async def main():
        async with running() as addresses:
            for request in (
                b"",
                b"GET / HT",
                get("/echo", method="POST", more="Content-Length: 9\r\n") + b"x",
            ):
                async with await connect(addresses[0]) as stream:
                    await stream.send_all(request)
                    await stream.send_eof()
                    assert await stream.receive_some() == b""
            for _ in range(5):
                stream = await connect(addresses[0])
                await stream.send_all(get("/large"))
                linger = b"\1\0\0\0\0\0\0\0"
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                await stream.aclose()
            assert (await ask(addresses[0], get("/")))[0] == 200

    trio.run(main)


def test_idle_connections_make_room():
    async def main():
        async with running() as addresses:
            idle = [await connect(addresses[0]) for _ in range(pages.MAX_CONNECTIONS)]
            for stream in idle:
                await stream.send_all(b"G")
            await trio.testing.wait_all_tasks_blocked(0.05)
            for _ in range(10):
                assert (await ask(addresses[0], get("/")))[0] == 200
            # The first one was put out; the last one is still served.
            with trio.fail_after(2):
                try:
                    assert await idle[0].receive_some() == b""
                except trio.BrokenResourceError:
                    pass
            await idle[-1].send_all(get("/")[1:])
            assert (await read_response(idle[-1]))[0] == 200
            for stream in idle:
                await stream.aclose()

    trio.run(main)


def test_idle_connections_cut_no_request_that_is_answered():
    async def main():
        go = trio.Event()

        async def late(query, body):
            await go.wait()
            return text(200, "late")

        async with running({"/late": ("GET", late)}) as addresses:
            stream = await connect(addresses[0])
            await stream.send_all(get("/late"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            idle = [await connect(addresses[0]) for _ in range(2 * pages.MAX_CONNECTIONS)]
            await trio.testing.wait_all_tasks_blocked(0.05)
            go.set()
            assert (await read_response(stream))[0] == 200
            for each in (stream, *idle):
                await each.aclose()

    trio.run(main)


def test_requests_that_are_not_done_make_room_too(monkeypatch):
    monkeypatch.setattr(pages, "MAX_CONNECTIONS", 4)

    async def main():
        async def never(query, body):
            await trio.sleep_forever()

        async with running({"/never": ("GET", never), "/": ROUTES["/"]}) as addresses:
            streams = [await connect(addresses[0]) for _ in range(4)]
            for stream in streams:
                await stream.send_all(get("/never"))
                await trio.testing.wait_all_tasks_blocked(0.05)
            assert (await ask(addresses[0], get("/")))[0] == 200
            for stream in streams:
                await stream.aclose()

    trio.run(main)


def test_both_families():
    async def main():
        async with running() as local, running(loopback=False) as everywhere:
            assert [host for host, _ in local] == ["127.0.0.1", "::1"][: len(local)]
            assert [host for host, _ in everywhere] == ["0.0.0.0", "::"][: len(everywhere)]
            for (host, _), (_, port) in zip(local, everywhere, strict=True):
                assert (await ask((host, port), get("/")))[0] == 200
            for address in local:
                assert (await ask(address, get("/")))[0] == 200

    trio.run(main)


def test_a_taken_port():
    async def main():
        taken = open_listeners(0, loopback=True)
        with pytest.raises(OSError, match="in use"):
            open_listeners(taken[0].socket.getsockname()[1], loopback=True)
        for listener in taken:
            await listener.aclose()

    trio.run(main)


def without(*missing):
    real = listeners_module._listener

    def make(family, address, port, backlog):
        if family in missing:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported")
        return real(family, address, port, backlog)

    return make


def test_a_host_without_a_family(monkeypatch):
    async def main():
        monkeypatch.setattr(listeners_module, "_listener", without(socket.AF_INET6))
        (only,) = open_listeners(0, loopback=False)
        await only.aclose()
        monkeypatch.setattr(listeners_module, "_listener", without(socket.AF_INET6, socket.AF_INET))
        with pytest.raises(OSError, match="not supported"):
            open_listeners(0, loopback=False)

    trio.run(main)


def test_an_error_outside_the_handlers_ends_one_connection(monkeypatch):
    errors = []

    def broken(parser):
        raise LookupError

    async def main():
        async with running(on_error=errors.append) as addresses:
            with monkeypatch.context() as patch:
                patch.setattr(pages.h11.Connection, "next_event", broken)
                async with await connect(addresses[0]) as stream:
                    await stream.send_all(get("/"))
                    try:
                        assert await stream.receive_some() == b""
                    except trio.BrokenResourceError:
                        pass
            assert (await ask(addresses[0], get("/")))[0] == 200

    trio.run(main)
    assert [type(error) for error in errors] == [LookupError]


def test_listeners_are_closed_at_the_end():
    async def main():
        listeners = open_listeners(0, loopback=True)
        with trio.CancelScope() as scope:
            scope.cancel()
            await serve(listeners, ROUTES)
        assert [listener.socket.fileno() for listener in listeners] == [-1] * len(listeners)

    trio.run(main)
