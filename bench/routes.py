"""`python -m bench.routes`: what it costs to find the route of a request, with 1 and with 1,000 routes."""

from __future__ import annotations

import timeit
from functools import partial

import click

from mesh_api.traffic import Match, PathMatch, Route, ValueMatch, WeightedTarget
from mesh_proxy.policy.edits import field
from mesh_proxy.policy.routing import Caller, Router

_TO = (WeightedTarget(),)
_CALLER = Caller("shop", "web", {"app": "web"})
_MANY = 1000
_CALLS = 100_000
_BLOCK = (
    b"host: reviews\r\nuser-agent: curl/8.0\r\naccept: */*\r\naccept-encoding: gzip, br\r\n"
    b"x-request-id: 0123456789abcdef0123456789abcdef\r\nx-user: user-%d\r\n"
)


def _route(match: Match) -> Route:
    return Route(match=(match,), to=_TO)


def _kinds(i: int) -> dict[str, Match]:
    return {
        "exact path": Match(path=PathMatch(exact=f"/api/v1/items/{i}")),
        "prefix": Match(path=PathMatch(prefix=f"/api/v1/items/{i}")),
        "prefix and method": Match(path=PathMatch(prefix=f"/api/v1/items/{i}"), method="GET"),
        "exact header": Match(headers=(ValueMatch(name="x-user", exact=f"user-{i}"),)),
        "prefix and exact header": Match(
            path=PathMatch(prefix="/api"), headers=(ValueMatch(name="x-user", exact=f"user-{i}"),)
        ),
        "query": Match(
            path=PathMatch(prefix=f"/api/v1/items/{i}"), query=(ValueMatch(name="debug", exact="1"),)
        ),
        "path regex": Match(path=PathMatch(regex=f"/api/v[0-9]+/items/{i}")),
    }


def _measure(router: Router, number: int) -> float:
    """Microseconds for one look-up of the last route."""
    target = b"/api/v1/items/%d?debug=1" % number
    block = _BLOCK % number
    rule = router.match(b"GET", target, partial(field, block))
    if rule is None:
        raise click.ClickException("the request that is measured takes no route")
    calls = _CALLS if number == 0 else _CALLS // 10
    timer = timeit.Timer(lambda: router.match(b"GET", target, partial(field, block)))
    return min(timer.repeat(5, calls // 5)) / (calls // 5) * 1e6


@click.command()
def main() -> None:
    """Print microseconds for the last route of a table, the best of five runs."""
    click.echo(f"{'one rule for everything':28} {_measure(Router((Route(to=_TO),), _CALLER), 0):8.2f} us")
    click.echo(f"{'':28} {'1 route':>11} {f'{_MANY} routes':>14}")
    for kind in _kinds(0):
        one = Router((_route(_kinds(0)[kind]),), _CALLER)
        many = Router([_route(_kinds(i)[kind]) for i in range(_MANY)], _CALLER)
        click.echo(f"{kind:28} {_measure(one, 0):8.2f} us {_measure(many, _MANY - 1):11.2f} us")


if __name__ == "__main__":
    main()
