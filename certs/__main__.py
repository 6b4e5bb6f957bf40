"""Command line of the CA, `triomesh-ca`: make, look at, serve and rotate a CA that lives in a directory."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
import trio
from cryptography import x509

from certs import store
from certs.authority import Authority, AuthorityError
from certs.bundle import BundleError, fingerprint
from certs.clock import wall_clock
from certs.identity import IdentityError, SpiffeId
from certs.service import Service, ServiceError, SocketAuthenticator, serve

P = ParamSpec("P")
R = TypeVar("R")

POLL_S = 1.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_LIFETIME_S = 36_500 * 86_400


class InputError(click.ClickException):
    """One line on stderr and exit code 2."""

    exit_code = 2


def _plain_errors(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (AuthorityError, BundleError, IdentityError, store.StoreError, ServiceError) as exc:
            raise InputError(" ".join(str(exc).split())) from None
        except OSError as exc:
            raise InputError(f"{exc.filename or ''} {exc.strerror or exc}".strip()) from None

    return run


def lifetime_seconds(text: str) -> float:
    """`30s`, `15m`, `24h` or `7d` in seconds. Raises InputError."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= seconds <= _MAX_LIFETIME_S:
        raise InputError(f"expected a duration like 30s, 15m, 24h or 7d, got {text!r}")
    return float(seconds)


def listen_on(text: str) -> tuple[str, SpiffeId]:
    """`PATH=SPIFFE_ID`. Raises InputError."""
    path, equals, identity = text.rpartition("=")
    if not equals or not path:
        raise InputError(f"--listen: expected PATH=SPIFFE_ID, got {text!r}")
    try:
        return path, SpiffeId.parse(identity)
    except IdentityError as exc:
        raise InputError(f"--listen: {exc}") from None


def file_mode(text: str) -> int:
    """An octal file mode such as `0660`. Raises InputError."""
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise InputError(f"--socket-mode: expected an octal mode like 0660, got {text!r}")
    return int(text, 8)


def file_owner(text: str) -> tuple[int, int]:
    """`UID:GID`, both numeric. Raises InputError."""
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if not match:
        raise InputError(f"--socket-owner: expected UID:GID, got {text!r}")
    return int(match[1]), int(match[2])


_directory = click.option(
    "--dir", "directory", required=True, type=click.Path(path_type=Path), help="Directory of the CA."
)
_leaf_lifetime = click.option(
    "--lifetime",
    type=lifetime_seconds,
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="Leaf lifetime.",
)


