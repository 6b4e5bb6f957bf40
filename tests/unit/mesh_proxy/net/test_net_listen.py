import errno
import socket

import pytest
import trio

from mesh_proxy.net.addr import Addr
from mesh_proxy.net.listen import accept_loop, listen
from tests.support.mesh import run, wait_until


def test_port_in_use_is_an_oserror_and_leaves_no_socket():
    first = listen(Addr("127.0.0.1", 0))
    with first, pytest.raises(OSError, match="in use"):
        listen(Addr(*first.getsockname()))


def test_ipv6_takes_ipv6_only():
    try:
        six = listen(Addr("::", 0))
    except OSError:
        pytest.skip("no IPv6")
    with six, listen(Addr("0.0.0.0", six.getsockname()[1])):
        pass


class Listener:
    """Stands for a listening socket; `plan` is what accept does in turn."""

    def __init__(self, real, plan):
        self.real = real
        self.plan = list(plan)

    def fileno(self):
        return self.real.fileno()

    def accept(self):
        if self.plan:
            raise OSError(self.plan.pop(0), "planned")
        return self.real.accept()


def accepting(body, plan=(), admit=lambda sock: True):
    async def main():
        handled, exhausted = [], []

        async def handle(sock):
            handled.append(sock)

        with listen(Addr("127.0.0.1", 0)) as real:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    accept_loop, Listener(real, plan), handle, nursery, admit, exhausted.append
                )
                await body(real.getsockname(), handled, exhausted)
                nursery.cancel_scope.cancel()
        for sock in handled:
            sock.close()

    run(main)


def connect(address):
    sock = socket.socket()
    sock.settimeout(5)
    sock.connect(address)
    return sock


def test_many_at_once():
    async def body(address, handled, exhausted):
        socks = [connect(address) for _ in range(200)]
        await wait_until(lambda: len(handled) == 200)
        assert all(not sock.getblocking() for sock in handled)
        assert all(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in handled)
        for sock in socks:
            sock.close()

    accepting(body)


def test_a_connection_that_went_away_is_passed_over():
    async def body(address, handled, exhausted):
        with connect(address):
            await wait_until(lambda: handled)
        assert not exhausted

    accepting(body, [errno.ECONNABORTED, errno.EPERM])


def test_out_of_descriptors_pauses_and_goes_on():
    async def body(address, handled, exhausted):
        with connect(address):
            await wait_until(lambda: handled)
        assert exhausted == ["planned"] * 2

    accepting(body, [errno.EMFILE, errno.ENFILE])


def test_not_admitted_is_reset():
    async def body(address, handled, exhausted):
        with connect(address) as sock, pytest.raises(ConnectionResetError):
            await trio.to_thread.run_sync(sock.recv, 1)
        assert not handled

    accepting(body, admit=lambda sock: False)
