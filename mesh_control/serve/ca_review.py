"""Who asks the CA for a certificate: the ServiceAccount of a reviewed token, and of nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import msgspec
import trio

from certs.clock import WallClock, wall_clock
from certs.identity import IdentityError, SpiffeId
from certs.remote import MAX_TOKEN_BYTES
from certs.service import Caller, Denied
from mesh_api.ca import TOKEN_AUDIENCE, SignRequest
from mesh_control.kube.errors import KubeError
from mesh_control.kube.reviews import Reviewed

REMEMBER_S = 60.0
REMEMBER_REFUSED_S = 5.0
REMEMBERED = 4096
CONCURRENT = 16

_USER = "system:serviceaccount:"
# What the API server's texts mean to somebody who looks at a pod that does not become ready.
_EXPLAINED = (
    ("has expired", "expired", "the token has expired; the kubelet writes a new one in time"),
    ("invalid for the target audiences", "audience", f"expected a token for the audience {TOKEN_AUDIENCE}"),
    ("has been invalidated", "gone", "the token's pod is gone"),
    ("has been deleted", "gone", "the token's ServiceAccount is being deleted"),
    ("does not match claim", "gone", "the token's ServiceAccount was deleted and made anew"),
    ("not found", "gone", "the token's ServiceAccount is gone"),
)

Review = Callable[[str], Awaitable[Reviewed]]
"""Reviews a token for our audience. Raises KubeError."""
PodAddresses = Callable[[str, str, str], Collection[str] | None]
"""IP addresses of a pod by namespace, name and uid; None where it is not known (yet)."""


class _Claims(msgspec.Struct):
    exp: float = 0.0


_claims = msgspec.json.Decoder(_Claims)


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    identity: SpiffeId | None
    pod: tuple[str, str, str] = ("", "", "")
    refusal: tuple[str, str] = ("", "")


class ReviewAuthenticator:
    """A `certs.service.Authenticator` by TokenReview.

    An answer is remembered by the token's hash, for a minute at most and never past the token's end.

    Args:
        pod_addresses: a token is taken only from an address of its own pod, where that is known.

    Attributes:
        reviews: TokenReviews asked; `remembered`: callers known from before.
    """

    def __init__(
        self, trust_domain: str, review: Review, pod_addresses: PodAddresses, wall: WallClock = wall_clock
    ) -> None:
        self.reviews = 0
        self.remembered = 0
        self._trust_domain = trust_domain
        self._review = review
        self._pod_addresses = pod_addresses
        self._wall = wall
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._slots = trio.Semaphore(CONCURRENT)

    async def authenticate(self, caller: Caller, request: SignRequest) -> SpiffeId:
        """The identity of the token in `request`. Raises Denied."""
        token = request.token
        if not 0 < len(token) <= MAX_TOKEN_BYTES or not token.isascii() or not token.isprintable():
            raise Denied(f"token: expected one of 1 to {MAX_TOKEN_BYTES} ASCII characters", "token")
        known = await self._ask(token)
        if known.identity is None:
            message, reason = known.refusal
            raise Denied(message, reason)
        addresses = self._pod_addresses(*known.pod)
        if addresses is not None and caller.address not in addresses:
            namespace, pod, _ = known.pod
            text = f"token: it is of pod {namespace}/{pod}, which has not the address {caller.address}"
            raise Denied(text, "address")
        return known.identity

    async def _ask(self, token: str) -> _Known:
        key = hashlib.sha256(token.encode()).digest()
        if found := self._fresh(key):
            return found
        async with self._slots:
            if found := self._fresh(key):  # another connection asked meanwhile
                return found
            self.reviews += 1
            try:
                reviewed = await self._review(token)
            except KubeError as exc:
                raise Denied(f"token: it could not be reviewed: {exc.message}", "unreviewed") from None
        known = self._judge(token, reviewed)
        self._known[key] = known
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known

    def _fresh(self, key: bytes) -> _Known | None:
        found = self._known.get(key)
        if found is None:
            return None
        if self._wall() >= found.until:
            del self._known[key]
            return None
        self.remembered += 1
        return found

    def _judge(self, token: str, reviewed: Reviewed) -> _Known:
        now = self._wall()
        if not reviewed.username:
            return _Known(now + REMEMBER_REFUSED_S, None, refusal=_explain(reviewed.error))
        if TOKEN_AUDIENCE not in reviewed.audiences:
            text = f"token: expected the audience {TOKEN_AUDIENCE}, which the API server did not confirm"
            return _Known(now + REMEMBER_REFUSED_S, None, refusal=(text, "audience"))
        namespace, _, account = reviewed.username.removeprefix(_USER).partition(":")
        try:
            if not reviewed.username.startswith(_USER):
                raise IdentityError(f"expected a ServiceAccount, got the user {reviewed.username[:100]!r}")
            identity = SpiffeId(self._trust_domain, namespace, account)
        except IdentityError as exc:
            return _Known(now + REMEMBER_REFUSED_S, None, refusal=(f"token: {exc}", "account"))
        if not reviewed.pod_name or not reviewed.pod_uid:
            text = "token: expected one that is bound to a pod (a projected token)"
            return _Known(now + REMEMBER_REFUSED_S, None, refusal=(text, "unbound"))
        until = min(now + REMEMBER_S, token_end(token) or now + REMEMBER_S)
        return _Known(until, identity, (namespace, reviewed.pod_name, reviewed.pod_uid))


def _explain(error: str) -> tuple[str, str]:
    for sign, reason, text in _EXPLAINED:
        if sign in error:
            return f"token: {text} ({error[:300]})", reason
    return f"token: the API server does not accept it ({error[:300] or 'no reason given'})", "invalid"


def token_end(token: str) -> float:
    """The `exp` claim of a token that the API server has accepted; 0 where it cannot be read."""
    try:
        payload = token.split(".")[1]
        return _claims.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).exp
    except (IndexError, ValueError, msgspec.MsgspecError, RecursionError):
        return 0.0
