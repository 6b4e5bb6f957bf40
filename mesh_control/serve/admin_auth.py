"""Who may use the admin port: tokens of two ServiceAccounts, confirmed by the API server (TokenReview)."""

from __future__ import annotations

import enum
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from certs.clock import WallClock, wall_clock
from mesh_api.admin import ADMIN_AUDIENCE, OPERATOR, TOKEN_HEADER, VIEWER
from mesh_control.kube.errors import KubeError
from mesh_control.kube.reviews import Reviewed
from mesh_control.serve.ca_review import token_end

REMEMBER_S = 60.0
REMEMBER_REFUSED_S = 5.0
REMEMBERED = 1024
CONCURRENT = 4
REVIEW_S = 5.0
MAX_TOKEN_CHARS = 6 * 1024
"""Below the bound of a request's head."""

Review = Callable[[str], Awaitable[Reviewed]]
"""Reviews a token for ADMIN_AUDIENCE. Raises KubeError."""


class Rights(enum.IntEnum):
    """What a caller may do."""

    NONE = 0
    READ = 1
    CHANGE = 2


_Known = tuple[float, Rights, str]
"""Until when, what, and why not."""


class Denied(Exception):
    """The caller is not let in; `status` is HTTP's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class AdminAuthenticator:
    """Judges tokens; what was said of one is remembered by its hash, for a minute and never past its end.

    Attributes:
        reviews: TokenReviews asked.
    """

    def __init__(self, namespace: str, review: Review, wall: WallClock = wall_clock) -> None:
        """`namespace` is that of the ServiceAccounts."""
        self.reviews = 0
        self._rights = {
            f"system:serviceaccount:{namespace}:{VIEWER}": Rights.READ,
            f"system:serviceaccount:{namespace}:{OPERATOR}": Rights.CHANGE,
        }
        self._review = review
        self._wall = wall
        self._good: OrderedDict[bytes, _Known] = OrderedDict()
        self._bad: OrderedDict[bytes, _Known] = OrderedDict()
        self._slots = trio.Semaphore(CONCURRENT)

    async def check(self, token: str, needed: Rights) -> None:
        """Return if the token gives the rights that are needed. Raises Denied."""
        if not token:
            raise Denied(401, f"expected a token in the header {TOKEN_HEADER}")
        if len(token) > MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable():
            raise Denied(401, f"token: expected at most {MAX_TOKEN_CHARS} printable ASCII characters")
        rights, reason = await self._judge(token)
        if rights is Rights.NONE:
            raise Denied(401, reason)
        if rights < needed:
            raise Denied(403, f"expected a token of ServiceAccount {OPERATOR}: {VIEWER} may only read")

    async def _judge(self, token: str) -> tuple[Rights, str]:
        key = hashlib.sha256(token.encode()).digest()
        if found := self._fresh(key):
            return found
        try:
            with trio.fail_after(REVIEW_S):
                async with self._slots:
                    if found := self._fresh(key):  # another connection asked meanwhile
                        return found
                    self.reviews += 1
                    reviewed = await self._review(token)
        except KubeError as exc:
            raise Denied(503, f"the token could not be reviewed: {exc.message}") from None
        except trio.TooSlowError:
            raise Denied(503, f"the token was not reviewed within {REVIEW_S:g} s") from None
        rights, reason = self._rights_of(reviewed)
        until = self._wall() + (REMEMBER_S if rights else REMEMBER_REFUSED_S)
        if rights and (end := token_end(token)):
            until = min(until, end)
        # Apart: however many tokens of nobody come, they push out no good one.
        known = self._good if rights else self._bad
        known[key] = until, rights, reason
        if len(known) > REMEMBERED:
            known.popitem(last=False)
        return rights, reason

    def _fresh(self, key: bytes) -> tuple[Rights, str] | None:
        for known in (self._good, self._bad):
            if key not in known:
                continue
            until, rights, reason = known[key]
            if self._wall() < until:
                return rights, reason
            del known[key]
        return None

    def _rights_of(self, reviewed: Reviewed) -> tuple[Rights, str]:
        if not reviewed.username:
            return (
                Rights.NONE,
                f"token: the API server does not accept it ({reviewed.error[:300] or 'no reason'})",
            )
        if ADMIN_AUDIENCE not in reviewed.audiences:
            return Rights.NONE, f"token: expected the audience {ADMIN_AUDIENCE}"
        rights = self._rights.get(reviewed.username, Rights.NONE)
        known = " or ".join(self._rights)
        return rights, "" if rights else f"token: expected one of {known}, got {reviewed.username[:200]}"
