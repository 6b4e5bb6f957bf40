"""The workload's side: gets a certificate, keeps it fresh, and never gives up a good one for a bad one.

This runs inside the sidecar, so keys are made in a child process (`certs.keygen`) and `cryptography` is not
imported here.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVarTuple, Unpack

import msgspec
import trio

from certs.clock import WallClock, wall_clock
from certs.credentials import Credentials, CredentialsError, Holder, Material, build, rebuild
from certs.events import OnEvent, ignore_event
from certs.framing import FrameError, read_frame, write_frame
from certs.rotation import renew_at, retry_in
from mesh_api.ca import SignRequest, SignResponse

KEYGEN_DEADLINE_S = 30.0
SIGN_DEADLINE_S = 10.0

_MAX_CSR_CHARS = 16 * 1024
_LONGEST_SLEEP_S = 30.0
_SHORTEST_LIFE_STEP_S = 0.25

Args = TypeVarTuple("Args")

_encode = msgspec.json.Encoder().encode
_response = msgspec.json.Decoder(SignResponse)


class SignerError(Exception):
    """The CA could not be asked, or said no; the message says which."""


class KeygenError(Exception):
    """The child process that makes keys failed."""


class Signer(Protocol):
    """Something that has requests signed."""

    async def sign(self, csr_pem: str) -> SignResponse:
        """Chain and bundle for the key in `csr_pem`.

        Raises SignerError when there is no answer; an answer may also carry `error`. It has a deadline.
        """
        ...


class UnixSigner:
    """Asks a CA on a Unix socket; one connection for each request."""

    def __init__(self, path: str, deadline_s: float = SIGN_DEADLINE_S) -> None:
        self.path = path
        self.deadline_s = deadline_s

    async def sign(self, csr_pem: str) -> SignResponse:
        """See `Signer`; the whole exchange takes at most `deadline_s` seconds."""
        try:
            with trio.fail_after(self.deadline_s):
                async with await trio.open_unix_socket(self.path) as stream:
                    await write_frame(stream, _encode(SignRequest(csr_pem=csr_pem)))
                    return _response.decode(await read_frame(stream))
        except trio.TooSlowError:
            raise SignerError(f"{self.path}: no answer within {self.deadline_s:g} s") from None
        except msgspec.MsgspecError as exc:
            raise SignerError(f"{self.path}: expected a sign response: {exc}") from None
        except (OSError, trio.BrokenResourceError, FrameError) as exc:
            raise SignerError(f"{self.path}: {exc or type(exc).__name__}") from None


async def _kill(process: trio.Process) -> None:
    process.kill()  # it has nothing to clean up


async def _make_key(fd: int) -> str:
    """Have a child write a new key to `fd`; returns its CSR in PEM. The child is gone when this returns."""
    # By path, not -m: that works from any directory. -P: what lies beside it shadows nothing.
    command = [sys.executable, "-P", str(Path(__file__).with_name("keygen.py")), "--key-fd", str(fd)]
    # The libraries may lie beside this package, where only the start script looks for them (the image).
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    try:
        with trio.fail_after(KEYGEN_DEADLINE_S):
            done = await trio.run_process(
                command,
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                pass_fds=(fd,),
                env=env,
                deliver_cancel=_kill,
            )
    except trio.TooSlowError:
        raise KeygenError(f"no key within {KEYGEN_DEADLINE_S:g} s") from None
    except (OSError, RuntimeError, ExceptionGroup) as exc:  # no process or no thread to be had
        raise KeygenError(f"{sys.executable}: {exc}") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise KeygenError(f"exit code {done.returncode}: {last[:500]}")
    if not 0 < len(done.stdout) <= _MAX_CSR_CHARS or not done.stdout.isascii():
        raise KeygenError(f"expected a CSR of at most {_MAX_CSR_CHARS} characters")
    return done.stdout.decode("ascii")


def _append(fd: int, data: bytes) -> None:
    os.lseek(fd, 0, os.SEEK_END)
    while data:
        data = data[os.write(fd, data) :]


async def obtain(signer: Signer, trust_domain: str, wall: WallClock = wall_clock) -> Credentials:
    """New credentials with a new key, tested and ready to swap in.

    Raises KeygenError, SignerError, CredentialsError or OSError. On every way out, cancellation included, the
    child process has been reaped; the memory file with the key lives as long as the credentials do.
    """
    fd = os.memfd_create("triomesh-key", os.MFD_CLOEXEC)
    material = Material(fd)
    try:
        csr_pem = await _make_key(fd)
        response = await signer.sign(csr_pem)
        if response.error:
            raise SignerError(f"refused: {response.error[:500]}")
        _append(fd, b"\n" + response.chain_pem.encode())
        return await _in_thread(
            build, material.path, response.chain_pem, response.bundle_pem, trust_domain, wall(), material
        )
    except BaseException:
        material.close()
        raise


async def _in_thread(function: Callable[[Unpack[Args]], Credentials], *args: *Args) -> Credentials:
    try:
        return await trio.to_thread.run_sync(function, *args)
    except RuntimeError as exc:  # no thread to be had
        raise CredentialsError(str(exc)) from None


async def take_bundle(holder: Holder, bundle_pem: str, wall: WallClock = wall_clock) -> None:
    """Trust `bundle_pem` from here on, with the key and leaf that are there; also after the next renewal.

    For a bundle that comes authenticated and by itself, as on the discovery stream. Without credentials yet
    it is kept for the first. A bundle without the root of our own leaf has a new leaf asked for at once.
    Raises CredentialsError: then what was there stays.
    """
    while (current := holder.current) is not None and current.bundle_pem != bundle_pem:
        try:
            new = await _in_thread(rebuild, current, bundle_pem, wall())
        except CredentialsError:
            holder.bundle_pem = bundle_pem
            holder.renew()
            raise
        if holder.current is current:  # else a renewal came in between
            holder.bundle_pem = bundle_pem
            holder.swap(new)
            return
    holder.bundle_pem = bundle_pem


async def _with_newest_bundle(holder: Holder, new: Credentials, wall: WallClock) -> Credentials:
    """`new` with the bundle that came by itself: the CA's answer may be from before it."""
    if not holder.bundle_pem or holder.bundle_pem == new.bundle_pem or new.material is None:
        return new
    try:
        return await _in_thread(rebuild, new, holder.bundle_pem, wall())
    except CredentialsError:
        return new  # the leaf's root is not in it, so the CA's answer is the newer one


