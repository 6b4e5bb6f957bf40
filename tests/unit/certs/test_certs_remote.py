"""First trust and the CA over TLS: who gets the token, and who does not."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import trio
from certs_kit import DOMAIN, WEB, trio_test
from cryptography import x509

from certs.authority import Authority
from certs.credentials import open_server
from certs.identity import SpiffeId
from certs.keygen import make
from certs.remote import BundleSource, TlsSigner, TrustError
from certs.service import Caller, Denied, Service
from certs.serving import issue, server_context
from certs.workload import SignerError, obtain
from mesh_api.ca import ALPN_CA, SignRequest
from tests.support.control_ca import CONTROL, eavesdropping, kept_credentials, port_of, signer

CA = Authority.create(DOMAIN, datetime.now(UTC))
BUNDLE = CA.bundle.to_pem().decode()
OTHER = Authority.create(DOMAIN, datetime.now(UTC))


class ByToken:
    """Knows one token."""

    def __init__(self) -> None:
        self.token = "good"
        self.callers: list[str] = []

    async def authenticate(self, caller: Caller, request: SignRequest) -> SpiffeId:
        await trio.lowlevel.checkpoint()
        self.callers.append(caller.address)
        if request.token != self.token:
            raise Denied("token: not known", "invalid")
        return WEB


def serving(test, **limits):
    """Run `test(port, authenticator, events)` with the CA's endpoint as the control plane has it."""

    @trio_test
    async def run():
        events: list[tuple[str, dict]] = []
        authenticator = ByToken()
        service = Service(
            lambda: CA,
            authenticator,
            on_event=lambda name, fields: events.append((name, dict(fields))),
            **limits,
        )
        context = open_server(kept_credentials(CA, CONTROL), ALPN_CA)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.listen, listener, lambda: context)
            await test(port_of(listener), authenticator, events)
            nursery.cancel_scope.cancel()

    run()


def test_a_certificate_for_a_token(tmp_path):
    async def test(port, authenticator, events):
        made = await obtain(signer(port, tmp_path, BUNDLE, token="good\n"), DOMAIN)
        assert made.identity == str(WEB)
        assert authenticator.callers == ["127.0.0.1"]
        assert events == [("ca.signed", {"identity": str(WEB)})]

    serving(test)


def test_a_rotated_token_is_read_again(tmp_path):
    async def test(port, authenticator, events):
        asking = signer(port, tmp_path, BUNDLE, token="good")
        assert (await asking.sign(make()[1].decode())).chain_pem
        authenticator.token = "newer"
        assert (await asking.sign(make()[1].decode())).error == "token: not known"
        (tmp_path / "token").write_text("newer")
        assert (await asking.sign(make()[1].decode())).chain_pem
        assert events[1] == ("ca.refused", {"reason": "invalid", "error": "token: not known"})

    serving(test)


def test_a_workload_that_poses_as_the_control_plane_hears_nothing(tmp_path):
    @trio_test
    async def run():
        posing = open_server(kept_credentials(CA, WEB), ALPN_CA)
        async with eavesdropping(posing) as (server, port):
            with pytest.raises(SignerError, match=f"expected {CONTROL} there, the token was not sent") as no:
                await signer(port, tmp_path, BUNDLE, token="secret").sign(make()[1].decode())
            assert f"got {WEB}" in str(no.value)
            await server.ended.wait()
        assert server.handshakes == 1, "its chain is good"
        assert server.heard == []

    run()


@pytest.mark.parametrize(
    ("identity", "authority", "why"),
    [
        (SpiffeId(DOMAIN, "triomesh-system", "triomesh-controller"), CA, "other-identity"),
        (SpiffeId(DOMAIN, "shop", "triomesh-control"), CA, "other-identity"),
        (CONTROL, OTHER, "certificate was refused, the token was not sent: self-signed|unable to get"),
    ],
)
def test_near_misses_hear_nothing(tmp_path, identity, authority, why):
    @trio_test
    async def run():
        async with eavesdropping(open_server(kept_credentials(authority, identity), ALPN_CA)) as (
            server,
            port,
        ):
            with pytest.raises(SignerError, match=why):
                await signer(port, tmp_path, BUNDLE, token="secret").sign(make()[1].decode())
            await server.ended.wait()
        assert server.heard == []

    run()


def test_a_certificate_for_a_dns_name_is_not_the_control_plane(tmp_path):
    @trio_test
    async def run():
        name = "triomesh-control.triomesh-system.svc"
        key, chain = issue(CA, [name], datetime.now(UTC), timedelta(hours=1))
        context = server_context(key, chain, [ALPN_CA])
        async with eavesdropping(context) as (server, port):
            with pytest.raises(SignerError, match="no-uri"):
                await signer(port, tmp_path, BUNDLE, token="secret").sign(make()[1].decode())
            await server.ended.wait()
        assert server.heard == []

    run()


