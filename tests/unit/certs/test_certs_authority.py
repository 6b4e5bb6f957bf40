"""The CA: what a leaf looks like, what it refuses to sign, and which foreign CAs it takes."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from certs_kit import DOMAIN, NOW, WEB, certificate, key_pem, p256, pem
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.authority import Authority, AuthorityError
from certs.identity import SpiffeId
from certs.keygen import make

ROOT = Authority.create(DOMAIN, NOW)


def _csr(key, *extensions) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def _sign(csr: bytes, authority: Authority = ROOT, **more) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(authority.sign(csr, WEB, more.pop("now", NOW), **more))


def _value(cert, kind):
    extension = cert.extensions.get_extension_for_class(kind)
    return extension.critical, extension.value


def test_leaf_profile():
    key = p256()
    (leaf,) = _sign(_csr(key))
    assert leaf.public_key() == key.public_key()
    assert leaf.subject == x509.Name([])
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=24)
    assert _value(leaf, x509.BasicConstraints) == (True, x509.BasicConstraints(False, None))
    critical, usage = _value(leaf, x509.KeyUsage)
    assert critical
    assert usage.digital_signature
    assert not any([usage.key_cert_sign, usage.crl_sign, usage.key_encipherment, usage.key_agreement])
    _, eku = _value(leaf, x509.ExtendedKeyUsage)
    assert set(eku) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))])
    assert _value(leaf, x509.SubjectAlternativeName) == (True, san)
    _, ski = _value(leaf, x509.SubjectKeyIdentifier)
    assert ski == x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    _, aki = _value(leaf, x509.AuthorityKeyIdentifier)
    assert aki.key_identifier == _value(ROOT.cert, x509.SubjectKeyIdentifier)[1].digest
    leaf.verify_directly_issued_by(ROOT.cert)
    assert leaf.serial_number != _sign(_csr(key))[0].serial_number


def test_identity_comes_from_the_argument_alone():
    csr = _csr(
        p256(),
        x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier("spiffe://cluster.local/ns/kube-system/sa/root"),
                x509.DNSName("evil"),
            ]
        ),
        x509.BasicConstraints(True, None),
    )
    (leaf,) = _sign(csr)
    plain = _sign(_csr(p256()))[0]
    assert [e.oid for e in leaf.extensions] == [e.oid for e in plain.extensions]
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))])
    assert _value(leaf, x509.SubjectAlternativeName)[1] == san
    assert not _value(leaf, x509.BasicConstraints)[1].ca
    assert leaf.subject == x509.Name([])


def test_short_lifetimes():
    (leaf,) = _sign(_csr(p256()), lifetime=timedelta(seconds=2))
    assert leaf.not_valid_after_utc == NOW + timedelta(seconds=2)


@pytest.mark.parametrize("life", [timedelta(0), timedelta(seconds=-1), timedelta(days=4000), timedelta.max])
def test_refused_lifetimes(life):
    with pytest.raises(AuthorityError, match="lifetime"):
        _sign(_csr(p256()), lifetime=life)


def test_the_issuers_end_is_the_limit():
    short = Authority.create(DOMAIN, NOW, timedelta(hours=1))
    csr = _csr(p256())
    (leaf,) = _sign(csr, short, lifetime=timedelta(hours=1))
    assert leaf.not_valid_after_utc == short.not_after
    with pytest.raises(AuthorityError, match="before the issuer's"):
        _sign(csr, short, lifetime=timedelta(hours=1, seconds=1))
    with pytest.raises(AuthorityError, match="expired"):
        _sign(csr, short, now=NOW + timedelta(hours=1), lifetime=timedelta(seconds=1))
    with pytest.raises(AuthorityError, match="not valid before"):
        _sign(csr, short, now=NOW - timedelta(hours=1), lifetime=timedelta(seconds=1))
    with pytest.raises(AuthorityError, match="time zone"):
        _sign(csr, short, now=datetime(2030, 5, 1))  # naive on purpose


def test_foreign_trust_domain_is_refused():
    with pytest.raises(AuthorityError, match="trust domain"):
        ROOT.sign(make()[1], SpiffeId("other", "shop", "web"), NOW)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["p384", "rsa", "ed25519"],
)
def test_only_p256_requests(key):
    with pytest.raises(AuthorityError, match="P-256"):
        _sign(_csr(key))


def test_bad_requests():
    der = x509.load_pem_x509_csr(_csr(p256())).public_bytes(Encoding.DER)
    at = der.index(b"admin")
    forged = x509.load_der_x509_csr(der[:at] + b"nimda" + der[at + 5 :]).public_bytes(Encoding.PEM)
    with pytest.raises(AuthorityError, match="signature"):
        _sign(forged)
    for bad in (b"", b"hello", forged[:200], pem(ROOT.cert), b"x" * 100_000):
        with pytest.raises(AuthorityError, match="CSR"):
            _sign(bad)


def test_pem_round_trip_and_secrecy():
    parts = ROOT.to_pem()
    again = Authority.load(parts.cert, parts.key, parts.chain, parts.roots)
    assert (again.cert, again.bundle, again.trust_domain) == (ROOT.cert, ROOT.bundle, DOMAIN)
    assert again.to_pem() == parts
    assert "PRIVATE" not in repr(parts) + repr(ROOT)
    assert _sign(_csr(p256()), again)[0].issuer == ROOT.cert.subject


def _chain(**middle):
    root_key, upper_key, key = p256(), p256(), p256()
    root = certificate("root", root_key, end=NOW + timedelta(days=4000))
    upper = certificate("upper", upper_key, (root, root_key), **middle)
    signer = certificate("signer", key, (upper, upper_key))
    return root, upper, signer, key


def test_import_signs_with_the_whole_chain_but_no_root():
    root, upper, signer, key = _chain()
    for chain in (pem(upper), pem(upper, root)):
        authority = Authority.import_intermediate(pem(signer), key_pem(key), chain, pem(root), DOMAIN, NOW)
        leaf, *above = _sign(_csr(p256()), authority)
        assert above == [signer, upper]
        leaf.verify_directly_issued_by(signer)
        assert authority.not_after == NOW + timedelta(days=365)


def test_import_refuses():
    root, upper, signer, key = _chain()
    stranger = certificate("root", p256())
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))

    def attempt(words, cert=signer, private=None, chain=(upper,), roots=root, domain=DOMAIN, now=NOW):
        with pytest.raises(AuthorityError, match=words):
            Authority.import_intermediate(
                pem(cert), private or key_pem(key), pem(*chain), pem(roots), domain, now
            )

    attempt("private key of", private=key_pem(p256()))
    attempt("passphrase", private=encrypted)
    attempt("one private key", private=b"nonsense")
    attempt("P-256 or P-384", private=key_pem(ed25519.Ed25519PrivateKey.generate()))
    attempt("issued by one of the roots", roots=stranger)
    attempt("issued by one of the roots", chain=())
    attempt("issuer of", chain=(certificate("upper", p256()),))
    attempt("expired", now=NOW + timedelta(days=366))
    attempt("not valid before", now=NOW - timedelta(days=2))
    attempt("trust domain", domain="Bad Domain")
    attempt("CA:FALSE", cert=certificate("s", key, ca=False))
    attempt("keyCertSign", cert=certificate("s", key, cert_sign=False))
    root, upper, signer, key = _chain(path_length=0)
    attempt("path length", cert=signer, private=key_pem(key), chain=(upper,), roots=root)


def test_bundle_in_force_and_with_bundle():
    old = Authority.create(DOMAIN, NOW, timedelta(hours=1))
    both = ROOT.with_bundle(old.bundle.add(ROOT.bundle))
    assert both.bundle_pem(NOW) == both.bundle.to_pem()
    assert both.bundle_pem(NOW + timedelta(hours=2)) == ROOT.bundle.to_pem()
    with pytest.raises(AuthorityError, match="signer's root"):
        ROOT.with_bundle(old.bundle)


def test_create_refuses():
    for domain, life in (("", timedelta(1)), (DOMAIN, timedelta(0)), (DOMAIN, timedelta.max)):
        with pytest.raises(AuthorityError, match="expected"):
            Authority.create(domain, NOW, life)
