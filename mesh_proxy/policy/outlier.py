"""Which endpoints are left out because they keep failing, and how they come back.

Two mechanisms, one after the other. The balancer's penalty (balance.py) is immediate, short and soft: after
one failure others are preferred for a moment. Ejection, here, needs failures in a row, lasts longer, and is
hard: balancers only get `eligible`, which has no ejected endpoint. When the ejection's time is over, the
endpoint is not back yet: `probe` hands it to one request at a time, whatever its penalty, and only a success
returns it; a failure ejects it anew for longer. A probe that lasts as long as an ejection (a stream) is
joined by another. The success also clears the penalty, in the
balancer, so a returned endpoint starts fresh.

    if now >= outliers.due and (endpoint := outliers.probe(tried, now)): use it
    else: balancer.pick(outliers.eligible, tried, rng, now)
    outliers.observe(endpoint, status, begun, now)      # status 0: no answer
    outliers.release(endpoint, begun)                   # always, at the end of the attempt, after observe

`now` and `begun` are the same clock's, `begun` the time of pick or probe.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic

from mesh_api import traffic
from mesh_proxy.policy.balance import E, Strikes

NEVER = float("inf")
MAX_EJECTION_S = 300.0
_GATEWAY = frozenset((502, 503, 504))


class Outliers(Generic[E]):
    """Tracks the endpoints of one cluster; what it knows of one is in the endpoint's `strikes`."""

    __slots__ = ("_ejected", "_endpoints", "_spec", "due", "ejections", "eligible")

    def __init__(self, spec: traffic.Outliers, endpoints: Sequence[E] = ()) -> None:
        self._ejected: list[E] = []
        self.due = NEVER
        """When the next endpoint may be probed."""
        self.ejections = 0
        """So far, for statistics."""
        self.update(spec, endpoints)

    def update(self, spec: traffic.Outliers, endpoints: Sequence[E]) -> None:
        """Take over new thresholds and endpoints; those that were known stay as they are.

        Where fewer endpoints are left, those nearest to their return come back to keep the share.
        """
        self._spec = spec
        self._endpoints = tuple(endpoints)
        left = set(self._endpoints)
        for gone in [endpoint for endpoint in self._ejected if endpoint not in left]:
            gone.strikes = None
            self._ejected.remove(gone)
        self._ejected.sort(key=lambda endpoint: endpoint.strikes.until if endpoint.strikes else 0.0)
        most = self._most() if self._watches() else 0
        while len(self._ejected) > most:
            self._ejected.pop(0).strikes = None
        self._refresh()

    @property
    def ejected(self) -> tuple[E, ...]:
        """Endpoints that are left out, or would be if enough others were in use."""
        return tuple(self._ejected)

    def probe(self, tried: Collection[E], now: float) -> E | None:
        """An endpoint whose ejection is over and that nobody probes of late; the caller is its probe now."""
        if now < self.due:
            return None
        for endpoint in self._ejected:
            strikes = endpoint.strikes
            if strikes is None or self._due_at(strikes) > now or endpoint in tried:
                continue
            strikes.probe_at = now
            self._set_due()
            return endpoint
        return None

    def observe(self, endpoint: E, status: int, begun: float, now: float) -> None:
        """Learn from an attempt; status 0 for one without an answer that is the endpoint's fault."""
        strikes = endpoint.strikes
        if strikes is None:
            if 0 < status < 500 or not self._counts(status):
                return
            strikes = endpoint.strikes = Strikes()
        failed = self._counts(status)
        if strikes.ejected:
            if begun >= strikes.until:
                self._probed(endpoint, strikes, failed, now)
        elif begun > strikes.ejected_at:  # what was under way at an ejection has had its consequence
            if failed:
                self._failed(endpoint, strikes, status, now)
            else:
                self._succeeded(endpoint, strikes, now)

    def release(self, endpoint: E, begun: float) -> None:
        """An attempt is over, whatever came of it: a probe without a verdict lets the next one try."""
        strikes = endpoint.strikes
        if strikes is not None and strikes.ejected and begun >= strikes.probe_at:
            strikes.probe_at = NEVER
            self._set_due()

    def _watches(self) -> bool:
        spec = self._spec
        return bool(spec.consecutive_5xx or spec.consecutive_gateway or spec.consecutive_local)

    def _counts(self, status: int) -> bool:
        """Whether an outcome is a failure that counts towards some threshold."""
        spec = self._spec
        if not status:
            return self._watches()
        if status < 500:
            return False
        return bool(spec.consecutive_5xx) or (bool(spec.consecutive_gateway) and status in _GATEWAY)

    def _failed(self, endpoint: E, strikes: Strikes, status: int, now: float) -> None:
        spec = self._spec
        if now - strikes.last > spec.interval_s:
            strikes.restart()
        strikes.last = now
        strikes.server += 1
        strikes.gateway = strikes.gateway + 1 if not status or status in _GATEWAY else 0
        strikes.local = strikes.local + 1 if not status else 0
        if (
            0 < spec.consecutive_5xx <= strikes.server
            or 0 < spec.consecutive_gateway <= strikes.gateway
            or 0 < spec.consecutive_local <= strikes.local
        ) and self._may_eject(endpoint):
            in_use_s = now - strikes.returned_at
            strikes.row = max(0, strikes.row - int(min(in_use_s / spec.base_ejection_s, strikes.row)))
            self._ejected.append(endpoint)
            self._eject(strikes, now)

    def _succeeded(self, endpoint: E, strikes: Strikes, now: float) -> None:
        strikes.restart()
        if now - strikes.returned_at >= strikes.row * self._spec.base_ejection_s:
            endpoint.strikes = None  # forgiven

    def _probed(self, endpoint: E, strikes: Strikes, failed: bool, now: float) -> None:
        if failed:
            self._eject(strikes, now)
            return
        strikes.ejected = False
        strikes.probe_at = NEVER
        strikes.returned_at = now
        strikes.restart()
        self._ejected.remove(endpoint)
        self._refresh()

    def _eject(self, strikes: Strikes, now: float) -> None:
        base_s = self._spec.base_ejection_s
        strikes.row += 1
        strikes.ejected = True
        strikes.ejected_at = now
        strikes.probe_at = NEVER
        strikes.until = now + min(base_s * strikes.row, max(MAX_EJECTION_S, base_s))
        strikes.restart()
        self.ejections += 1
        self._refresh()

    def _most(self) -> int:
        n = len(self._endpoints)
        return max(0, min(max(1, int(n * self._spec.max_ejection_percent / 100)), n - 1))

    def _may_eject(self, endpoint: E) -> bool:
        known = endpoint in self._endpoints  # or an answer that came after its endpoint had gone
        return known and len(self._ejected) < self._most() and not self._panics()

    def _panics(self) -> bool:
        n = len(self._endpoints)
        return 100 * (n - len(self._ejected)) < self._spec.min_health_percent * n

    def _refresh(self) -> None:
        if not self._ejected or self._panics():
            self.eligible: tuple[E, ...] = self._endpoints
        else:
            out = set(self._ejected)
            self.eligible = tuple(endpoint for endpoint in self._endpoints if endpoint not in out)
        self._set_due()

    def _set_due(self) -> None:
        self.due = min((self._due_at(e.strikes) for e in self._ejected if e.strikes), default=NEVER)

    def _due_at(self, strikes: Strikes) -> float:
        """When the next probe may begin."""
        if strikes.probe_at == NEVER:
            return strikes.until
        return strikes.probe_at + self._spec.base_ejection_s
