"""The cluster's certificate authority, its directory, and kubeconfig files."""

import base64
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from mesh_local.apiserver.auth.authenticator import certificate_user
from mesh_local.apiserver.auth.pki import Pki, PkiError, write_kubeconfig

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def test_the_same_directory_is_the_same_cluster(tmp_path: Path) -> None:
    first, second = Pki(tmp_path / "pki", NOW), Pki(tmp_path / "pki", NOW + timedelta(days=1))
    assert first.ca == second.ca
    assert first.server(["127.0.0.1"]) == second.server(["127.0.0.1"])
    assert first.client("admin", "a", ["g"]) == second.client("admin", "a", ["g"])
    assert first.token_key().private_numbers() == second.token_key().private_numbers()
    assert first.ca.fingerprint == second.ca.fingerprint != second.server(["127.0.0.1"]).fingerprint


def test_private_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki", NOW)
    pki.server(["localhost"])
    pki.client("admin", "admin")
    pki.token_key()
    keys = sorted(p.name for p in pki.directory.glob("*.key"))
    assert keys == ["admin.key", "apiserver.key", "ca.key", "sa.key"]
    assert {mode(pki.directory / name) for name in keys} == {0o600}
    assert mode(pki.directory) == 0o700
    assert mode(pki.ca_path) == 0o644


def test_server_certificate_follows_the_names_asked(tmp_path: Path) -> None:
    pki = Pki(tmp_path, NOW)
    first = pki.server(["localhost", "10.96.0.1", "fd00::1"])
    names = (
        x509.load_pem_x509_certificate(first.certificate)
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.96.0.1", "fd00::1"]
    assert pki.server(["fd00::1", "localhost", "10.96.0.1"]) == first
    assert pki.server(["localhost"]) != first


def test_a_leaf_near_its_end_is_made_anew(tmp_path: Path) -> None:
    first = Pki(tmp_path, NOW).client("admin", "admin")
    assert Pki(tmp_path, NOW + timedelta(days=330)).client("admin", "admin") == first
    assert Pki(tmp_path, NOW + timedelta(days=340)).client("admin", "admin") != first


def test_a_leaf_whose_key_is_another_is_made_anew(tmp_path: Path) -> None:
    pki = Pki(tmp_path, NOW)
    first = pki.client("admin", "admin")
    other = pki.client("other", "other")
    (tmp_path / "admin.key").write_bytes(other.key)
    again = pki.client("admin", "admin")
    assert again.certificate != first.certificate
    assert again.key not in (first.key, other.key)


@pytest.mark.parametrize(
    ("file", "content"), [("ca.crt", b"no certificate"), ("ca.key", b"no key"), ("ca.key", None)]
)
def test_a_damaged_authority_is_an_error_and_stays(tmp_path: Path, file: str, content: bytes | None) -> None:
    Pki(tmp_path, NOW)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    before = (tmp_path / "ca.crt").read_bytes()
    with pytest.raises(PkiError, match=r"ca\.(crt|key)"):
        Pki(tmp_path, NOW)
    assert (tmp_path / "ca.crt").read_bytes() == before


def test_the_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    Pki(tmp_path / "a", NOW)
    Pki(tmp_path / "b", NOW)
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(PkiError, match=r"is not the key of"):
        Pki(tmp_path / "a", NOW)


def test_client_certificate_names_user_and_groups(tmp_path: Path) -> None:
    pair = Pki(tmp_path, NOW).client("node", "system:node:n1", ["system:nodes", "x"])
    user = certificate_user(der(pair.certificate))
    assert (user.name, user.groups) == ("system:node:n1", ("system:nodes", "x", "system:authenticated"))
    expected = {"authentication.kubernetes.io/credential-id": (f"X509SHA256={pair.fingerprint}",)}
    assert user.extra == expected


def test_kubeconfig_embeds_everything(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki", NOW)
    pair = pki.client("admin", "kubernetes-admin", ["system:masters"])
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, "https://127.0.0.1:6443", pki.ca.certificate, pair, cluster="c", user="u")
    assert mode(path) == 0o600
    config = yaml.safe_load(path.read_text())
    assert config["current-context"] == "c"
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"
    stored = config["clusters"][0]["cluster"]["certificate-authority-data"]
    assert base64.b64decode(stored) == pki.ca.certificate
    assert base64.b64decode(config["users"][0]["user"]["client-key-data"]) == pair.key
