"""Faults on purpose: which requests are held, and which are answered with an error.

`Fault(spec).delay_s(rng) -> float` (0: none), then, after the delay, `Fault.abort(rng) -> Answer | None`.
"""

from __future__ import annotations

from mesh_api import traffic
from mesh_proxy.policy.answers import Answer, abort
from mesh_proxy.policy.balance import Rng


class Fault:
    """A prepared fault; delay and abort are drawn independently."""

    __slots__ = ("_abort_share", "_answer", "_delay_s", "_delay_share")

    def __init__(self, spec: traffic.Fault) -> None:
        self._delay_share = spec.delay.percent / 100 if spec.delay is not None else 0.0
        self._delay_s = spec.delay.fixed_s if spec.delay is not None else 0.0
        self._abort_share = spec.abort.percent / 100 if spec.abort is not None else 0.0
        self._answer = abort(spec.abort) if spec.abort is not None else None

    def delay_s(self, rng: Rng) -> float:
        """How long to hold this request, in seconds."""
        share = self._delay_share
        return self._delay_s if share and rng.random() < share else 0.0

    def abort(self, rng: Rng) -> Answer | None:
        """What to answer instead of asking an endpoint."""
        share = self._abort_share
        return self._answer if share and rng.random() < share else None
