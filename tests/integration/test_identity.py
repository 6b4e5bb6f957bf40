"""Whom the calling side talks to, and what it does about addresses that nobody knows."""

import contextlib

import msgspec
import pytest
import trio

from mesh_api.sidecar import EgressMode, Protocol, Snapshot, Workload
from mesh_api.traffic import Algorithm, Retries, Settings
from mesh_proxy.net.addr import Addr
from tests.integration.test_tcp_relay import (
    BROKEN,
    application,
    endpoint,
    everything,
    exactly,
    is_tcp,
)
from tests.support.mesh import VIP, TestCa, client_snapshot, identity, pair, run, sidecar, wait_until


def test_an_endpoint_with_another_identity_is_not_used():
    async def main():
        async with application() as app, pair(app.addr, protocol=Protocol.TCP) as mesh:
            mesh.client.app.on_snapshot(
                mesh.snapshot(
                    protocol=Protocol.TCP, endpoints=(endpoint(mesh.server.inbound, "somebody-else"),)
                )
            )
            client = await mesh.connect()
            with pytest.raises(BROKEN):
                await everything(client)
            line = await mesh.client.log.wait_for(is_tcp)
            assert line["flag"] == "UF"
            assert identity("somebody-else") in line["detail"]
            assert identity("server") in line["detail"]
            assert app.accepted == 0
            assert mesh.client.metric("triomesh_handshakes_total", side="client", result="refused") >= 1
            await client.aclose()

    run(main)


def test_another_endpoint_is_tried_after_a_mismatch():
    async def main():
        ca = TestCa()
        async with application() as app, pair(app.addr, protocol=Protocol.TCP, ca=ca) as mesh:
            from tests.support.mesh import server_snapshot

            async with sidecar(ca.credentials("impostor"), server_snapshot()) as impostor:
                impostor.aim(inbound=app.addr)
                mesh.client.app.on_snapshot(
                    mesh.snapshot(
                        protocol=Protocol.TCP,
                        endpoints=(endpoint(impostor.inbound), endpoint(mesh.server.inbound)),
                        retries=Retries(attempts=1),
                        settings=Settings(algorithm=Algorithm.ROUND_ROBIN),
                    )
                )
                for n in range(5):
                    client = await mesh.connect()
                    await client.send_all(b"x")
                    served = None
                    while served is None:
                        stream = await app.accept()
                        # The impostor's sidecar had opened its application before it was turned down.
                        with trio.move_on_after(0.3), contextlib.suppress(*BROKEN):
                            if await stream.receive_some() == b"x":
                                served = stream
                        if served is None:
                            await stream.aclose()
                    await client.aclose()
                    await served.aclose()
                    await wait_until(lambda n=n: sum(map(is_tcp, mesh.client.log.poll())) > n)
                lines = [line for line in mesh.client.log.lines if is_tcp(line)]
                assert {line.get("flag", "") for line in lines} == {""}
                assert {line["upstream"] for line in lines} == {str(mesh.server.inbound)}
                assert max(line["attempts"] for line in lines) == 2

    run(main)


def test_a_server_of_a_foreign_trust_domain():
    async def main():
        async with application() as app:
            from tests.support.mesh import server_snapshot

            async with sidecar(TestCa("other.example").credentials("server"), server_snapshot()) as back:
                back.aim(inbound=app.addr)
                snapshot = client_snapshot(back.inbound, protocol=Protocol.TCP)
                async with sidecar(TestCa().credentials("client"), snapshot) as front:
                    front.aim(outbound=VIP)
                    client = await trio.open_tcp_stream(*front.outbound)
                    with pytest.raises(BROKEN):
                        await everything(client)
                    line = await front.log.wait_for(is_tcp)
                    assert line["flag"] == "UF"
                    assert "certificate" in line["detail"]
                    assert app.accepted == 0
                    await client.aclose()

    run(main)


