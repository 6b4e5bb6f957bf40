"""Identity, rotation times, the trust bundle and peer verification: no sockets, no clock."""

from __future__ import annotations

import random
import ssl
from datetime import timedelta

import pytest
from certs_kit import NOW, WEB, certificate, key_pem, p256, pem

from certs.authority import Authority
from certs.bundle import MAX_ROOTS, BundleError, TrustBundle
from certs.identity import IdentityError, SpiffeId
from certs.rotation import JITTER, renew_at, retry_in
from certs.verify import Peer, PeerRejected, peer_identity


def test_identity_round_trip():
    text = "spiffe://cluster.local/ns/shop/sa/web.v1"
    assert str(SpiffeId.parse(text)) == text
    assert SpiffeId.parse(text) == SpiffeId("cluster.local", "shop", "web.v1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://cluster.local",
        "https://cluster.local/ns/a/sa/b",
        "SPIFFE://cluster.local/ns/a/sa/b",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe://cluster.local:80/ns/a/sa/b",
        "spiffe://u@cluster.local/ns/a/sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b/",
        "spiffe://cluster.local/ns/a/sa/b\n",
        "spiffe://cluster.local/ns/a/sa/b\0",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local/ns/../sa/b",
        "spiffe://cluster.local/ns/a/sa/b?x",
        "spiffe://cluster.local/ns/a/sa/b#x",
        "spiffe://cluster.local/ns/a%2f/sa/b",
        "spiffe://cluster.local/sa/a/ns/b",
        "spiffe://cluster.local/ns/" + "a" * 64 + "/sa/b",
        "spiffe://cluster.local/ns/a/sa/" + "a" * 254,
        "spiffe://cluster.local/ns/a/sa/b..c",
        "spiffe://cluster.local/ns/ä/sa/b",
        "spiffe://" + "a" * 3000,
    ],
)
def test_identity_refuses(text):
    with pytest.raises(IdentityError, match="expected"):
        SpiffeId.parse(text)


@pytest.mark.parametrize("life", [2.0, 30.0, 86_400.0])
def test_renewal_is_near_half_life(life):
    rng = random.Random(1)
    times = [renew_at(1000.0, 1000.0 + life, rng) - 1000.0 for _ in range(500)]
    assert life * (0.5 - JITTER) <= min(times) < max(times) <= life * (0.5 + JITTER)
    assert max(times) - min(times) > life * JITTER


def test_renewal_of_an_expired_leaf_is_due_now():
    assert renew_at(1000.0, 900.0, random.Random(1)) == 1000.0


def test_retries_grow_to_a_limit_and_fit_the_time_left():
    rng = random.Random(1)
    assert all(0.25 <= retry_in(0, float("inf"), rng) <= 0.5 for _ in range(100))
    assert all(15 <= retry_in(10_000, float("inf"), rng) <= 30 for _ in range(100))
    assert all(0 < retry_in(50, 8.0, rng) <= 1.0 for _ in range(100))
    assert all(0.05 <= retry_in(50, 0.001, rng) <= 0.1 for _ in range(100))
    assert all(15 <= retry_in(50, -5.0, rng) <= 30 for _ in range(100))


def _cert(*names, **changes):
    cert = {
        "subjectAltName": names,
        "notBefore": "May  1 11:58:00 2030 GMT",
        "notAfter": "May  2 12:00:00 2030 GMT",
    }
    return {**cert, **changes}


def test_peer_identity_and_dates():
    cert = _cert(("DNS", "x"), ("URI", str(WEB)))
    start = NOW.timestamp()
    assert peer_identity(cert, "cluster.local") == Peer(str(WEB), start - 120, start + 86_400)
    assert peer_identity(cert, "cluster.local").not_after == ssl.cert_time_to_seconds(cert["notAfter"])


@pytest.mark.parametrize(
    ("cert", "reason"),
    [
        (None, "no-certificate"),
        ({}, "no-certificate"),
        (_cert(), "no-uri"),
        (_cert(("DNS", str(WEB))), "no-uri"),
        (_cert(("URI", str(WEB)), ("URI", str(WEB))), "several-uris"),
        (_cert(("URI", "spiffe://cluster.local")), "not-spiffe"),
        (_cert(("URI", str(WEB) + "\0.evil")), "not-spiffe"),
        (_cert(("URI", "spiffe://other/ns/shop/sa/web")), "foreign-trust-domain"),
        (_cert(("URI", str(WEB)), notAfter="tomorrow"), "validity"),
        (_cert(("URI", str(WEB)), notBefore=None), "validity"),
        (_cert(("URI", str(WEB)), notAfter="Maj  2 12:00:00 2030 GMT"), "validity"),
    ],
)
def test_peer_is_rejected(cert, reason):
    with pytest.raises(PeerRejected) as caught:
        peer_identity(cert, "cluster.local")
    assert caught.value.reason == reason


def test_bundle_adds_dedupes_and_removes():
    one = Authority.create("d", NOW).bundle
    two = Authority.create("d", NOW).bundle
    both = one.add(two).add(one)
    assert both.fingerprints == one.fingerprints + two.fingerprints
    assert TrustBundle.parse(b"text\n" + both.to_pem() + one.to_pem()) == both
    assert both.remove(one.fingerprints[0]) == two
    with pytest.raises(BundleError, match="fingerprint"):
        two.remove(one.fingerprints[0])
    with pytest.raises(BundleError, match="1 to 32"):
        two.remove(two.fingerprints[0])


def test_bundle_drops_expired_roots_but_never_all():
    short = Authority.create("d", NOW, timedelta(hours=1)).bundle
    both = short.add(Authority.create("d", NOW).bundle)
    assert both.drop_expired(NOW) == both
    assert both.drop_expired(NOW + timedelta(hours=2)).fingerprints == both.fingerprints[1:]
    with pytest.raises(BundleError):
        short.drop_expired(NOW + timedelta(hours=2))


def test_bundle_is_bounded_and_holds_only_self_signed_cas():
    root_key, key = p256(), p256()
    root = certificate("root", root_key)
    many = [certificate(f"root {i}", root_key) for i in range(MAX_ROOTS + 1)]
    assert len(TrustBundle.parse(pem(*many[:-1])).roots) == MAX_ROOTS
    for bad, words in [
        (pem(*many), "1 to 32"),
        (b"", "1 to 32"),
        (pem(root) + key_pem(key), "private key"),
        (pem(certificate("mid", key, (root, root_key))), "self-signed"),
        (pem(certificate("leaf", key, ca=False)), "CA:TRUE"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM"),
        (b"x" * 200_000, "bytes"),
    ]:
        with pytest.raises(BundleError, match=words):
            TrustBundle.parse(bad)
