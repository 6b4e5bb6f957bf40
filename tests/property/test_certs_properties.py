"""Properties of identities, signing and bundles over generated input."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.authority import Authority, AuthorityError
from certs.bundle import BundleError, TrustBundle
from certs.identity import IdentityError, SpiffeId
from certs.rotation import renew_at, retry_in
from certs.verify import Peer, PeerRejected, peer_identity
from mesh_api.sidecar import is_spiffe_id

NOW = datetime(2030, 5, 1, tzinfo=UTC)
CA = Authority.create("cluster.local", NOW)
KEY = ec.generate_private_key(ec.SECP256R1())
ROOTS = [Authority.create("cluster.local", NOW, timedelta(days=n + 1)).cert for n in range(6)]

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
IDS = st.builds(SpiffeId, st.from_regex(r"[a-z0-9._-]{1,30}", fullmatch=True), LABEL, LABEL)


@given(IDS)
def test_identity_round_trip(identity):
    assert SpiffeId.parse(str(identity)) == identity
    assert is_spiffe_id(str(identity))


@given(
    st.text() | st.binary().map(lambda b: b.decode("latin-1")) | st.from_regex(r"spiffe://.*/ns/.*/sa/.*"),
)
def test_any_text_is_an_identity_or_an_identity_error(text):
    try:
        identity = SpiffeId.parse(text)
    except IdentityError:
        return
    assert str(identity) == text


@given(IDS, st.integers(0, 60), st.sampled_from(["\0", "/", " ", "%", "A", "\n", "é", ":"]))
def test_a_foreign_character_anywhere_is_refused(identity, at, char):
    text = str(identity)
    at = min(at, len(text))
    with pytest.raises(IdentityError):
        SpiffeId.parse(text[:at] + char + text[at:])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(IDS.map(str) | LABEL, max_size=4),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=30),
    LABEL,
    st.integers(1, 10**6),
)
def test_sign_ignores_what_the_request_asks_for(uris, name, account, life_s):
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    csr = builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)
    identity = SpiffeId("cluster.local", "shop", account)
    leaf = x509.load_pem_x509_certificate(CA.sign(csr, identity, NOW, timedelta(seconds=life_s)))
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [general.value for general in san] == [str(identity)]
    assert leaf.subject == x509.Name([])
    assert leaf.not_valid_after_utc == NOW + timedelta(seconds=life_s)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_request_give_an_authority_error(data):
    identity = SpiffeId("cluster.local", "a", "b")
    for csr in (data, b"-----BEGIN CERTIFICATE REQUEST-----\n" + data):
        with pytest.raises(AuthorityError):
            CA.sign(csr, identity, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_bundle_give_a_bundle_error(data):
    with pytest.raises(BundleError):
        TrustBundle.parse(data + b"-----BEGIN CERTIFICATE-----\n" + data)


@given(st.lists(st.sampled_from(ROOTS), min_size=1, max_size=20), st.integers(0, 5))
def test_a_bundle_is_an_ordered_set(certs, days):
    bundle = TrustBundle.of(certs)
    assert list(bundle.roots) == list(dict.fromkeys(certs))
    assert TrustBundle.parse(bundle.to_pem()) == bundle
    assert bundle.add(bundle) == bundle
    now = NOW + timedelta(days=days, seconds=1)
    left = [cert for cert in bundle.roots if cert.not_valid_after_utc >= now]
    if left:
        assert list(bundle.drop_expired(now).roots) == left
    else:
        with pytest.raises(BundleError):
            bundle.drop_expired(now)


@given(
    st.dictionaries(
        st.sampled_from(["subjectAltName", "notBefore", "notAfter"]),
        st.lists(st.tuples(st.sampled_from(["URI", "DNS"]), st.text() | IDS.map(str))) | st.text(),
    )
)
def test_any_peer_dictionary_is_a_peer_or_rejected(cert):
    if not isinstance(cert.get("subjectAltName", []), list):
        cert.pop("subjectAltName")
    try:
        assert isinstance(peer_identity(cert, "cluster.local"), Peer)
    except PeerRejected:
        pass


@given(st.floats(0, 4e9), st.floats(0, 1e8), st.integers())
def test_renewal_lies_inside_the_lifetime(issued_at, life, seed):
    when = renew_at(issued_at, issued_at + life, random.Random(seed))
    assert issued_at <= when <= issued_at + life


@given(st.integers(0, 10**9), st.floats(allow_nan=False), st.integers())
def test_retries_are_positive_and_bounded(attempt, remaining, seed):
    assert 0.04 < retry_in(attempt, remaining, random.Random(seed)) <= 30
