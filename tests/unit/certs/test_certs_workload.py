"""Obtaining and renewing: real child processes where keys are made, a jumping clock where time passes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from certs_kit import DOMAIN, WEB, credentials, mock_clock_test, trio_test

from certs import workload
from certs.authority import Authority
from certs.credentials import CredentialsError, Holder
from certs.rotation import JITTER
from certs.workload import KeygenError, SignerError, UnixSigner, obtain, run
from mesh_api.ca import SignResponse

CA = Authority.create(DOMAIN, datetime.now(UTC))


def _descriptors() -> set[str]:
    """Memory files that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if "triomesh-key" in target:
            found.add(fd)
    return found


class LocalSigner:
    def __init__(self, lifetime_s: float = 60) -> None:
        self.lifetime_s = lifetime_s
        self.requests: list[str] = []

    async def sign(self, csr_pem: str) -> SignResponse:
        await trio.lowlevel.checkpoint()
        self.requests.append(csr_pem)
        life = timedelta(seconds=self.lifetime_s)
        chain = CA.sign(csr_pem.encode(), WEB, datetime.now(UTC), life).decode()
        return SignResponse(chain_pem=chain, bundle_pem=CA.bundle.to_pem().decode())


class Says:
    def __init__(self, response: SignResponse) -> None:
        self.response = response

    async def sign(self, csr_pem: str) -> SignResponse:
        await trio.lowlevel.checkpoint()
        return self.response


class Forever:
    def __init__(self) -> None:
        self.asked = trio.Event()

    async def sign(self, csr_pem: str) -> SignResponse:
        self.asked.set()
        await trio.sleep_forever()
        raise AssertionError


@trio_test
async def test_obtain_makes_a_new_key_each_time_and_keeps_it_no_longer_than_the_credentials():
    signer = LocalSigner()
    one = await obtain(signer, DOMAIN)
    two = await obtain(signer, DOMAIN)
    assert one.identity == str(WEB)
    assert len(set(signer.requests)) == 2
    assert len(_descriptors()) == 2
    del one
    assert len(_descriptors()) == 1
    two.material.close()
    assert not _descriptors()


@trio_test
async def test_obtain_reports_refusals():
    with pytest.raises(SignerError, match="refused: not you"):
        await obtain(Says(SignResponse(error="not you")), DOMAIN)
    with pytest.raises(CredentialsError, match="chain"):
        await obtain(Says(SignResponse()), DOMAIN)
    with pytest.raises(CredentialsError, match="foreign"):
        await obtain(LocalSigner(), "elsewhere")
    assert not _descriptors()


@trio_test
async def test_a_failing_child_is_an_error_of_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(KeygenError, match="nonexistent"):
        await obtain(LocalSigner(), DOMAIN)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(KeygenError, match="exit code 1"):
        await obtain(LocalSigner(), DOMAIN)
    # The image has its libraries where no Python looks by itself.
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "path=$PYTHONPATH" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(KeygenError, match=f"path={Path(workload.__file__).parents[1]}"):
        await obtain(LocalSigner(), DOMAIN)
    assert not _descriptors()


@trio_test
async def test_cancelled_while_the_child_runs(monkeypatch, tmp_path):
    script = tmp_path / "python"
    pid_file = tmp_path / "pid"
    script.write_text(f"#!/bin/sh\necho $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obtain, LocalSigner(), DOMAIN)
        while not pid_file.exists():
            await trio.sleep(0.005)
        assert _descriptors()
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not _descriptors()


@trio_test
async def test_cancelled_while_the_ca_thinks():
    signer = Forever()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obtain, signer, DOMAIN)
        await signer.asked.wait()
        assert _descriptors()
        nursery.cancel_scope.cancel()
    assert not _descriptors()


class Script:
    """Stands in for `obtain`: plays outcomes and notes when it was asked, on trio's clock."""

    def __init__(self, *outcomes) -> None:
        self.outcomes = list(outcomes)
        self.times: list[float] = []

    async def __call__(self, signer, trust_domain, wall):
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        if not self.outcomes:
            await trio.sleep_forever()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _lasting(seconds: float):
    return dataclasses.replace(
        credentials(CA), not_before=trio.current_time() - 120, not_after=trio.current_time() + seconds
    )


async def _play(script: Script, until: float):
    holder, events = Holder(), []
    with trio.move_on_after(until):
        await run(
            holder,
            LocalSigner(),
            DOMAIN,
            random.Random(1),
            lambda name, fields: events.append((name, dict(fields))),
            wall=trio.current_time,
            obtain=script,
        )
    return holder, events


