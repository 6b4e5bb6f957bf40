"""A CA as a directory: what survives a restart, changed so that a reader never sees half of a file.

    ca.crt        the signing certificate, then the intermediates above it
    ca.key        its private key, mode 0600
    roots.pem     the trust bundle
    trust-domain  its name
    next.crt, next.key   a signer that waits to be activated; its root is in roots.pem already

Writers hold a lock on the directory; readers need none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import MAX_INTERMEDIATES, Authority, AuthorityError
from certs.bundle import BundleError, TrustBundle, fingerprint, parse_certificates

CERT, KEY, ROOTS, TRUST_DOMAIN = "ca.crt", "ca.key", "roots.pem", "trust-domain"
NEXT_CERT, NEXT_KEY = "next.crt", "next.key"

MAX_FILE_BYTES = 1024 * 1024

Version = tuple[tuple[int, int, int], ...]
"""Changes whenever one of the files that `load` reads does."""


class StoreError(ValueError):
    """A directory that holds no usable CA, or a step that does not fit its state; the message says why."""


def read_bounded(path: Path) -> bytes:
    """The content of a small file. Raises StoreError if it cannot be read or is above `MAX_FILE_BYTES`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise StoreError(f"{path}: {exc.strerror or exc}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StoreError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
    return data


def _write(path: Path, data: bytes, mode: int, *, exclusive: bool = False) -> None:
    """Put `data` at `path` in one step; with `exclusive` raises FileExistsError if something is there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        if exclusive:
            os.link(temporary, path)  # like O_EXCL, but with the content already there
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _signer_pem(authority: Authority) -> bytes:
    pem = authority.to_pem()
    return pem.cert + pem.chain


def create(directory: Path, authority: Authority) -> None:
    """Save a first CA, making the directory (mode 0700) if needed.

    The key is written last and is what makes the CA exist: of several that try, one wins, and a run that
    stopped before it can be repeated. Raises StoreError if there is a CA already.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(directory):
            if os.path.lexists(directory / KEY):
                raise StoreError(f"{directory}: there is a CA already")
            _write(directory / TRUST_DOMAIN, authority.trust_domain.encode() + b"\n", 0o644)
            _write(directory / ROOTS, authority.bundle.to_pem(), 0o644)
            _write(directory / CERT, _signer_pem(authority), 0o644)
            _write(directory / KEY, authority.to_pem().key, 0o600, exclusive=True)
    except FileExistsError:
        raise StoreError(f"{directory}: there is a CA already, or something that is no directory") from None
    except OSError as exc:
        raise StoreError(f"{directory}: {exc.strerror or exc}") from None


def _load(directory: Path, cert: str, key: str) -> Authority:
    try:
        signer = parse_certificates(read_bounded(directory / cert), cert, MAX_INTERMEDIATES + 1)
        pem = [one.public_bytes(Encoding.PEM) for one in signer]
        domain = read_bounded(directory / TRUST_DOMAIN).decode("ascii", "replace").strip()
        return Authority.load(
            pem[0], read_bounded(directory / key), b"".join(pem[1:]), read_bounded(directory / ROOTS), domain
        )
    except (AuthorityError, BundleError) as exc:
        raise StoreError(f"{directory}: {exc}") from None


def exists(directory: Path) -> bool:
    """Whether there is a CA in `directory`, usable or not."""
    return os.path.lexists(directory / KEY)


def load(directory: Path) -> Authority:
    """The CA that signs at present. Raises StoreError, also while a writer is between two files."""
    if not exists(directory):
        raise StoreError(f"{directory}: expected a CA there, found no {KEY}")
    return _load(directory, CERT, KEY)


def load_next(directory: Path) -> Authority | None:
    """The signer that waits to be activated, if any. Raises StoreError if it is not usable."""
    return _load(directory, NEXT_CERT, NEXT_KEY) if os.path.lexists(directory / NEXT_CERT) else None


def version(directory: Path) -> Version:
    """A value that differs once a file of the CA has changed; cheap enough to poll. Never raises."""
    found = []
    for name in (CERT, KEY, ROOTS, TRUST_DOMAIN):
        try:
            status = os.stat(directory / name)
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except OSError:
        return 0.0


def _wait(path: Path, now: float, overlap_s: float, why: str) -> None:
    left = overlap_s - _age(path, now)
    if overlap_s > 0 and left > 0:
        raise StoreError(f"expected to wait another {left:.0f} s, {why}; --force does it now")


def stage(directory: Path, signer: Authority) -> None:
    """Step one of a rotation: trust the root of `signer`, which signs nothing yet.

    Raises StoreError if the trust domains differ, a signer is waiting already, or there are too many roots.
    """
    current = load(directory)
    if signer.trust_domain != current.trust_domain:
        raise StoreError(f"expected trust domain {current.trust_domain}, got {signer.trust_domain}")
    try:
        with _locked(directory):
            if os.path.lexists(directory / NEXT_CERT):
                raise StoreError(f"{directory}: a signer waits already; activate it first")
            bundle = load(directory).bundle.add(signer.bundle)
            _write(directory / ROOTS, bundle.to_pem(), 0o644)
            _write(directory / NEXT_KEY, signer.to_pem().key, 0o600)
            _write(directory / NEXT_CERT, _signer_pem(signer), 0o644)
    except BundleError as exc:
        raise StoreError(str(exc)) from None
    except OSError as exc:
        raise StoreError(f"{directory}: {exc.strerror or exc}") from None


def activate(directory: Path, now: float, overlap_s: float) -> Authority:
    """Step two: the waiting signer signs from here on; the old root stays trusted.

    By then every workload must hold the new root, so it has to have waited `overlap_s` seconds, a leaf's
    lifetime; 0 skips that. May be repeated after an interruption. `now` is in unix seconds. Raises
    StoreError.
    """
    try:
        with _locked(directory):
            signer = load_next(directory)
            if signer is None:
                raise StoreError(f"{directory}: no signer waits; stage one first")
            _wait(directory / NEXT_CERT, now, overlap_s, "until every workload has the new root")
            _write(directory / KEY, signer.to_pem().key, 0o600)
            _write(directory / CERT, _signer_pem(signer), 0o644)
            (directory / NEXT_CERT).unlink()
            (directory / NEXT_KEY).unlink()
            return signer
    except OSError as exc:
        raise StoreError(f"{directory}: {exc.strerror or exc}") from None


def retire(directory: Path, now: float, overlap_s: float) -> tuple[str, ...]:
    """Step three: stop trusting every root but the signer's; returns the fingerprints that went.

    Leaves of the old root must have expired, so the signer has to have been active for `overlap_s` seconds,
    a leaf's lifetime; 0 skips that. Raises StoreError.
    """
    try:
        with _locked(directory):
            current = load(directory)
            if os.path.lexists(directory / NEXT_CERT):
                raise StoreError(f"{directory}: a signer waits; activate it first")
            _wait(directory / CERT, now, overlap_s, "until leaves of the old root have expired")
            keep = TrustBundle.of([current.root])
            _write(directory / ROOTS, keep.to_pem(), 0o644)
            return tuple(fingerprint(root) for root in current.bundle.roots if root != current.root)
    except OSError as exc:
        raise StoreError(f"{directory}: {exc.strerror or exc}") from None
