"""Contexts: what `build` accepts, what its self-test finds, and that a refusal changes nothing."""

from __future__ import annotations

import dataclasses
import os
import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from certs_kit import DOMAIN, WEB, credentials, trio_test

from certs.authority import Authority
from certs.credentials import ALPN_ALL, ALPN_HTTP1, CredentialsError, Holder, _handshake, build
from certs.keygen import make
from certs.verify import peer_identity
from mesh_api.discovery import ALPN_DISCOVERY

REAL = datetime.now(UTC)
CA = Authority.create(DOMAIN, REAL)


def test_contexts_are_strict():
    made = credentials(CA)
    assert made.identity == str(WEB)
    assert made.not_before < datetime.now(UTC).timestamp() < made.not_after
    assert set(made.client) == {*ALPN_ALL, ALPN_DISCOVERY}
    for context in (made.server, made.discovery, *made.client.values()):
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert not context.check_hostname
        assert context.cert_store_stats()["x509"] == 1
    assert made.server.num_tickets == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.identity = "x"


def test_two_workloads_recognise_each_other_and_get_no_ticket():
    one = credentials(CA)
    two = credentials(CA, identity=dataclasses.replace(WEB, service_account="db"))
    client, server = _handshake(one.client[ALPN_HTTP1], two.server)
    assert peer_identity(client.getpeercert(), DOMAIN).identity == two.identity
    assert peer_identity(server.getpeercert(), DOMAIN).identity == one.identity
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == ALPN_HTTP1
    assert client.session is None or not client.session.has_ticket


def test_strangers_fail_in_both_directions():
    ours = credentials(CA)
    theirs = credentials(Authority.create(DOMAIN, REAL))
    for dialling, accepting in ((ours, theirs), (theirs, ours)):
        with pytest.raises(ssl.SSLCertVerificationError):
            _handshake(dialling.client[ALPN_HTTP1], accepting.server)


def test_overlap_lets_old_and_new_roots_talk():
    new_root = Authority.create(DOMAIN, REAL)
    both = CA.bundle.add(new_root.bundle)
    old = credentials(CA.with_bundle(both))
    new = credentials(new_root.with_bundle(both))
    _handshake(old.client[ALPN_HTTP1], new.server)
    _handshake(new.client[ALPN_HTTP1], old.server)


def test_self_test_refuses():
    other = Authority.create(DOMAIN, REAL)
    with pytest.raises(CredentialsError, match="self-test"):
        credentials(CA, bundle_pem=other.bundle.to_pem().decode())
    with pytest.raises(CredentialsError, match="foreign-trust-domain"):
        credentials(CA, trust_domain="elsewhere")
    old = Authority.create(DOMAIN, REAL - timedelta(days=2))
    with pytest.raises(CredentialsError, match="expired"):
        credentials(old, now=REAL - timedelta(days=1), lifetime_s=60)
    with pytest.raises(CredentialsError, match="1 to 32"):
        credentials(CA, bundle_pem="")
    with pytest.raises(CredentialsError, match="1 to 32"):
        credentials(CA, bundle_pem=CA.bundle.to_pem().decode() * 33)
    with pytest.raises(CredentialsError, match="ASCII"):
        credentials(CA, bundle_pem="é")


def test_key_of_somebody_else(tmp_path):
    chain = CA.sign(make()[1], WEB, REAL).decode()
    fd = os.memfd_create("test-key")
    os.write(fd, make()[0] + chain.encode())
    try:
        with pytest.raises(CredentialsError, match="expected a key with its chain"):
            build(f"/proc/self/fd/{fd}", chain, CA.bundle.to_pem().decode(), DOMAIN, REAL.timestamp())
    finally:
        os.close(fd)
    with pytest.raises(CredentialsError, match="expected a key with its chain"):
        build(str(tmp_path / "none"), chain, CA.bundle.to_pem().decode(), DOMAIN, REAL.timestamp())


@trio_test
async def test_holder_wakes_those_who_wait():
    holder = Holder()
    made = credentials(CA)
    got = []

    async def wait():
        got.append(await holder.wait_ready())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not got
        holder.swap(made)
    assert got == [made]
    assert holder.current is made
    assert holder.swaps == 1