def test_another_protocol_hears_nothing(tmp_path):
    @trio_test
    async def run():
        async with eavesdropping(open_server(kept_credentials(CA, CONTROL), "http/1.1")) as (server, port):
            with pytest.raises(SignerError, match=r"triomesh-ca/1|NO_APPLICATION_PROTOCOL|no application"):
                await signer(port, tmp_path, BUNDLE, token="secret").sign(make()[1].decode())
            await server.ended.wait()
        assert server.heard == []

    run()


def test_errors_say_what_and_where(tmp_path):
    @trio_test
    async def run():
        csr = make()[1].decode()
        (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = port_of(silent)
        with pytest.raises(SignerError, match=r"token .*/token: No such file"):
            await signer(port, tmp_path, BUNDLE).sign(csr)
        (tmp_path / "token").write_text(" \n")
        with pytest.raises(SignerError, match="1 to 16384 ASCII"):
            await signer(port, tmp_path, BUNDLE).sign(csr)
        with pytest.raises(SignerError, match=r"127.0.0.1:\d+: no answer within 0.1 s"):
            await signer(port, tmp_path, BUNDLE, token="x", deadline_s=0.1).sign(csr)
        await silent.aclose()
        with pytest.raises(SignerError, match=r"127.0.0.1:\d+: .*refused"):
            await signer(port, tmp_path, BUNDLE, token="x").sign(csr)
        with pytest.raises(SignerError, match=r"no valid trust bundle .*No such file.*it is empty"):
            await signer(port, tmp_path, "", token="x").sign(csr)

    run()
    for address in ("host", "host:0", "host:x", ":1", "host:99999"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            TlsSigner(address, str(CONTROL), "t", BundleSource("", "f", lambda: ""), DOMAIN)


def roots(source: BundleSource) -> list[str]:
    return sorted(str(root["serialNumber"]) for root in source.context().get_ca_certs())


def serials(*authorities: Authority) -> list[str]:
    return sorted(f"{one.cert.serial_number:X}".zfill(2) for one in authorities)


def normal(found: list[str]) -> list[str]:
    return sorted(one.lstrip("0") for one in found)


def test_the_newest_valid_bundle_wins(tmp_path):
    path = tmp_path / "bundle.pem"
    told = [""]
    source = BundleSource(BUNDLE, str(path), lambda: told[0])
    assert normal(roots(source)) == normal(serials(CA))
    told[0] = CA.bundle.add(OTHER.bundle).to_pem().decode()
    assert normal(roots(source)) == normal(serials(CA, OTHER))
    path.write_text(OTHER.bundle.to_pem().decode())
    assert normal(roots(source)) == normal(serials(OTHER))
    for damaged in (
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "é" * 10,
        "x" * 300_000,
    ):
        path.write_text(damaged)
        assert normal(roots(source)) == normal(serials(CA, OTHER))
    old = Authority.create(DOMAIN, datetime.now(UTC) - timedelta(days=2), timedelta(days=1))
    path.write_text(old.bundle.to_pem().decode())
    told[0] = ""
    assert normal(roots(source)) == normal(serials(CA))
    with pytest.raises(TrustError, match="every root in it has expired"):
        BundleSource("", str(path), lambda: "").context()


def test_a_csr_that_asks_for_another_name_is_refused(tmp_path):
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    def csr(*names: x509.GeneralName) -> str:
        builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        key = ec.generate_private_key(ec.SECP256R1())
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    async def test(port, authenticator, events):
        asking = signer(port, tmp_path, BUNDLE, token="good")
        own = x509.UniformResourceIdentifier(str(WEB))
        assert (await asking.sign(csr(own))).chain_pem
        for foreign in (
            x509.UniformResourceIdentifier(str(CONTROL)),
            x509.DNSName("triomesh-control.triomesh-system.svc"),
        ):
            answer = await asking.sign(csr(own, foreign))
            assert answer.error == (
                f"CSR: expected no name in it, or {WEB}, which is the caller's; got {foreign.value}"
            )
            assert not answer.chain_pem
        assert [fields.get("reason") for _, fields in events] == [None, "foreign-name", "foreign-name"]

    serving(test)


def test_one_address_cannot_hold_all_connections(tmp_path):
    async def test(port, authenticator, events):
        held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        with trio.fail_after(5):
            assert await held[2].receive_some() == b""
        assert events == [("ca.dropped", {"error": "too many connections from 127.0.0.1"})]
        await held[0].aclose()
        with trio.fail_after(5):
            while len(events) < 2:
                await trio.sleep(0.01)
        assert (await signer(port, tmp_path, BUNDLE, token="good").sign(make()[1].decode())).chain_pem
        for stream in held:
            await stream.aclose()

    serving(test, max_per_address=2)


def test_a_client_without_tls_or_of_another_protocol_is_dropped(tmp_path):
    async def test(port, authenticator, events):
        plain = await trio.open_tcp_stream("127.0.0.1", port)
        await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with trio.fail_after(5):
            while not events:
                await trio.sleep(0.01)
        assert events[0][0] == "ca.dropped"
        await plain.aclose()
        assert authenticator.callers == []

    serving(test)


def test_a_sidecar_pays_for_no_certificate_library():
    heavy = "'cryptography', 'kubernetes', 'click'"
    code = f"import sys, certs.remote; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
