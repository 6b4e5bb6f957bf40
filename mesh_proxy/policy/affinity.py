"""Session affinity: an endpoint that was chosen once is kept (sessionAffinity ClientIP, core/v1 ServiceSpec).

All clients of a sidecar are one pod, so for each cluster of endpoints there is one choice to remember.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from mesh_api.traffic import Settings
from mesh_proxy.policy.balance import Balancer, E, EndpointState, Rng, balancer


class Sticky:
    """Another algorithm chooses once; its choice is kept until nobody has asked for `affinity_s`.

    An endpoint that is ejected or gone is given up. One that has just failed is not, for its session may
    live: a retry goes elsewhere, and changes nothing.
    """

    __slots__ = ("_affinity_s", "_held", "_inner", "_seen", "_until", "observe")

    def __init__(self, inner: Balancer, affinity_s: float) -> None:
        self._inner = inner
        self._affinity_s = affinity_s
        self._held: EndpointState | None = None
        self._until = float("-inf")
        self._seen: Sequence[EndpointState] | None = None
        """Among these the endpoint is known to be."""
        self.observe = inner.observe

    def holds(self, endpoints: Sequence[EndpointState], now: float) -> bool:
        """Whether an endpoint is kept that is one of these; a sequence may not be changed in place."""
        if self._held is None or now >= self._until:
            return False
        if endpoints is not self._seen:
            if self._held not in endpoints:
                return False
            self._seen = endpoints
        return True

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`."""
        if self.holds(endpoints, now):
            held = cast("E", self._held)
            self._until = now + self._affinity_s
            return held if held not in excluded else self._inner.pick(endpoints, excluded, rng, now)
        found = self._inner.pick(endpoints, excluded, rng, now)
        if found is not None:
            self._held, self._until, self._seen = found, now + self._affinity_s, endpoints
        return found


def chosen_by(settings: Settings) -> Balancer:
    """The balancer for one cluster, with affinity where its Service has it."""
    inner = balancer(settings.algorithm, settings.warmup_s)
    return inner if settings.affinity_s is None else Sticky(inner, settings.affinity_s)
