"""What `proxy-config routes` shows of policies."""

from mesh_api.sidecar import Destination
from mesh_api.traffic import (
    Abort,
    Algorithm,
    Breaker,
    Delay,
    Fault,
    HeaderEdits,
    HttpVersion,
    Match,
    Outliers,
    PathMatch,
    Redirect,
    Respond,
    Retries,
    RetryOn,
    Rewrite,
    Route,
    Settings,
    SourceMatch,
    Subset,
    Timeouts,
    ValueMatch,
    WeightedTarget,
)
from meshctl.routes_view import routes

PLAIN = Destination(name="plain", namespace="shop", port=80, addresses=())
MATCHES = (
    Match(
        path=PathMatch(prefix="/a"),
        method="GET",
        headers=(ValueMatch(name="x-user", exact="jo"), ValueMatch(name="x-old", present=False)),
        query=(ValueMatch(name="q", regex="[a-z]+"),),
    ),
    Match(source=SourceMatch(namespace="web", service_account="front", labels={"app": "f"})),
)
RULED = Destination(
    name="ruled",
    namespace="shop",
    port=80,
    addresses=("10.96.0.1",),
    subsets={
        "v1": Subset(labels={"version": "v1"}),
        "v2": Subset(
            labels={"version": "v2"},
            settings=Settings(
                timeouts=Timeouts(connect_s=0.25, request_s=2.0),
                algorithm=Algorithm.ROUND_ROBIN,
                warmup_s=30.0,
                affinity_s=60,
                http_version=HttpVersion.HTTP2,
                breaker=Breaker(max_connections=7, max_requests=100),
                outliers=Outliers(consecutive_5xx=3, consecutive_local=0, max_ejection_percent=20.0),
            ),
        ),
    },
    routes=(
        Route(
            name="split",
            match=MATCHES,
            to=(
                WeightedTarget(subset="v1", weight=90),
                WeightedTarget(subset="v2", weight=9),
                WeightedTarget(destination="shop/other:80", weight=1),
            ),
            timeout_s=1.5,
            retries=Retries(attempts=2, on=(RetryOn.SERVER_ERROR, RetryOn.CONNECT_FAILURE), per_try_s=0.5),
            rewrite=Rewrite(host="h"),
            request_headers=HeaderEdits(set={"a": "b"}),
            fault=Fault(Delay(10.0, 0.1), Abort(1.0, grpc_status=14)),
        ),
        Route(match=(Match(path=PathMatch(exact="/old")),), redirect=Redirect(status=308)),
        Route(respond=Respond(status=404), retries=Retries(attempts=0)),
    ),
    settings=Settings(outliers=Outliers(consecutive_5xx=0, consecutive_local=0)),
    policy="shop/ruled",
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("   ") if cell.strip()]


def test_routes() -> None:
    shown, used = routes((PLAIN, RULED)).split("\n\n")
    head, plain, split, moved, gone = map(cells, shown.splitlines())
    assert head[0] == "DESTINATION"
    assert plain == ["shop/plain:80", "headless", "auto", "-", "all", "all", "-", "1", "-", "-"]
    assert split == [
        *("shop/ruled:80", "10.96.0.1", "auto", "split"),
        "GET prefix /a header x-user=jo header !x-old query q~[a-z]+ | from web/front from app=f",
        "v1 90, v2 9, shop/other:80 1",
        "1.5s",
        "2 on 5xx,connect-failure per try 500ms",
        "rewrite, headers, delay 10% 100ms, abort 1% grpc-status 14",
        "shop/ruled",
    ]
    assert moved[3:6] == ["1", "path /old", "redirect 308"]
    assert gone[3:8] == ["2", "all", "respond 404", "-", "-"]
    _, one, two, v1, v2 = map(cells, used.splitlines())
    assert one[3] == "least-latency"
    assert one[5:] == ["pending 1024", "5xx 5, local 5; 30s, at most 50%", "-"]
    assert two[-2:] == ["off", "-"]
    assert v1[1:4] == ["v1", "version=v1", "least-latency"]
    assert v2[1:] == [
        "v2",
        "version=v2",
        "round-robin, warm-up 30s, affinity 60s",
        "connect 250ms, request 2s, tcp-idle 3600s",
        "connections 7, pending 1024, requests 100",
        "5xx 3; 30s, at most 20%",
        "2",
    ]
