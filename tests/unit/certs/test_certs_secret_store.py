"""A CA as a Secret's data: round trips, steps of a rotation, damage."""

from __future__ import annotations

from datetime import timedelta

import pytest
from certs_kit import DOMAIN, NOW, certificate, key_pem, p256, pem

from certs.authority import Authority
from certs.secret_store import (
    SecretStoreError,
    activate,
    create,
    decode,
    encode,
    retire,
    stage,
)

DAY = timedelta(days=1)


def test_what_is_written_is_read():
    state = create(DOMAIN, NOW)
    data = encode(state)
    assert sorted(data) == ["active-since", "bundle.pem", "signer.key", "signer.pem", "trust-domain"]
    assert encode(decode(data)) == data
    assert decode(data).since == NOW


def test_a_rotation_by_overlap():
    first = create(DOMAIN, NOW)
    following = Authority.create(DOMAIN, NOW)
    staged = decode(encode(stage(first, following, NOW + DAY)))
    assert staged.signer.cert == first.signer.cert
    assert len(staged.signer.bundle.roots) == 2
    with pytest.raises(SecretStoreError, match="waits already"):
        stage(staged, following, NOW)
    with pytest.raises(SecretStoreError, match="another 3600 s, until every workload has the new root"):
        activate(staged, NOW + 2 * DAY - timedelta(hours=1), DAY)
    with pytest.raises(SecretStoreError, match="activate it first"):
        retire(staged, NOW + 9 * DAY, DAY)
    active = decode(encode(activate(staged, NOW + 2 * DAY, DAY)))
    assert active.signer.cert == following.cert
    assert active.waiting is None
    assert len(active.signer.bundle.roots) == 2
    with pytest.raises(SecretStoreError, match="until leaves of the old root have expired"):
        retire(active, NOW + 2 * DAY, DAY)
    done, gone = retire(active, NOW + 3 * DAY, DAY)
    assert gone == first.signer.bundle.fingerprints
    assert decode(encode(done)).signer.bundle.roots == (following.cert,)
    with pytest.raises(SecretStoreError, match="stage one first"):
        activate(done, NOW, DAY)
    assert activate(stage(done, first.signer, NOW), NOW, timedelta()).signer.cert == first.signer.cert


def test_an_intermediate_of_the_user():
    root_key, key = p256(), p256()
    root = certificate("root", root_key)
    signer = Authority.import_intermediate(
        pem(certificate("mesh", key, (root, root_key))), key_pem(key), b"", pem(root), DOMAIN, NOW
    )
    state = activate(stage(create(DOMAIN, NOW), signer, NOW), NOW, timedelta())
    assert decode(encode(state)).signer.root == root
    assert decode(encode(state)).signer.trust_domain == DOMAIN


def test_another_trust_domain_is_not_staged():
    with pytest.raises(SecretStoreError, match=r"expected trust domain cluster\.local, got other"):
        stage(create(DOMAIN, NOW), Authority.create("other", NOW), NOW)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("signer.pem", None, "expected the key signer.pem"),
        ("signer.key", b"x", "expected one private key"),
        ("bundle.pem", b"", "signer.pem"),
        ("trust-domain", b"Not a domain", "trust domain"),
        ("active-since", b"yesterday", "expected a time such as"),
        ("next.pem", b"x", "next.pem: "),
    ],
)
def test_damage_is_named(key, value, message):
    data = encode(create(DOMAIN, NOW))
    if value is None:
        del data[key]
    else:
        data[key] = value
    if key == "bundle.pem":  # a self-signed signer needs none, so another root stands in for the damage
        data[key] = Authority.create(DOMAIN, NOW).bundle.to_pem()
    with pytest.raises(SecretStoreError, match=message):
        decode(data)


def test_the_key_of_another_ca():
    data = encode(create(DOMAIN, NOW))
    data["signer.key"] = encode(create(DOMAIN, NOW))["signer.key"]
    with pytest.raises(SecretStoreError, match="expected the private key of"):
        decode(data)