@mock_clock_test
async def test_renews_at_half_life():
    start = trio.current_time()
    first, second = _lasting(1000), _lasting(2000)
    script = Script(first, second)
    holder, events = await _play(script, 5000)
    assert holder.current is second
    assert holder.swaps == 2
    assert abs(script.times[1] - start - 500) <= 1000 * JITTER + 1
    assert [name for name, _ in events] == ["certs.renewed", "certs.renewed"]
    json.dumps(events)


@mock_clock_test
async def test_failures_keep_what_there_is_and_retry_before_the_end():
    start = trio.current_time()
    good = _lasting(100)
    failures = [SignerError("down"), KeygenError("no"), CredentialsError("bad"), OSError("fd")]
    script = Script(good, *failures)
    holder, events = await _play(script, 99)
    assert holder.current is good
    assert holder.failures == 4
    assert len(script.times) == 6
    assert script.times[-1] - start < 80
    failed = [fields for name, fields in events if name == "certs.failed"]
    assert [f["attempt"] for f in failed] == [0, 1, 2, 3]
    assert failed[0]["kind"] == "SignerError"
    assert failed[0]["remaining_s"] > 0


@mock_clock_test
async def test_starts_only_with_credentials_and_survives_expiry():
    script = Script(*[SignerError("down")] * 6, _lasting(10_000))
    holder = Holder()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda *, task_status: run(
                holder,
                LocalSigner(),
                DOMAIN,
                random.Random(1),
                wall=trio.current_time,
                obtain=script,
                task_status=task_status,
            )
        )
        assert holder.current is not None
        assert holder.failures == 6
        nursery.cancel_scope.cancel()


@mock_clock_test
async def test_a_stepped_wall_clock_is_noticed():
    start = trio.current_time()
    script = Script(_lasting(10_000))
    step = [0.0]
    holder = Holder()
    with trio.move_on_after(200):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: run(
                    holder,
                    LocalSigner(),
                    DOMAIN,
                    random.Random(1),
                    wall=lambda: trio.current_time() + step[0],
                    obtain=script,
                )
            )
            await trio.sleep(100)
            step[0] = 9000.0
    assert len(script.times) == 2
    assert script.times[1] - start < 140


@trio_test
async def test_unix_signer_errors(tmp_path):
    with pytest.raises(SignerError, match="No such file"):
        await UnixSigner(str(tmp_path / "none")).sign("x")
    path = str(tmp_path / "ca")
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listening.bind(path)
    listening.listen()
    answers = [
        (b"", "end of the stream"),
        (b"\xff\xff\xff\xff", "262144 bytes"),
        (b"\0\0\0\0", "1 to"),
        (b"\0\0\0\x02{}x", None),
        (b"\0\0\0\x01{", "sign response"),
        (b"\0\0\0\x09{", "8 more bytes"),
    ]

    async def serve():
        for answer, _ in answers:
            peer, _ = await listening.accept()
            with peer:
                await peer.recv(65536)
                await peer.send(answer)
        peer, _ = await listening.accept()
        with peer:
            await trio.sleep_forever()

    with listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for _, words in answers:
                if words is None:
                    assert await UnixSigner(path).sign("x") == SignResponse()
                    continue
                with pytest.raises(SignerError, match=words):
                    await UnixSigner(path).sign("x")
            with pytest.raises(SignerError, match=r"no answer within 0\.05 s"):
                await UnixSigner(path, deadline_s=0.05).sign("x")
            nursery.cancel_scope.cancel()


def test_the_sidecars_modules_do_not_load_cryptography():
    code = (
        "import sys, certs.workload, certs.credentials, certs.verify, certs.rotation, certs.identity;"
        "sys.exit(any(m.split('.')[0] in ('cryptography', 'click') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0


def test_keygen_as_a_module():
    fd = os.memfd_create("test-key")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "certs.keygen", "--key-fd", str(fd)],
            pass_fds=(fd,),
            capture_output=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"-----BEGIN CERTIFICATE REQUEST-----")
        assert os.pread(fd, 100, 0).startswith(b"-----BEGIN PRIVATE KEY-----")
        assert b"PRIVATE" not in done.stdout
    finally:
        os.close(fd)
    bad = subprocess.run(
        [sys.executable, "-m", "certs.keygen", "--key-fd", "99"], capture_output=True, timeout=20
    )
    assert bad.returncode == 1
    assert workload.KEYGEN_DEADLINE_S > 0
