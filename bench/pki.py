"""Certificates of a run: one ECDSA P-256 root, as files for the peers and from a CA socket for ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from certs import keygen, service
from certs.authority import Authority
from certs.clock import wall_clock
from certs.identity import SpiffeId

TRUST_DOMAIN = "cluster.local"
SIDES = ("client", "server")


def identity(side: str) -> SpiffeId:
    """The SPIFFE id of one side of the pair."""
    return SpiffeId(TRUST_DOMAIN, "bench", side)


@dataclass(frozen=True)
class Pki:
    """Where the certificates of one run lie."""

    directory: Path
    authority: Authority

    @property
    def root(self) -> Path:
        return self.directory / "root.pem"

    def cert(self, side: str) -> Path:
        """Leaf and key of a side in one file."""
        return self.directory / f"{side}.pem"

    def socket(self, side: str) -> Path:
        """The CA socket on which ours gets the certificate of a side."""
        return self.directory / f"{side}.sock"

    async def serve(
        self,
        lifetime_s: float = 86_400.0,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer on both CA sockets until cancelled, with certificates that are good for `lifetime_s`."""
        async with trio.open_nursery() as nursery:
            for side in SIDES:
                who = service.SocketAuthenticator(identity(side))
                signing = service.Service(lambda: self.authority, who, lifetime_s=lifetime_s)
                await nursery.start(service.serve, str(self.socket(side)), signing)
            task_status.started()


def create(directory: Path) -> Pki:
    """A new root and one leaf for each side."""
    now = datetime.fromtimestamp(wall_clock(), UTC)
    pki = Pki(directory, Authority.create(TRUST_DOMAIN, now))
    pki.root.write_bytes(pki.authority.bundle_pem(now))
    for side in SIDES:
        key, csr = keygen.make()
        path = pki.cert(side)
        path.touch(mode=0o600)
        path.write_bytes(pki.authority.sign(csr, identity(side), now) + key)
    return pki
