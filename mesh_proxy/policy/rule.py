"""One route as a request needs it: everything is prepared when the configuration is applied.

`Rule.weights` is for `balance.split`; what the route says of retries is for `retry.RetryPolicy`.
"""

from __future__ import annotations

from mesh_api.traffic import HeaderEdits, Route
from mesh_proxy.policy import answers
from mesh_proxy.policy.balance import Weights
from mesh_proxy.policy.edits import Edits
from mesh_proxy.policy.fault import Fault
from mesh_proxy.policy.rewrite import Redirect, Rewrite


class Rule:
    """A prepared Route. Routes whose matches have several prefixes and that replace them have one for each.

    Raises ConfigError, with a path below `path`, for what cannot be prepared.

    Args:
        path: where the route is in the configuration.
        index: of the route among those of its destination, dropped ones counted.
        route: what to prepare.
        matched: the prefix or exact path of the match that leads here; `/` without one.
    """

    __slots__ = (
        "fault",
        "index",
        "name",
        "plain",
        "redirect",
        "request_edits",
        "respond",
        "response_edits",
        "rewrite",
        "targets",
        "timeout_s",
        "weights",
    )

    def __init__(self, path: str, index: int, route: Route, matched: str = "/") -> None:
        self.index = index
        self.name = route.name or f"#{index}"
        self.targets = route.to
        """Empty for a redirect and an answer."""
        self.weights = Weights([target.weight for target in route.to]) if len(route.to) > 1 else None
        self.redirect = Redirect(f"{path}.redirect", route.redirect, matched) if route.redirect else None
        self.respond = answers.respond(route.respond) if route.respond else None
        self.rewrite = Rewrite(f"{path}.rewrite", route.rewrite, matched) if route.rewrite else None
        self.request_edits = _edits(f"{path}.requestHeaders", route.request_headers)
        self.response_edits = _edits(f"{path}.responseHeaders", route.response_headers)
        self.fault = Fault(route.fault) if route.fault else None
        self.timeout_s = route.timeout_s
        self.plain = not (self.redirect or self.respond or self.rewrite or self.request_edits or self.fault)
        """The request goes to an endpoint as it is."""

    def __repr__(self) -> str:
        return f"<Rule {self.index} {self.name}>"


def _edits(path: str, spec: HeaderEdits | None) -> Edits | None:
    return Edits(path, spec) if spec is not None and (spec.set or spec.add or spec.remove) else None
