"""`meshctl ca`: the CA's Secret in the cluster. Keys are read and written, never shown."""

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from certs.authority import Authority, AuthorityError
from certs.bundle import BundleError, fingerprint
from certs.secret_store import CaState, SecretStoreError, activate, decode, encode, retire, stage
from certs.store import StoreError, read_bounded
from manifests.names import CA_SECRET, SYSTEM_NAMESPACE
from manifests.values import Values
from meshctl import apply as cluster
from meshctl.context import read_values, with_kube
from meshctl.errors import KubeError, MeshctlError
from meshctl.kube import Kube
from meshctl.render import output_option, structured, table
from meshctl.wait import Duration

Object = dict[str, Any]
_TRIES = 5
_LABELS = {"app.kubernetes.io/managed-by": "triomesh"}

_leaf_lifetime = click.option(
    "--leaf-lifetime",
    type=Duration(),
    default=None,
    help="Of workload certificates: the time between two steps. Default: as installed.",
)
_force = click.option("--force", is_flag=True, help="Do not insist on that time.")


@click.group()
def ca() -> None:
    """Show, rotate or import the mesh's CA."""


@ca.command()
@with_kube
@output_option
def show(kube: Kube, output: str) -> None:
    """Show the signer, the trusted roots, and a signer that waits; no keys."""
    namespace, _ = _installation(kube)
    _, state = _read(kube, namespace)
    if output != "table":
        click.echo(structured(_plain(state), output))
        return
    click.echo(f"trust domain: {state.signer.trust_domain}")
    rows = [(role, _ends(cert), fingerprint(cert)) for role, cert in _certificates(state)]
    click.echo(table(("ROLE", "EXPIRES", "SHA-256"), rows))


@ca.command()
@with_kube
@click.option("--activate", "step", flag_value="activate", help="Step two: sign with the root that waits.")
@click.option("--retire", "step", flag_value="retire", help="Step three: stop trusting the old roots.")
@click.option(
    "--root-days", type=click.IntRange(1, 36_500), default=3650, show_default=True, help="Of step one."
)
@_leaf_lifetime
@_force
def rotate(kube: Kube, step: str | None, root_days: int, leaf_lifetime: float | None, force: bool) -> None:
    """Replace the root in three steps, a leaf's lifetime apart.

    Without a flag, step one: a new root joins the trust bundle and signs nothing yet.
    """
    namespace, values = _installation(kube)
    if leaf_lifetime is None:
        leaf_lifetime = values.ca.leaf_lifetime_seconds
    overlap = timedelta(seconds=0 if force else leaf_lifetime)
    now = datetime.now(UTC)

    def change(state: CaState) -> CaState:
        if step == "activate":
            return activate(state, now, overlap)
        if step == "retire":
            return retire(state, now, overlap)[0]
        return stage(state, Authority.create(state.signer.trust_domain, now, timedelta(days=root_days)), now)

    before, after = _change(kube, namespace, change)
    _say_difference(before, after)
    following = {None: "--activate", "activate": "--retire"}.get(step)
    if following:
        click.echo(f"next, after {_time(leaf_lifetime)}: meshctl ca rotate {following}")


@ca.command("import")
@with_kube
@click.option("--cert", type=click.Path(path_type=Path), required=True, help="Your intermediate CA (PEM).")
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Its key (PEM, no passphrase).")
@click.option("--chain", type=click.Path(path_type=Path), help="Intermediates above it, nearest first.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Root, or roots, to trust.")
def import_(kube: Kube, cert: Path, key: Path, chain: Path | None, root: Path) -> None:
    """Sign with your own intermediate CA.

    Where there is a CA it waits, its root trusted already, until `rotate --activate`.
    """
    namespace, values = _installation(kube)
    now = datetime.now(UTC)
    try:
        signer = Authority.import_intermediate(
            read_bounded(cert),
            read_bounded(key),
            read_bounded(chain) if chain else b"",
            read_bounded(root),
            values.trust_domain,
            now,
        )
    except (AuthorityError, BundleError, StoreError) as exc:
        raise MeshctlError(str(exc)) from None
    if kube.find("v1", "Secret", CA_SECRET, namespace) is None:
        state = CaState(signer, now)
        metadata = {"name": CA_SECRET, "namespace": namespace, "labels": _LABELS}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque"}
        kube.create({**secret, "data": _encoded(state)})
        click.echo(f"signer: {fingerprint(signer.cert)}")
        return
    before, after = _change(kube, namespace, lambda state: stage(state, signer, now))
    _say_difference(before, after)
    click.echo("next, after a leaf's lifetime: meshctl ca rotate --activate")


def _time(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"


def _installation(kube: Kube) -> tuple[str, Values]:
    """Namespace and values."""
    there = cluster.existing(kube)
    values = read_values(cluster.stored_values(there) if there else {})
    return (there.namespace if there else SYSTEM_NAMESPACE), values


def _read(kube: Kube, namespace: str) -> tuple[Object, CaState]:
    secret = kube.find("v1", "Secret", CA_SECRET, namespace)
    where = f"Secret {CA_SECRET} in {namespace}"
    if secret is None:
        raise MeshctlError(f"{where}: it is not there; the control plane makes it when it starts")
    try:
        data = {k: base64.b64decode(v, validate=True) for k, v in (secret.get("data") or {}).items()}
        return secret, decode(data)
    except (binascii.Error, SecretStoreError) as exc:
        raise MeshctlError(f"{where}: {exc}") from None


def _encoded(state: CaState) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in encode(state).items()}


def _change(kube: Kube, namespace: str, step: Callable[[CaState], CaState]) -> tuple[CaState, CaState]:
    """Make one step, from what is there at that moment; the states before and after."""
    for _ in range(_TRIES):
        secret, before = _read(kube, namespace)
        try:
            after = step(before)
        except (SecretStoreError, AuthorityError) as exc:
            raise MeshctlError(f"nothing was changed: {exc}") from None
        try:
            kube.replace({**secret, "data": _encoded(after)})
        except KubeError as exc:
            if exc.status == 409:
                continue
            raise
        return before, after
    raise MeshctlError(f"Secret {CA_SECRET} in {namespace}: others keep changing it; {_TRIES} tries")


def _certificates(state: CaState) -> list[tuple[str, x509.Certificate]]:
    found = [("signer", state.signer.cert)]
    found += [("intermediate", cert) for cert in state.signer.chain]
    found += [("root", cert) for cert in state.signer.bundle.roots]
    if state.waiting:
        found.append(("waiting signer", state.waiting.signer.cert))
    return found


def _plain(state: CaState) -> Object:
    listed = [
        {"role": role, "expires": _ends(cert), "sha256": fingerprint(cert)}
        for role, cert in _certificates(state)
    ]
    return {"trustDomain": state.signer.trust_domain, "certificates": listed}


def _ends(cert: x509.Certificate) -> str:
    return f"{cert.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"


def _say_difference(before: CaState, after: CaState) -> None:
    old = {(role, fingerprint(cert)) for role, cert in _certificates(before)}
    new = [(role, fingerprint(cert)) for role, cert in _certificates(after)]
    for role, sha256 in new:
        if (role, sha256) not in old:
            click.echo(f"{role}: {sha256}")
    for role, sha256 in sorted(old - set(new)):
        click.echo(f"no longer {role}: {sha256}")