Obtain = Callable[[Signer, str, WallClock], Awaitable[Credentials]]


async def _until_due(holder: Holder, when: float, wall: WallClock) -> None:
    """Sleep until `when`, or until somebody wants a renewal."""
    # In steps: the wall clock may be set, or run on while the machine is suspended.
    while (left := when - wall()) > 0:
        with trio.move_on_after(min(left, _LONGEST_SLEEP_S)):
            await holder.wait_renew()
            return


async def run(
    holder: Holder,
    signer: Signer,
    trust_domain: str,
    rng: random.Random,
    on_event: OnEvent = ignore_event,
    *,
    wall: WallClock = wall_clock,
    obtain: Obtain = obtain,
    task_status: trio.TaskStatus[Credentials] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep `holder` supplied until cancelled; `task_status.started` comes with the first credentials.

    Renews at half of what was left, with jitter. A failure leaves the current credentials in place, also
    after they have expired, and is tried again with growing waits that never use up what time is left.
    Sleeps on trio's clock, reads dates from `wall` (unix seconds).

    Events: `certs.renewed` (identity, not_before, not_after, renew_at) and `certs.failed` (error, kind,
    attempt, retry_in_s, remaining_s; the last is null without credentials).
    """
    attempt = 0
    while True:
        try:
            new = await _with_newest_bundle(holder, await obtain(signer, trust_domain, wall), wall)
        except (SignerError, KeygenError, CredentialsError, OSError) as exc:
            holder.failures += 1
            current = holder.current
            remaining = current.not_after - wall() if current else math.inf
            wait = retry_in(attempt, remaining, rng)
            on_event(
                "certs.failed",
                {
                    "error": str(exc),
                    "kind": type(exc).__name__,
                    "attempt": attempt,
                    "retry_in_s": round(wait, 3),
                    "remaining_s": round(remaining, 3) if current else None,
                },
            )
            attempt += 1
            await trio.sleep(wait)
            continue
        attempt = 0
        received = wall()
        first = holder.current is None
        holder.swap(new)
        due = max(renew_at(received, new.not_after, rng), received + _SHORTEST_LIFE_STEP_S)
        on_event(
            "certs.renewed",
            {
                "identity": new.identity,
                "not_before": new.not_before,
                "not_after": new.not_after,
                "renew_at": round(due, 3),
            },
        )
        if first:
            task_status.started(new)
        await _until_due(holder, due, wall)
