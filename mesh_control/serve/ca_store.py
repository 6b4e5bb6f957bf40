"""The CA that all replicas share: read from its Secret, made once, followed as it is rotated."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from certs.authority import Authority, AuthorityError
from certs.bundle import fingerprint
from certs.clock import WallClock, wall_clock
from certs.events import OnEvent, ignore_event
from certs.secret_store import CaState, SecretStoreError, create, decode, encode
from mesh_control.kube import secrets
from mesh_control.kube.client import Client, Object
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import SECRETS
from mesh_control.kube.watch import Change, Source, list_then_watch

SECRET = "triomesh-ca"
LABELS = {"app.kubernetes.io/managed-by": "triomesh"}
_TRIES = 5

Step = Callable[[CaState], CaState]


class CaStoreError(Exception):
    """There is no usable CA; the message says what was expected."""


def _decoded(secret: secrets.Secret) -> CaState:
    try:
        return decode(secret.data)
    except SecretStoreError as exc:
        raise CaStoreError(f"Secret {secret.namespace}/{secret.name}: {exc}") from None


async def load(client: Client, namespace: str) -> CaState:
    """The CA as it is in the cluster. Raises KubeError or CaStoreError."""
    try:
        return _decoded(await secrets.read(client, namespace, SECRET))
    except secrets.SecretError as exc:
        raise CaStoreError(str(exc)) from None


async def change(client: Client, namespace: str, step: Step) -> CaState:
    """Apply one step of a rotation to the Secret; a change that came in between is taken into account.

    Raises KubeError, CaStoreError, or what `step` raises (SecretStoreError).
    """
    for last in range(_TRIES, 0, -1):
        try:
            secret = await secrets.read(client, namespace, SECRET)
            state = step(_decoded(secret))
            await secrets.update(client, secret, encode(state))
            return state
        except secrets.SecretError as exc:
            raise CaStoreError(str(exc)) from None
        except KubeError as exc:
            if not exc.conflict or last == 1:
                raise
    raise AssertionError("unreachable")


class CaStore:
    """The CA in force. Call `open`, then keep `follow` running.

    A Secret that is deleted or damaged later changes nothing here: the last good CA stays, and that is noted.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        trust_domain: str,
        rng: random.Random,
        *,
        wall: WallClock = wall_clock,
        on_note: OnEvent = ignore_event,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._trust_domain = trust_domain
        self._rng = rng
        self._wall = wall
        self._on_note = on_note
        self._state: CaState | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def state(self) -> CaState:
        """The last good one."""
        assert self._state is not None, "open comes first"
        return self._state

    def authority(self) -> Authority:
        """The signer with the bundle to hand out."""
        return self.state.signer

    def bundle_pem(self) -> str:
        """The roots in force now; those that have expired are left out while another is there."""
        signer = self.authority()
        try:
            return signer.bundle_pem(datetime.fromtimestamp(self._wall(), UTC)).decode()
        except AuthorityError:
            return signer.bundle.to_pem().decode()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in the event loop, after each change of the CA."""
        self._listeners.append(listener)

    def expiries(self) -> dict[str, float]:
        """When the CA's certificates end, in unix seconds, by a name fit for a metric label."""
        found = {"signer": self.state.signer.cert.not_valid_after_utc.timestamp()}
        for root in self.authority().bundle.roots:
            found[f"root-{fingerprint(root)[:16]}"] = root.not_valid_after_utc.timestamp()
        if self.state.waiting:
            found["next"] = self.state.waiting.signer.cert.not_valid_after_utc.timestamp()
        return found

    async def open(self) -> None:
        """Read the CA, or make it; of replicas that make it one wins. Raises KubeError or CaStoreError."""

        def make() -> dict[str, bytes]:
            return encode(create(self._trust_domain, datetime.fromtimestamp(self._wall(), UTC)))

        try:
            secret = await secrets.create_once(self._client, self._namespace, SECRET, make, LABELS)
            state = _decoded(secret)
        except (secrets.SecretError, AuthorityError) as exc:
            raise CaStoreError(str(exc)) from None
        if state.signer.trust_domain != self._trust_domain:
            raise CaStoreError(
                f"Secret {self._namespace}/{SECRET}: expected trust domain {self._trust_domain}, "
                f"got {state.signer.trust_domain}"
            )
        self._state = state

    async def follow(self) -> None:
        """Take over what `change` does, here or elsewhere, until cancelled.

        Notes: `ca.changed` (signer, roots, waiting), `ca.unusable` (error), and those of the watch.
        """
        source = Source(
            SECRETS,
            msgspec.json.Decoder(dict[str, Any]).decode,
            namespace=self._namespace,
            fields=f"metadata.name={SECRET}",
        )

        def replaced(found: list[Object]) -> None:
            if found:
                self._take(found[0])
            else:
                self._unusable("it is gone; what it held goes on being used")

        def event(change: Change, obj: Object) -> None:
            if change == "DELETED":
                self._unusable("it was deleted; what it held goes on being used")
            else:
                self._take(obj)

        await list_then_watch(
            self._client,
            source,
            on_replace=replaced,
            on_event=event,
            on_synced=lambda: None,
            rng=self._rng,
            on_note=self._on_note,
        )

    def _unusable(self, error: str) -> None:
        self._on_note("ca.unusable", {"secret": f"{self._namespace}/{SECRET}", "error": error})

    def _take(self, obj: Object) -> None:
        try:
            state = _decoded(secrets.from_object(obj))
        except (CaStoreError, secrets.SecretError) as exc:
            self._unusable(str(exc))
            return
        if state.signer.trust_domain != self._trust_domain:
            self._unusable(f"expected trust domain {self._trust_domain}, got {state.signer.trust_domain}")
            return
        if encode(state) == encode(self.state):
            return
        self._state = state
        self._on_note(
            "ca.changed",
            {
                "signer": fingerprint(state.signer.cert),
                "roots": len(state.signer.bundle.roots),
                "waiting": state.waiting is not None,
            },
        )
        for listener in self._listeners:
            listener()