def _file(name: str, help_text: str, *, required: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return click.option(name, required=required, type=click.Path(path_type=Path), help=help_text)


def _now() -> datetime:
    return datetime.fromtimestamp(wall_clock(), UTC)


def _describe(role: str, cert: x509.Certificate) -> None:
    click.echo(f"{role}:")
    click.echo(f"  subject      {cert.subject.rfc4514_string()}")
    click.echo(f"  expires      {cert.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    click.echo(f"  fingerprint  {fingerprint(cert)}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The certificate authority of the mesh."""


@main.command()
@_directory
@click.option("--trust-domain", default="cluster.local", show_default=True)
@click.option(
    "--root-lifetime", type=lifetime_seconds, default="3650d", show_default=True, metavar="DURATION"
)
@_plain_errors
def create(directory: Path, trust_domain: str, root_lifetime: float) -> None:
    """Make a CA with a new self-signed root."""
    authority = Authority.create(trust_domain, _now(), timedelta(seconds=root_lifetime))
    store.create(directory, authority)
    _describe("root", authority.cert)


@main.command()
@_directory
@_plain_errors
def show(directory: Path) -> None:
    """Show the signer, the roots that are trusted, and a signer that waits."""
    authority = store.load(directory)
    waiting = store.load_next(directory)
    click.echo(f"trust domain: {authority.trust_domain}")
    _describe("signer", authority.cert)
    for cert in authority.chain:
        _describe("intermediate", cert)
    for root in authority.bundle.roots:
        _describe("root", root)
    if waiting:
        _describe("waiting signer", waiting.cert)


@main.command("import")
@_directory
@_file("--cert", "Certificate of your intermediate CA (PEM).")
@_file("--key", "Its private key (PEM, no passphrase).")
@_file("--chain", "Intermediates above it, nearest first (PEM).", required=False)
@_file("--root", "Root, or roots, to trust (PEM).")
@click.option("--trust-domain", default="", help="Needed for a new directory.")
@_plain_errors
def import_(
    directory: Path, cert: Path, key: Path, chain: Path | None, root: Path, trust_domain: str
) -> None:
    """Sign with your own intermediate CA.

    In a directory that has a CA it waits, its root already trusted, until `rotate --activate`.
    """
    fresh = not store.exists(directory)
    if fresh and not trust_domain:
        raise InputError("expected --trust-domain: the directory holds no CA yet")
    authority = Authority.import_intermediate(
        store.read_bounded(cert),
        store.read_bounded(key),
        store.read_bounded(chain) if chain else b"",
        store.read_bounded(root),
        trust_domain or store.load(directory).trust_domain,
        _now(),
    )
    if fresh:
        store.create(directory, authority)
    else:
        store.stage(directory, authority)
    _describe("signer" if fresh else "waiting signer", authority.cert)


@main.command()
@_directory
@click.option("--activate", is_flag=True, help="Step two: sign with the root that waits.")
@click.option("--retire", is_flag=True, help="Step three: stop trusting the old roots.")
@click.option(
    "--root-lifetime", type=lifetime_seconds, default="3650d", show_default=True, metavar="DURATION"
)
@_leaf_lifetime
@click.option("--force", is_flag=True, help="Do not insist on a leaf's lifetime between the steps.")
@_plain_errors
def rotate(
    directory: Path, activate: bool, retire: bool, root_lifetime: float, lifetime: float, force: bool
) -> None:
    """Replace the root in three steps, a leaf's lifetime apart.

    Without a flag, step one: a new root joins the trust bundle and signs nothing yet.
    """
    if activate and retire:
        raise InputError("expected one of --activate and --retire")
    overlap = 0.0 if force else lifetime
    if activate:
        _describe("signer", store.activate(directory, wall_clock(), overlap).cert)
    elif retire:
        for sha256 in store.retire(directory, wall_clock(), overlap):
            click.echo(f"removed root {sha256}")
    else:
        current = store.load(directory)
        new = Authority.create(current.trust_domain, _now(), timedelta(seconds=root_lifetime))
        store.stage(directory, new)
        _describe("waiting signer", new.cert)


def _log(name: str, fields: Mapping[str, object]) -> None:
    click.echo(json.dumps({"event": name, **fields}), err=True)


class _Live:
    """The CA of a directory, followed as it changes; a change that cannot be used is reported once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.version = store.version(directory)
        self.authority = store.load(directory)
        self._reported = ""

    def get(self) -> Authority:
        return self.authority

    def refresh(self) -> None:
        version = store.version(self.directory)
        if version == self.version:
            return
        try:
            authority = store.load(self.directory)
            if authority.trust_domain != self.authority.trust_domain:
                raise store.StoreError(f"expected trust domain {self.authority.trust_domain}")
        except store.StoreError as exc:
            if str(exc) != self._reported:
                self._reported = str(exc)
                _log("ca.reload_failed", {"error": str(exc)})
            return
        self.authority, self.version, self._reported = authority, version, ""
        _log(
            "ca.reloaded",
            {"signer": fingerprint(authority.cert), "roots": list(authority.bundle.fingerprints)},
        )

    async def follow(self) -> None:
        while True:
            await trio.sleep(POLL_S)
            self.refresh()


async def _serve(
    live: _Live,
    listen: tuple[tuple[str, SpiffeId], ...],
    lifetime_s: float,
    mode: int,
    owner: tuple[int, int] | None,
) -> None:
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            for path, identity in listen:
                await nursery.start(
                    lambda path=path, identity=identity, *, task_status: serve(
                        path,
                        Service(
                            live.get, SocketAuthenticator(identity), lifetime_s=lifetime_s, on_event=_log
                        ),
                        mode=mode,
                        owner=owner,
                        task_status=task_status,
                    )
                )
            nursery.start_soon(live.follow)
            _log("ca.ready", {"sockets": len(listen), "signer": fingerprint(live.authority.cert)})
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()


@main.command("serve")
@_directory
@click.option(
    "--listen",
    required=True,
    multiple=True,
    type=listen_on,
    metavar="PATH=SPIFFE_ID",
    help="Socket and who it stands for.",
)
@_leaf_lifetime
@click.option("--socket-mode", type=file_mode, default="0600", show_default=True, metavar="OCTAL")
@click.option("--socket-owner", type=file_owner, default=None, metavar="UID:GID")
@_plain_errors
def serve_(
    directory: Path,
    listen: tuple[tuple[str, SpiffeId], ...],
    lifetime: float,
    socket_mode: int,
    socket_owner: tuple[int, int] | None,
) -> None:
    """Answer sign requests, on one socket for each workload, until SIGTERM.

    Changes of the directory take effect within seconds.
    """
    live = _Live(directory)
    for path, identity in listen:
        if identity.trust_domain != live.authority.trust_domain:
            raise InputError(f"{path}: expected trust domain {live.authority.trust_domain}, got {identity}")
    try:
        trio.run(_serve, live, listen, lifetime, socket_mode, socket_owner)
    except BaseExceptionGroup as group:
        known, other = group.split((ServiceError, OSError))
        if other or known is None:
            raise
        error: BaseException = known
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise InputError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