def test_an_endpoint_that_never_answers_the_handshake():
    """Accepts TCP, says nothing: the connect timeout counts for TLS too."""

    async def main():
        async with application() as app:
            from mesh_api.traffic import Timeouts

            snapshot = client_snapshot(
                app.addr,
                protocol=Protocol.TCP,
                settings=Settings(timeouts=Timeouts(connect_s=0.3)),
                retries=Retries(attempts=0),
            )
            async with sidecar(TestCa().credentials("client"), snapshot) as front:
                front.aim(outbound=VIP)
                client = await trio.open_tcp_stream(*front.outbound)
                started = trio.current_time()
                with trio.fail_after(5), pytest.raises(BROKEN):
                    await everything(client)
                assert trio.current_time() - started < 2
                line = await front.log.wait_for(is_tcp)
                assert line["flag"] == "UF"
                assert "0.3 s" in line["detail"]
                await client.aclose()

    run(main)


UNKNOWN = Snapshot(workload=Workload(name="client", namespace="shop"), access_log=True)


def test_unknown_address_passes_through():
    async def main():
        async with application() as app, sidecar(None, UNKNOWN) as front:
            front.aim(outbound=app.addr)
            client = await trio.open_tcp_stream(*front.outbound)
            served = await app.accept()  # the server may speak first
            await served.send_all(b"hi")
            assert await exactly(client, 2) == b"hi"
            await client.aclose()
            assert await everything(served) == b""
            await served.aclose()
            assert (await front.log.wait_for(is_tcp))["mtls"] is False

    run(main)


def test_unknown_address_is_refused():
    async def main():
        snapshot = msgspec.structs.replace(UNKNOWN, egress=EgressMode.REFUSE)
        async with application() as app, sidecar(None, snapshot) as front:
            front.aim(outbound=app.addr)
            client = await trio.open_tcp_stream(*front.outbound)
            with pytest.raises(BROKEN):
                await everything(client)
            assert front.metric("triomesh_refused_total", direction="outbound", reason="egress") == 1
            await front.log.wait_for(lambda line: line.get("reason") == "egress")
            assert app.accepted == 0
            await client.aclose()

    run(main)


@pytest.mark.parametrize("snapshot", [None, msgspec.structs.replace(UNKNOWN, synced=False)])
def test_no_answer_is_held_and_then_refused(snapshot):
    async def main():
        async with application() as app, sidecar(None, snapshot) as front:
            front.aim(outbound=app.addr)
            started = trio.current_time()
            client = await trio.open_tcp_stream(*front.outbound)
            with pytest.raises(BROKEN):
                await everything(client)
            assert 1.8 < trio.current_time() - started < 4
            assert front.metric("triomesh_refused_total", reason="no-answer") == 1
            line = await front.log.wait_for(lambda line: line.get("reason") == "no-answer")
            assert "NC" in line["detail"]
            assert app.accepted == 0
            await client.aclose()

    run(main)


def test_an_answer_within_the_hold_lets_it_through():
    async def main():
        async with application() as app, sidecar(None) as front:
            front.aim(outbound=app.addr)
            client = await trio.open_tcp_stream(*front.outbound)
            await client.send_all(b"early")
            await trio.sleep(0.2)
            front.app.on_snapshot(msgspec.structs.replace(UNKNOWN, synced=False))
            await trio.sleep(0.1)
            assert app.accepted == 0
            front.app.on_snapshot(UNKNOWN)
            served = await app.accept()
            assert await exactly(served, 5) == b"early"
            await client.aclose()
            await served.aclose()

    run(main)


@pytest.mark.parametrize("case", ["none", "own-port"])
def test_outbound_addresses_that_cannot_be(case):
    async def main():
        async with sidecar(None, UNKNOWN) as front:
            reason = "no-original-address"
            if case == "own-port":
                reason = "own-port"
                front.aim(outbound=Addr("127.0.0.1", front.app.ports["outbound"]))
            client = await trio.open_tcp_stream(*front.outbound)
            with pytest.raises(BROKEN):
                await everything(client)
            assert front.metric("triomesh_refused_total", direction="outbound", reason=reason) == 1
            await client.aclose()

    run(main)


def test_without_a_certificate_no_mesh_endpoint_is_called():
    async def main():
        async with application() as app, pair(app.addr, protocol=Protocol.TCP) as mesh:
            mesh.client.app.holder.current = None
            client = await mesh.connect()
            with pytest.raises(BROKEN):
                await everything(client)
            line = await mesh.client.log.wait_for(is_tcp)
            assert line["flag"] == "UF"
            assert "no certificate" in line["detail"]
            assert app.accepted == 0
            await client.aclose()

    run(main)
