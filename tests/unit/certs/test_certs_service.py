"""The CA's endpoint: real Unix sockets, hostile and slow callers."""

from __future__ import annotations

import os
import socket
import stat
from datetime import UTC, datetime

import msgspec
import pytest
import trio
import trio.testing
from certs_kit import DOMAIN, WEB, trio_test
from cryptography import x509

from certs.authority import Authority
from certs.framing import FrameError, read_frame, write_frame
from certs.keygen import make
from certs.service import Denied, Service, ServiceError, SocketAuthenticator, open_socket, serve
from certs.workload import UnixSigner, obtain
from mesh_api.ca import MAX_CA_MESSAGE_BYTES

CA = Authority.create(DOMAIN, datetime.now(UTC))


class Fixture:
    def __init__(self, path: str) -> None:
        self.path = path
        self.authority = CA
        self.events: list[tuple[str, dict]] = []

    def start(self, nursery: trio.Nursery, **more):
        more.setdefault("authenticator", SocketAuthenticator(WEB))
        authenticator = more.pop("authenticator")
        mode = more.pop("mode", 0o600)
        return nursery.start(
            lambda *, task_status: serve(
                self.path,
                Service(
                    lambda: self.authority,
                    authenticator,
                    on_event=lambda name, fields: self.events.append((name, dict(fields))),
                    **more,
                ),
                mode=mode,
                task_status=task_status,
            )
        )


@pytest.fixture
def ca(tmp_path):
    return Fixture(str(tmp_path / "ca.sock"))


@trio_test
async def test_from_request_to_credentials(ca):
    async with trio.open_nursery() as nursery:
        await ca.start(nursery, lifetime_s=30.0, mode=0o666)
        assert stat.S_IMODE(os.stat(ca.path).st_mode) == 0o666
        made = await obtain(UnixSigner(ca.path), DOMAIN)
        assert made.identity == str(WEB)
        assert made.not_after - made.not_before == 150
        assert ca.events == [("ca.signed", {"identity": str(WEB)})]
        new = Authority.create(DOMAIN, datetime.now(UTC))
        ca.authority = new.with_bundle(CA.bundle.add(new.bundle))
        after = await UnixSigner(ca.path).sign(make()[1].decode())
        leaf = x509.load_pem_x509_certificate(after.chain_pem.encode())
        leaf.verify_directly_issued_by(new.cert)
        assert after.bundle_pem.count("BEGIN") == 2
        nursery.cancel_scope.cancel()
    assert "ca.sock" not in os.listdir(os.path.dirname(ca.path))


class DeniesAll:
    async def authenticate(self, stream, request):
        await trio.lowlevel.checkpoint()
        raise Denied("who are you")


class Broken:
    async def authenticate(self, stream, request):
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError


@trio_test
async def test_refusals_are_answers(ca):
    async with trio.open_nursery() as nursery:
        await ca.start(nursery)
        answer = await UnixSigner(ca.path).sign("not a CSR")
        assert "PKCS #10" in answer.error
        assert not answer.chain_pem
        async with await trio.open_unix_socket(ca.path) as stream:
            await write_frame(stream, b'{"csrPem": 1}')
            assert "sign request" in msgspec.json.decode(await read_frame(stream))["error"]
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await ca.start(nursery, authenticator=DeniesAll())
        assert (await UnixSigner(ca.path).sign(make()[1].decode())).error == "who are you"
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_defect_in_one_request_leaves_the_service_up(ca):
    async with trio.open_nursery() as nursery:
        await ca.start(nursery, authenticator=Broken())
        for _ in range(2):
            async with await trio.open_unix_socket(ca.path) as stream:
                await write_frame(stream, b'{"csrPem": ""}')
                with pytest.raises(FrameError):
                    await read_frame(stream)
        nursery.cancel_scope.cancel()
    assert [name for name, _ in ca.events] == ["ca.failed", "ca.failed"]


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", (MAX_CA_MESSAGE_BYTES + 1).to_bytes(4, "big"), b"\0\0\0\0", b"\0\0\0\x09{"]
)
def test_no_frame_no_answer(ca, data):
    @trio_test
    async def run():
        async with trio.open_nursery() as nursery:
            await ca.start(nursery)
            async with await trio.open_unix_socket(ca.path) as stream:
                await stream.send_all(data)
                await stream.send_eof()
                assert await stream.receive_some() == b""
            nursery.cancel_scope.cancel()
        assert [name for name, _ in ca.events] == ["ca.dropped"]

    run()


@trio_test
async def test_silent_callers_are_dropped_and_the_next_one_gets_its_turn(ca):
    async with trio.open_nursery() as nursery:
        await ca.start(nursery, max_connections=2, deadline_s=0.1)
        silent = [await trio.open_unix_socket(ca.path) for _ in range(2)]
        answer = await UnixSigner(ca.path).sign(make()[1].decode())
        assert answer.chain_pem
        for stream in silent:
            assert await stream.receive_some() == b""
            await stream.aclose()
        nursery.cancel_scope.cancel()
    assert [name for name, _ in ca.events].count("ca.dropped") == 2


def test_socket_files(tmp_path):
    path = str(tmp_path / "s")
    first = open_socket(path, 0o600)
    with pytest.raises(ServiceError, match="another server"):
        open_socket(path)
    first.close()
    second = open_socket(path, 0o660, (os.getuid(), os.getgid()))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    second.close()
    os.unlink(path)
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ServiceError, match="expected a socket"):
        open_socket(path)
    assert (tmp_path / "s").read_text() == "precious"
    with pytest.raises(ServiceError, match="at most 107"):
        open_socket("/tmp/" + "x" * 120)
    with pytest.raises(ServiceError, match="No such file"):
        open_socket(str(tmp_path / "no" / "s"))


def test_a_socket_of_somebody_elses_making_is_not_unlinked_at_the_end(ca):
    @trio_test
    async def run():
        async with trio.open_nursery() as nursery:
            await ca.start(nursery)
            os.rename(ca.path, ca.path + ".old")
            other = socket.socket(socket.AF_UNIX)
            other.bind(ca.path)
            other.close()
            nursery.cancel_scope.cancel()

    run()
    assert os.path.lexists(ca.path)
