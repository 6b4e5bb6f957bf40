"""A served API over real TLS, with the real kubectl, and connections that misbehave."""

import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio
import trio.testing

from mesh_local.apiserver.auth.pki import Pki
from mesh_local.apiserver.types import Decision
from tests.support.local_api import local_api
from tests.support.local_http import KUBECTL, served

CONFIG_MAP = '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "%s"}}'
BIG = b"x" * (4 * 1024 * 1024)


@pytest.fixture(autouse=True)
def _nothing_failed_inside(caplog):
    yield
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def run(directory, test, **options):
    async def main():
        async with local_api(directory) as local, served(local, directory, **options) as server:
            with trio.fail_after(40):
                await test(server, local)

    trio.run(main)


def client_context(server, *, certificate: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=server.pki.ca_path)
    if certificate:
        context.load_cert_chain(server.pki.directory / "admin.crt", server.pki.directory / "admin.key")
    return context


@asynccontextmanager
async def connect(server, context: ssl.SSLContext) -> AsyncIterator[trio.SSLStream]:
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    try:
        secure = trio.SSLStream(stream, context, server_hostname="127.0.0.1", https_compatible=True)
        await secure.do_handshake()
        yield secure
    finally:
        await trio.aclose_forcefully(stream)


async def healthy(server) -> bool:
    """Whether a new connection is served."""
    async with connect(server, client_context(server)) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return (await read_all(stream)).endswith(b"ok")


async def all_closed(server) -> None:
    while server.server.connections:
        await trio.sleep(0.01)


async def read_until(stream, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        chunk = await stream.receive_some(65536)
        assert chunk, data
        data += chunk
    return data


async def read_all(stream) -> bytes:
    data = b""
    try:
        while chunk := await stream.receive_some(65536):
            data += chunk
    except trio.BrokenResourceError:
        pass
    return data


@pytest.mark.skipif(not KUBECTL.exists(), reason="kubectl is not installed")
def test_kubectl_works_against_the_server(tmp_path):
    async def test(server, local):
        kubectl = server.kubectl
        assert await kubectl("create", "namespace", "t") == "namespace/t created\n"
        assert (
            await kubectl("-n", "t", "create", "configmap", "m", "--from-literal=k=v")
            == "configmap/m created\n"
        )
        assert "already exists" in await kubectl("create", "namespace", "t", check=False)
        apply = ("-n", "t", "apply", "-f", "-")
        assert await kubectl(*apply, stdin=CONFIG_MAP % 1) == "configmap/c created\n"
        assert await kubectl(*apply, stdin=CONFIG_MAP % 1) == "configmap/c unchanged\n"
        assert await kubectl(*apply, stdin=CONFIG_MAP % 2) == "configmap/c configured\n"
        wrong = (CONFIG_MAP % 1).replace('"data"', '"dataa"')
        assert 'unknown field "dataa"' in await kubectl(*apply, stdin=wrong, check=False)
        assert await kubectl("-n", "t", "label", "cm", "c", "x=y") == "configmap/c labeled\n"
        assert (
            await kubectl("-n", "t", "patch", "cm", "c", "-p", '{"data": {"b": "1"}}')
            == "configmap/c patched\n"
        )
        rows = (await kubectl("-n", "t", "get", "cm", "--show-labels")).splitlines()
        assert [row.split()[:2] + row.split()[3:] for row in rows] == [
            ["NAME", "DATA", "LABELS"],
            ["c", "2", "x=y"],
            ["m", "1", "<none>"],
        ]
        assert await kubectl("-n", "t", "get", "cm", "c", "-o", "jsonpath={.data.a}") == "2"
        wait = ("wait", "ns/t", "--for=jsonpath={.status.phase}=Active", "--timeout=10s")
        assert await kubectl(*wait) == "namespace/t condition met\n"
        assert await kubectl("-n", "t", "delete", "cm", "c", "m") == (
            'configmap "c" deleted from t namespace\nconfigmap "m" deleted from t namespace\n'
        )
        assert 'namespaces "none" not found' in await kubectl("-n", "none", "get", "cm", "x", check=False)

    run(tmp_path, test)


def test_a_client_certificate_reaches_authentication(tmp_path):
    class AdminsOnly:
        def authorize(self, user, attributes):
            return Decision("system:masters" in user.groups)

    async def main():
        async with local_api(tmp_path, authorizer=AdminsOnly()) as local, served(local, tmp_path) as server:
            for certificate, status in ((True, b"200"), (False, b"403")):
                async with connect(server, client_context(server, certificate=certificate)) as stream:
                    await stream.send_all(
                        b"GET /api/v1/pods HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                    )
                    assert (await read_all(stream)).split()[1] == status

    trio.run(main)


def test_one_connection_carries_many_requests_and_a_watch_ends_with_the_server(tmp_path):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            for _ in range(3):
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await read_until(stream, b"\r\n\r\nok")
            await stream.send_all(b"GET /api/v1/configmaps?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"Transfer-Encoding: chunked" in await read_until(stream, b"\r\n\r\n")
            await local.client.create("configmaps", {"metadata": {"name": "a", "namespace": "ns"}})
            assert b'"type":"ADDED"' in await read_until(stream, b"}\n\r\n")
            local.store.end_watches()
            assert await read_until(stream, b"0\r\n\r\n")

    run(tmp_path, test)


def test_the_status_line_has_a_reason(tmp_path):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            await stream.send_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await read_all(stream)).startswith(b"HTTP/1.1 404 Not Found\r\n")

    run(tmp_path, test)


def test_a_watcher_that_leaves_is_noticed(tmp_path):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            await stream.send_all(b"GET /api/v1/configmaps?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            await read_until(stream, b"\r\n\r\n")
            assert local.store.watchers("configmaps") == 1
        while local.store.watchers("configmaps"):
            await trio.sleep(0.01)
        await all_closed(server)

    run(tmp_path, test)


def test_pipelined_requests_are_answered_in_order(tmp_path):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            paths = (b"/healthz", b"/nothing", b"/version")
            await stream.send_all(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths))
            data = await read_until(stream, b"gitVersion")
            assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"404", b"200"]

    run(tmp_path, test)


WATCH = b"GET /api/v1/configmaps?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("together", [True, False], ids=["at once", "later"])
def test_a_watcher_that_leaves_with_a_request_waiting_is_noticed(tmp_path, together):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            await stream.send_all(WATCH * 2 if together else WATCH)
            await read_until(stream, b"\r\n\r\n")
            if not together:
                await stream.send_all(WATCH)
                await stream.send_all(WATCH)
        await all_closed(server)
        assert not local.store.watchers("configmaps")

    run(tmp_path, test)


def test_a_client_that_sends_too_much_ahead_is_cut_off(tmp_path):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(WATCH * 10_000)
            await all_closed(server)
        assert not local.store.watchers("configmaps")

    run(tmp_path, test)


def test_a_refusal_waits_for_the_body_so_that_the_connection_can_go_on(tmp_path):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            for request in (b"GET /healthz", b"POST /nothing", b"GET /api/v1/namespaces/a/configmaps"):
                head = request + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
                await stream.send_all(head)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await stream.send_all(b"hello")
                answer = await read_until(stream, b"\r\n\r\n")
                assert b"close" not in answer.lower()
            await stream.send_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"gitVersion" in await read_all(stream)

    run(tmp_path, test)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"not http at all\r\n\r\n",
    ],
    ids=["websocket", "http2", "huge head", "garbage"],
)
def test_other_protocols_are_turned_away_and_the_server_goes_on(tmp_path, head):
    async def test(server, local):
        async with connect(server, client_context(server)) as stream:
            await stream.send_all(head)
            assert b" 200 " not in (await read_all(stream))[:20]
        assert await healthy(server)
        await all_closed(server)

    run(tmp_path, test)


