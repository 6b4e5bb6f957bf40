"""A small mesh that has reported for a minute: web calls reviews (v1, v2) and mysql."""

from typing import TypeVar

from mesh_api.discovery import Report
from mesh_api.stats import Direction, Edge, EdgeKind, EdgeTable
from mesh_control.stats.merge import merge
from mesh_control.stats.steps import Steps
from mesh_control.stats.window import Window

SPACE = "bookshop"
ID = "spiffe://cluster.local/ns/bookshop/sa/"
REVIEWS = "reviews.bookshop:9080"
MYSQL = "mysql.bookshop:3306"
START = 1_700_000_000.0
T = TypeVar("T")


def at_once(steps: Steps[T]) -> T:
    """The result of steps that are done without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def _http(direction: str, requests: int, **fields: object) -> Edge:
    values: dict[str, object] = {"sent": 100 * requests, "received": 1000 * requests, **fields}
    return Edge(Direction(direction), EdgeKind.HTTP, requests=requests, **values)  # type: ignore[arg-type]


def _to(workload: str, requests: int, **fields: object) -> Edge:
    names = {"service": REVIEWS, "route": "all", "namespace": SPACE, "workload": workload}
    return _http("outbound", requests, identity=f"{ID}reviews", **names, **fields)


def _from_web(requests: int, **fields: object) -> Edge:
    return _http("inbound", requests, namespace=SPACE, identity=f"{ID}web", **fields)


def _tcp(direction: str, account: str, **fields: object) -> Edge:
    numbers = {"opened": 2, "closed": 2, "open": 4, "sent": 900, "received": 81_000}
    return Edge(
        Direction(direction),
        EdgeKind.TCP,
        namespace=SPACE,
        identity=f"{ID}{account}",
        **numbers,
        **fields,  # type: ignore[arg-type]
    )


REPORTS = {
    "web": (
        _to("reviews-v1", 450, subset="v1", attempts=450, latencies={6: 300, 7: 100, 10: 50}),
        _to(
            "reviews-v2",
            50,
            subset="v2",
            attempts=58,
            failures=1,
            attempt_failures=9,
            retries=8,
            ejections=1,
            latencies={6: 30, 13: 20},
        ),
        _http(
            "outbound",
            2,
            service=REVIEWS,
            route="all",
            failures=2,
            overflows=2,
            latencies={0: 2},
            sent=0,
            received=0,
        ),
        _tcp("outbound", "mysql", service=MYSQL, workload="mysql"),
    ),
    "reviews-v1": (_from_web(450, latencies={5: 400, 6: 50}),),
    "reviews-v2": (
        _from_web(58, failures=9, latencies={5: 58}),
        _http("inbound", 10, latencies={20: 10}),
    ),
    "mysql": (_tcp("inbound", "web"),),
}


def scene() -> EdgeTable:
    """What the control plane answers."""
    window = Window()
    now = START
    for step in range(1, 13):
        now = START + 5 * step
        for workload, edges in REPORTS.items():
            window.add((SPACE, f"{workload}-1"), workload, Report(5.0, edges), now)
    return at_once(merge([at_once(window.part(60, now))], 60.0, 1))
