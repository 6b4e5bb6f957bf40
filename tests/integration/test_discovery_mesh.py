"""Whole sidecars that are told by a control plane: traffic when the mesh changes, or when news stop."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import trio
from cryptography import x509

from certs.credentials import Credentials
from certs.identity import SpiffeId
from certs.workload import obtain
from mesh_api.ca import SignResponse
from mesh_api.sidecar import Destination, Endpoint, Inbound, MtlsMode, Pod, Protocol, TlsMode
from mesh_proxy.net.addr import Addr
from tests.integration.http_peers import Peer, answering, application, mesh_test, ok, settled
from tests.support.discovery import FakeSource, Gate, control_plane, gone, running, serving, streamed
from tests.support.mesh import TRUST_DOMAIN, VIP, TestCa, identity, wait_until

replace = msgspec.structs.replace


class Streamed:
    """A pair of sidecars and their control plane."""

    def __init__(self, ca, source, plane, gate, client, server, app):
        self.ca = ca
        self.source = source
        self.plane = plane
        self.gate = gate
        self.client = client
        self.server = server
        self.app = app
        self.peers: list[Peer] = []

    async def connect(self, addr: Addr | None = None) -> Peer:
        self.peers.append(Peer(await trio.open_tcp_stream(*(addr or self.client.outbound))))
        return self.peers[-1]


def service(addr: Addr, name: str = "server", **changes) -> Destination:
    endpoint = Endpoint(addr.ip, addr.port, TlsMode.MESH, identity(name), "server-v1")
    return replace(
        Destination(
            name="server",
            namespace="shop",
            port=VIP.port,
            addresses=(VIP.ip,),
            protocol=Protocol.HTTP,
            endpoints=(endpoint,),
        ),
        **changes,
    )


@asynccontextmanager
async def pair():
    ca, source = TestCa(), FakeSource()
    async with application(answering(ok(b"hello"))) as app, control_plane(ca, source) as plane:
        gate = Gate(plane.address)
        async with trio.open_nursery() as nursery:
            await nursery.start(gate.run)
            async with streamed(ca, gate, "server") as server, streamed(ca, gate, "client") as client:
                server.aim(inbound=app.addr)
                client.aim(outbound=VIP)
                source.put(serving(service(server.inbound)))
                found = Streamed(ca, source, plane, gate, client, server, app)
                yield found
                for peer in found.peers:
                    peer.close()
                await settled(client, server)
            nursery.cancel_scope.cancel()


@mesh_test
async def test_a_pair_over_the_stream() -> None:
    async with pair() as m:
        peer = await m.connect()
        assert (await peer.get()).body == b"hello"
        assert m.server.metric("triomesh_handshakes_total", side="server", result="ok") == 1
        line = await m.server.log.wait_for(lambda line: "source_identity" in line)
        assert line["source_identity"] == identity("client")
        assert m.client.metric("triomesh_discovery_connected") == 1
        assert m.client.metric("triomesh_discovery_subscriptions") == 2


@mesh_test
async def test_endpoints_follow_without_closing_anything() -> None:
    async with (
        application(answering(ok(b"second"))) as other,
        pair() as m,
        streamed(m.ca, m.gate, "later") as back,
    ):
        back.aim(inbound=other.addr)
        peer = await m.connect()
        assert (await peer.get()).body == b"hello"
        m.source.put(serving(service(back.inbound, "later")))
        await wait_until(lambda: m.client.app.store.lookup(VIP).endpoints[0].identity == identity("later"))
        assert (await peer.get()).body == b"second"


@mesh_test
async def test_a_deleted_service_never_becomes_plaintext_for_a_live_connection() -> None:
    async with pair() as m:
        peer = await m.connect()
        assert (await peer.get()).status == 200
        m.source.put(gone(serving(service(m.server.inbound))))
        # In between the content is gone and nobody has said whose the address is: what is known serves on.
        for _ in range(200):
            response = await peer.get()
            if response.status != 200:
                break
            await trio.sleep(0.005)
        assert response.status == 503
        assert b"no longer a destination" in (response.get(b"x-triomesh-error") or b"")
        m.source.put(serving(service(m.server.inbound)))
        await wait_until(lambda: isinstance(m.client.app.store.lookup(VIP), Destination))
        assert (await peer.get()).status == 200


@mesh_test
async def test_an_address_that_moves_out_of_the_mesh_is_no_place_for_a_live_connection() -> None:
    async with pair() as m, application(answering(ok(b"plain"))) as outside:
        peer = await m.connect()
        assert (await peer.get()).status == 200
        plain = Endpoint(outside.addr.ip, outside.addr.port)
        other = service(m.server.inbound, name="server", endpoints=(plain,))
        other = replace(other, name="another")
        m.source.put({**serving(other), "destination/shop/server:80": None})
        await wait_until(lambda: m.client.app.store.lookup(VIP).name == "another")
        response = await peer.get()
        assert response.status == 503
        assert b"outside the mesh" in (response.get(b"x-triomesh-error") or b"")
        assert not outside.requests
        fresh = await m.connect()
        assert (await fresh.get()).body == b"plain", "whoever dials it now means what it is now"


@mesh_test
async def test_a_pod_address_that_another_identity_has_taken() -> None:
    async with pair() as m:
        addr = m.server.inbound
        pod = Pod(name="server-0", namespace="shop", addresses=(addr.ip,), identity=identity("somebody-else"))
        m.source.put(running(pod, addr.port))
        m.client.aim(outbound=addr)
        peer = await m.connect()
        response = await peer.get()
        assert response.status == 503
        error = response.get(b"x-triomesh-error") or b""
        assert identity("somebody-else").encode() in error
        assert identity("server").encode() in error
        assert not m.app.requests
        m.source.put(running(replace(pod, identity=identity("server")), addr.port))
        await wait_until(lambda: m.client.app.store.lookup(addr).identity == identity("server"))
        assert (await peer.get()).body == b"hello", "learnt anew"


@mesh_test
async def test_nothing_goes_out_in_plaintext_while_the_control_plane_is_paused() -> None:
    async with pair() as m:
        await wait_until(lambda: not m.client.app.not_ready())
        m.gate.pause()
        m.client.aim(outbound=m.app.addr)
        peer = await m.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await peer.end() == "reset"
        line = await m.client.log.wait_for(lambda line: line.get("reason") == "no-answer")
        assert "flag NC" in line["detail"]
        assert not m.app.peers


@mesh_test
async def test_a_service_that_is_learnt_50_ms_late_is_reached_in_the_mesh() -> None:
    async with pair() as m:
        await wait_until(lambda: not m.client.app.not_ready())
        vip = Addr("10.255.0.9", 80)
        m.client.aim(outbound=vip)
        async with trio.open_nursery() as nursery:

            async def learn() -> None:
                await trio.sleep(0.03)
                m.source.put(serving(service(m.server.inbound, addresses=(vip.ip,))))

            nursery.start_soon(learn)
            peer = await m.connect()
            assert (await peer.get()).body == b"hello"
        assert m.client.metric("triomesh_handshakes_total", side="client", result="ok") == 1


@mesh_test
async def test_a_control_plane_that_is_killed_under_load() -> None:
    """Used destinations do not notice; a first dial waits and then works."""
    async with pair() as m:
        statuses: list[int] = []
        done = False

        async def load() -> None:
            while not done:
                peer = await m.connect()
                statuses.extend([(await peer.get()).status for _ in range(5)])
                peer.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await wait_until(lambda: len(statuses) > 20)
            m.plane.kill()
            m.gate.cut()
            await wait_until(lambda: not m.client.app.stream.connected_to)
            seen = len(statuses)
            await wait_until(lambda: len(statuses) > seen + 50)
            async with control_plane(m.ca, m.source) as again:
                m.gate.target = again.address
                late = replace(service(m.server.inbound), name="late", addresses=("10.255.0.7",))
                m.source.put(serving(late))
                m.client.aim(outbound=Addr("10.255.0.7", 80))
                peer = await m.connect()
                assert (await peer.get()).status == 200
                m.client.aim(outbound=VIP)
                seen = len(statuses)
                await wait_until(lambda: len(statuses) > seen + 20)
                done = True
                again.kill()
        assert set(statuses) == {200}


@mesh_test
async def test_strict_by_the_stream_ends_what_it_no_longer_allows() -> None:
    async with pair() as m:
        await wait_until(lambda: not m.server.app.not_ready())
        plain = await m.connect(m.server.inbound)
        assert (await plain.get()).status == 200
        config = replace(m.source.config, inbound=Inbound(mtls=MtlsMode.STRICT))
        m.source.put({"workload": config})
        await wait_until(lambda: m.server.app.store.inbound_mtls(80) is MtlsMode.STRICT)
        assert (await plain.get()).status == 403


@mesh_test
@pytest.mark.parametrize("meshed", [True, False])
async def test_a_silent_caller_is_asked_about(meshed: bool) -> None:
    """A caller with a sidecar will speak; for one without, a server that speaks first is let speak."""

    async def greet(peer: Peer) -> None:
        await peer.send(b"220 ready\r\n")
        await peer.rest()

    async with application(greet) as server, pair() as m:
        await wait_until(lambda: not m.server.app.not_ready())
        if meshed:
            pod = Pod(name="c", namespace="shop", addresses=("127.0.0.1",), identity=identity("client"))
            m.source.put(running(pod))
        m.server.aim(inbound=server.addr)
        peer = await m.connect(m.server.inbound)
        if meshed:
            await wait_until(lambda: m.server.app.store.is_mesh_pod("127.0.0.1"))
            await trio.sleep(0.2)
            assert not server.peers
        else:
            assert await peer.until(b"\r\n") == b"220 ready\r\n"
        peer.close()


@mesh_test
async def test_the_trust_bundle_follows() -> None:
    ca, source = TestCa(), FakeSource()

    class Signer:
        async def sign(self, csr_pem: str) -> SignResponse:
            await trio.lowlevel.checkpoint()
            now = datetime.now(UTC)
            who = SpiffeId(TRUST_DOMAIN, "shop", "client")
            chain = ca.authority.sign(csr_pem.encode(), who, now, timedelta(hours=1))
            return SignResponse(chain_pem=chain.decode(), bundle_pem=ca.authority.bundle_pem(now).decode())

    credentials = await obtain(Signer(), TRUST_DOMAIN)
    async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
        side.app.holder.swap(credentials)
        other = TestCa().credentials("x").bundle_pem
        both = credentials.bundle_pem + other
        source.put({"workload": replace(source.config, bundle_pem=both)})

        def current() -> Credentials:
            assert side.app.holder.current is not None
            return side.app.holder.current

        await wait_until(lambda: current().bundle_pem == both)
        assert len(x509.load_pem_x509_certificates(current().bundle_pem.encode())) == 2
        source.put({"workload": replace(source.config, bundle_pem="nonsense")})
        await side.log.wait_for(lambda line: line["event"] == "trust bundle refused")
        assert current().bundle_pem == both
