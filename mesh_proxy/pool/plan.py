"""A route as it is carried out: all that its requests need, resolved when the configuration is applied.

A `Plan` is what the request loop is given; a destination without routes has one plan for every request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from mesh_api.traffic import Retries
from mesh_proxy.policy.answers import Answer
from mesh_proxy.policy.balance import split
from mesh_proxy.policy.retry import RetryPolicy
from mesh_proxy.policy.rule import Rule
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.telemetry.stats import ArmStats

Follow = Callable[[str], Cluster | None]
"""Finds the endpoints of another destination by its key; None while nothing is known of it."""


class Arm:
    """Where one share of a route's requests goes: `arm.fixed or arm.find()` has the endpoints."""

    __slots__ = ("_follow", "fixed", "key", "stats")

    def __init__(
        self, stats: ArmStats | None, fixed: Cluster | None, key: str = "", follow: Follow | None = None
    ) -> None:
        """With `key` it leads to another destination, which `follow` finds each time.

        Without `stats` nothing is counted here: the caller does.
        """
        self.stats = stats
        self.fixed = fixed
        self.key = key
        self._follow = follow

    def find(self) -> Cluster | None:
        """The endpoints of the other destination; None while nothing is known of it."""
        return self._follow(self.key) if self._follow is not None else self.fixed


class Plan:
    """What is done with the requests of one route, or of a destination without routes."""

    __slots__ = (
        "again",
        "answers",
        "arms",
        "changes_request",
        "fault",
        "per_try_s",
        "response_edits",
        "retry",
        "rng",
        "route",
        "rule",
        "split",
        "timeout_s",
    )

    def __init__(
        self, rule: str, arms: Sequence[Arm], retries: Retries, rng: random.Random, route: Rule | None = None
    ) -> None:
        self.rule = rule
        """Its name in errors and logs."""
        self.route = route
        self.arms = tuple(arms)
        """One for each target of the route; none where it answers itself."""
        self.rng = rng
        self.retry = RetryPolicy(retries)
        self.per_try_s = retries.per_try_s
        self.again = bool(retries.on)
        """An endpoint that was tried may be tried again where no other is left: not by the safe set."""
        self.split = route.weights if route else None
        self.fault = route.fault if route else None
        self.timeout_s = route.timeout_s if route else None
        self.response_edits = route.response_edits if route else None
        self.changes_request = bool(route and (route.rewrite or route.request_edits))
        self.answers = bool(route and (route.redirect or route.respond))
        """The route answers itself."""

    def arm(self) -> Arm:
        """The arm for the next request or connection, by weight."""
        return self.arms[0] if self.split is None else self.arms[split(self.split, self.rng)]

    def changed(self, target: bytes, block: bytes) -> tuple[bytes, bytes]:
        """Request target and header lines as the route wants them; asked where `changes_request`."""
        route = self.route
        if route is not None and route.rewrite is not None:
            target, block = route.rewrite.target(target), route.rewrite.block(block)
        if route is not None and route.request_edits is not None:
            block = route.request_edits.apply(block)
        return target, block

    def answer(self, target: bytes, host: bytes) -> Answer:
        """The route's own answer; asked where `answers`."""
        route = self.route
        if route is not None and route.redirect is not None:
            return route.redirect.answer(target, host)
        if route is None or route.respond is None:
            raise ValueError("expected a route that answers itself")
        return route.respond
