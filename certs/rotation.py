"""When to renew a certificate and when to try again: arithmetic only, so that it can be tested exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

JITTER = 0.05
"""Renewals spread over this share of the lifetime to either side of its middle."""

_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 30.0
_SHORTEST_RETRY_S = 0.1


def renew_at(issued_at: float, not_after: float, rng: random.Random) -> float:
    """The unix second at which to renew: half of what was left at `issued_at`, give or take `JITTER`.

    `issued_at` is when the certificate was received, not its notBefore, which lies in the past by design.
    An expired certificate is due at once, at `issued_at`.
    """
    life = max(0.0, not_after - issued_at)
    return issued_at + life * (0.5 + rng.uniform(-JITTER, JITTER))


def retry_in(attempt: int, remaining_s: float, rng: random.Random) -> float:
    """Seconds to wait after failure number `attempt` (from 0), always positive.

    Doubles from 0.5 s up to 30 s, less up to half of it as jitter. With a certificate that is still good for
    `remaining_s` seconds the wait is at most an eighth of that, so that a short lifetime still leaves several
    tries; pass 0 or less (or infinity) when there is none to protect.
    """
    wait = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(max(attempt, 0), 16))
    if remaining_s > 0:
        wait = max(_SHORTEST_RETRY_S, min(wait, remaining_s / 8))
    return wait * rng.uniform(0.5, 1.0)