def test_a_body_that_nobody_reads_does_not_hold_the_connection(tmp_path):
    async def test(server, local):
        head = b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
        async with connect(server, client_context(server)) as stream, trio.open_nursery() as nursery:

            async def send():
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(BIG) + BIG)

            nursery.start_soon(send)
            assert b" 200 " not in (await read_all(stream))[:20]
            nursery.cancel_scope.cancel()
        await all_closed(server)
        assert await healthy(server)

    run(tmp_path, test)


def test_plain_text_and_silent_connections_do_not_disturb_others(tmp_path):
    async def test(server, local):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as plain:
            await plain.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await read_all(plain)
            async with await trio.open_tcp_stream("127.0.0.1", server.port):
                assert await healthy(server)
        await all_closed(server)

    run(tmp_path, test)


def test_connections_beyond_the_limit_are_closed(tmp_path):
    async def test(server, local):
        async with connect(server, client_context(server)):
            with pytest.raises((trio.BrokenResourceError, OSError)):
                await healthy(server)
        await all_closed(server)
        assert await healthy(server)

    run(tmp_path, test, max_connections=1)


def test_a_certificate_of_another_authority_is_refused(tmp_path):
    async def test(server, local):
        other = Pki(tmp_path / "other", datetime.now(UTC))
        other.client("admin", "admin", ["system:masters"])
        context = client_context(server, certificate=False)
        context.load_cert_chain(other.directory / "admin.crt", other.directory / "admin.key")
        with contextlib.suppress(trio.BrokenResourceError, OSError):
            async with connect(server, context) as stream:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert await read_all(stream) == b""
        assert await healthy(server)

    run(tmp_path, test)


def test_http_1_1_is_the_only_protocol_offered(tmp_path):
    async def test(server, local):
        context = client_context(server)
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with connect(server, context) as stream:
            assert stream.selected_alpn_protocol() == "http/1.1"

    run(tmp_path, test)
