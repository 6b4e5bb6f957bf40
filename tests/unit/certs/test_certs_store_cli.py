"""The CA's directory and its command line."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
import trio
from certs_kit import DOMAIN, certificate, key_pem, p256, pem, trio_test
from click.testing import CliRunner
from cryptography import x509

from certs import store
from certs.__main__ import main
from certs.authority import Authority
from certs.bundle import fingerprint
from certs.keygen import make
from certs.workload import UnixSigner

REAL = datetime.now(UTC)


def _cli(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    if code:
        assert result.output.startswith("Error: ")
        assert result.output.count("\n") == 1
    return result.output


def test_round_trip_and_modes(tmp_path):
    directory = tmp_path / "deep" / "ca"
    made = Authority.create(DOMAIN, REAL)
    store.create(directory, made)
    assert store.load(directory).to_pem() == made.to_pem()
    assert stat.S_IMODE((directory / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert sorted(os.listdir(directory)) == [".lock", "ca.crt", "ca.key", "roots.pem", "trust-domain"]
    with pytest.raises(store.StoreError, match="already"):
        store.create(directory, made)


def test_of_several_creators_one_wins(tmp_path):
    outcomes: list[object] = []

    def attempt():
        made = Authority.create(DOMAIN, REAL)
        try:
            store.create(tmp_path / "ca", made)
            outcomes.append(made.cert)
        except store.StoreError as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [one for one in outcomes if isinstance(one, x509.Certificate)]
    assert winners == [store.load(tmp_path / "ca").cert]
    assert len(outcomes) == 6


def test_an_interrupted_creation_can_be_repeated(tmp_path):
    store.create(tmp_path, Authority.create(DOMAIN, REAL))
    (tmp_path / "ca.key").unlink()
    again = Authority.create("other.domain", REAL)
    store.create(tmp_path, again)
    assert store.load(tmp_path).trust_domain == "other.domain"


def test_unusable_directories(tmp_path):
    with pytest.raises(store.StoreError, match=r"no ca\.key"):
        store.load(tmp_path)
    store.create(tmp_path, Authority.create(DOMAIN, REAL))
    before = store.version(tmp_path)
    (tmp_path / "ca.key").write_bytes(Authority.create(DOMAIN, REAL).to_pem().key)
    assert store.version(tmp_path) != before
    with pytest.raises(store.StoreError, match="private key of"):
        store.load(tmp_path)
    (tmp_path / "ca.crt").write_bytes(b"x" * (store.MAX_FILE_BYTES + 1))
    with pytest.raises(store.StoreError, match="at most"):
        store.load(tmp_path)


def test_rotation_in_three_steps(tmp_path):
    now = datetime.now(UTC).timestamp()
    old, new = Authority.create(DOMAIN, REAL), Authority.create(DOMAIN, REAL)
    store.create(tmp_path, old)
    with pytest.raises(store.StoreError, match="no signer waits"):
        store.activate(tmp_path, now, 0)
    store.stage(tmp_path, new)
    staged = store.load(tmp_path)
    assert staged.cert == old.cert
    assert staged.bundle == old.bundle.add(new.bundle)
    with pytest.raises(store.StoreError, match="waits already"):
        store.stage(tmp_path, Authority.create(DOMAIN, REAL))
    with pytest.raises(store.StoreError, match="signer waits"):
        store.retire(tmp_path, now, 0)
    with pytest.raises(store.StoreError, match="another"):
        store.activate(tmp_path, now, 3600)
    store.activate(tmp_path, now + 4000, 3600)
    assert store.load(tmp_path).cert == new.cert
    assert store.load(tmp_path).bundle == staged.bundle
    with pytest.raises(store.StoreError, match="another"):
        store.retire(tmp_path, now, 3600)
    assert store.retire(tmp_path, now + 4000, 3600) == old.bundle.fingerprints
    assert store.load(tmp_path).bundle == new.bundle
    with pytest.raises(store.StoreError, match="trust domain"):
        store.stage(tmp_path, Authority.create("else", REAL))


def test_cli_create_show_rotate(tmp_path):
    directory = tmp_path / "ca"
    _cli("create", "--dir", directory, "--trust-domain", "shop.example")
    shown = _cli("show", "--dir", directory)
    cert = store.load(directory).cert
    assert fingerprint(cert) in shown
    assert "shop.example" in shown
    assert f"{cert.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}" in shown
    _cli("rotate", "--dir", directory)
    assert "waiting signer" in _cli("show", "--dir", directory)
    assert "--force" in _cli("rotate", "--dir", directory, "--activate", code=2)
    _cli("rotate", "--dir", directory, "--activate", "--force")
    assert fingerprint(cert) in _cli("rotate", "--dir", directory, "--retire", "--force")
    assert fingerprint(cert) not in _cli("show", "--dir", directory)


def test_cli_import(tmp_path):
    root_key, key = p256(), p256()
    # The command line reads the real clock.
    dates = {"start": REAL - timedelta(days=1), "end": REAL + timedelta(days=99)}
    root = certificate("their root", root_key, **dates)
    signer = certificate("their signer", key, (root, root_key), **dates)
    files = {"cert": pem(signer), "key": key_pem(key), "root": pem(root)}
    options: list[object] = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        options += [f"--{name}", tmp_path / name]
    directory = tmp_path / "ca"
    assert "--trust-domain" in _cli("import", "--dir", directory, *options, code=2)
    _cli("import", "--dir", directory, *options, "--trust-domain", DOMAIN)
    assert store.load(directory).cert == signer
    own = tmp_path / "own"
    _cli("create", "--dir", own)
    _cli("import", "--dir", own, *options)
    assert "waiting signer" in _cli("show", "--dir", own)
    (tmp_path / "key").write_bytes(key_pem(p256()))
    assert "private key of" in _cli(
        "import", "--dir", tmp_path / "x", *options, "--trust-domain", "d", code=2
    )


def test_cli_refuses_in_one_line(tmp_path):
    _cli("show", "--dir", tmp_path / "none", code=2)
    _cli("create", "--dir", tmp_path / "a", "--trust-domain", "Not A Domain", code=2)
    _cli("create", "--dir", tmp_path / "a", "--root-lifetime", "1y", code=2)
    _cli("create", "--dir", "/proc/none/ca", code=2)
    _cli("create", "--dir", tmp_path / "ca")
    _cli("create", "--dir", tmp_path / "ca", code=2)
    _cli("rotate", "--dir", tmp_path / "ca", "--activate", "--retire", code=2)
    for bad in ("x", "=spiffe://cluster.local/ns/a/sa/b", "/x=spiffe://other/ns/a/sa/b", "/x=http://a"):
        _cli("serve", "--dir", tmp_path / "ca", "--listen", bad, code=2)
    good = f"{tmp_path}/none/s=spiffe://cluster.local/ns/a/sa/b"
    _cli("serve", "--dir", tmp_path / "ca", "--listen", good, code=2)
    _cli("serve", "--dir", tmp_path / "ca", "--listen", good, "--socket-mode", "rw", code=2)
    _cli("serve", "--dir", tmp_path / "ca", "--listen", good, "--socket-owner", "me", code=2)


@trio_test
async def test_a_serving_process_follows_its_directory(tmp_path):
    directory, path = tmp_path / "ca", str(tmp_path / "s")
    old, new = Authority.create(DOMAIN, REAL), Authority.create(DOMAIN, REAL)
    store.create(directory, old)
    command = [sys.executable, "-m", "certs", "serve", "--dir", str(directory), "--lifetime", "30s"]
    command += ["--listen", f"{path}=spiffe://cluster.local/ns/shop/sa/web", "--socket-mode", "0660"]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    buffered = b""

    async def event(name: str) -> dict:
        nonlocal buffered
        while True:
            while b"\n" not in buffered:
                chunk = await process.stderr.receive_some()
                assert chunk, buffered
                buffered += chunk
            line, _, buffered = buffered.partition(b"\n")
            fields = json.loads(line)
            if fields["event"] == name:
                return fields

    async def issuer() -> tuple[x509.Certificate, int]:
        answer = await UnixSigner(path).sign(make()[1].decode())
        return x509.load_pem_x509_certificate(answer.chain_pem.encode()), answer.bundle_pem.count("BEGIN")

    try:
        await event("ca.ready")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        store.stage(directory, new)
        assert len((await event("ca.reloaded"))["roots"]) == 2
        leaf, roots = await issuer()
        leaf.verify_directly_issued_by(old.cert)
        assert roots == 2
        store.activate(directory, 0, 0)
        assert (await event("ca.reloaded"))["signer"] == fingerprint(new.cert)
        leaf, roots = await issuer()
        leaf.verify_directly_issued_by(new.cert)
        (directory / "ca.key").write_bytes(b"broken")
        await event("ca.reload_failed")
        leaf, _ = await issuer()
        leaf.verify_directly_issued_by(new.cert)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert "s" not in os.listdir(tmp_path)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.stderr.aclose()
