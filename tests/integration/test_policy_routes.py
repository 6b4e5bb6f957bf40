"""Routes: which request goes where, and what is done to it on the way."""

from __future__ import annotations

import pytest

from mesh_api.traffic import (
    Abort,
    Breaker,
    Delay,
    Fault,
    HeaderEdits,
    Match,
    PathMatch,
    PathRewrite,
    Redirect,
    Respond,
    Rewrite,
    Route,
    Settings,
    SourceMatch,
    Subset,
    Timeouts,
    ValueMatch,
    WeightedTarget,
)
from tests.integration.http_peers import Message, Peer
from tests.integration.policy_mesh import (
    GET,
    OTHER,
    POST,
    error,
    flag_of,
    mesh_test,
    ok,
    policy_mesh,
    to,
)
from tests.support.mesh import wait_until

SUBSETS = {name: Subset(labels={"version": name}) for name in ("v1", "v2")}
BOTH = {"v1": ok(b"v1"), "v2": ok(b"v2")}


def request(line: bytes, *fields: bytes) -> bytes:
    return line + b" HTTP/1.1\r\n" + b"".join(b"%s\r\n" % f for f in (b"Host: s", *fields)) + b"\r\n"


@pytest.mark.parametrize(
    ("match", "hit", "miss"),
    [
        (Match(path=PathMatch(exact="/a")), request(b"GET /a?x=1"), request(b"GET /a/b")),
        (Match(path=PathMatch(prefix="/a")), request(b"GET /a/b"), request(b"GET /ab")),
        (Match(path=PathMatch(regex="/[0-9]+")), request(b"GET /17"), request(b"GET /17/a")),
        (Match(method="POST"), request(b"POST /"), request(b"GET /")),
        (
            Match(headers=(ValueMatch(name="x-group", exact="beta"),)),
            request(b"GET /", b"X-Group: beta"),
            request(b"GET /", b"X-Group: beta2"),
        ),
        (
            Match(headers=(ValueMatch(name="x-group", present=False),)),
            request(b"GET /"),
            request(b"GET /", b"X-Group: beta"),
        ),
        (
            Match(query=(ValueMatch(name="debug", present=True),)),
            request(b"GET /?a=1&debug"),
            request(b"GET /?debugger"),
        ),
        (
            Match(method="GET", headers=(ValueMatch(name="x-n", regex="[0-9]+"),)),
            request(b"GET /", b"X-N: 12"),
            request(b"HEAD /", b"X-N: 12"),
        ),
    ],
)
@mesh_test
async def test_match(match: Match, hit: bytes, miss: bytes) -> None:
    async with policy_mesh(BOTH, subsets=SUBSETS, routes=(to("v2", match=(match,)), to("v1"))) as m:
        peer = await m.connect()
        for raw, wanted in ((hit, "v2"), (miss, "v1"), (hit, "v2")):
            before = len(m.apps[wanted].peers)
            await peer.send(raw)
            assert (await peer.response(raw.partition(b" ")[0])).status == 200
            assert len(m.apps[wanted].peers) >= before
            record = await m.record(subset=wanted)
            assert record["rule"] == f"shop/server/#{0 if wanted == 'v2' else 1}"


@pytest.mark.parametrize(
    ("source", "body"),
    [
        (SourceMatch(namespace="shop", service_account="client", labels={"app": "web"}), b"v2"),
        (SourceMatch(namespace="bank"), b"v1"),
        (SourceMatch(service_account="other"), b"v1"),
        (SourceMatch(labels={"app": "db"}), b"v1"),
    ],
)
@mesh_test
async def test_source(source: SourceMatch, body: bytes) -> None:
    routes = (to("v2", match=(Match(source=source),)), to("v1"))
    async with policy_mesh(BOTH, subsets=SUBSETS, routes=routes, labels={"app": "web", "x": "y"}) as m:
        assert (await m.ask()).body == body


@mesh_test
async def test_no_route_matches() -> None:
    routes = (to("v2", match=(Match(path=PathMatch(prefix="/a")),)),)
    async with policy_mesh(BOTH, subsets=SUBSETS, routes=routes) as m:
        peer = await m.connect()
        await peer.send(request(b"GET /b"))
        response = await peer.response()
        assert response.status == 404
        assert error(response) == (
            b'flag=NR; side=client; rule="shop/server"; detail="no route of server.shop:80 matches GET /b"'
        )
        await peer.send(request(b"GET /a"))
        assert (await peer.response()).body == b"v2", "the connection goes on"
        assert (await m.record(flag="NR"))["status"] == 404


@mesh_test
async def test_a_split_between_subsets_and_another_destination() -> None:
    arms = (
        WeightedTarget(subset="v1", weight=60),
        WeightedTarget(subset="v2", weight=20),
        WeightedTarget(destination=OTHER, weight=20),
    )
    async with policy_mesh(BOTH, other=ok(b"other"), subsets=SUBSETS, routes=(Route(to=arms),)) as m:
        m.client.app.runtime.rng.seed(3)
        got = await m.bodies(300)
        # Four standard deviations.
        assert 146 <= got[b"v1"] <= 214, got
        assert 33 <= got[b"v2"] <= 87, got
        assert 33 <= got[b"other"] <= 87, got


@mesh_test
async def test_another_destination_has_its_own_settings() -> None:
    """Its circuit breaker is the one that holds for who calls it directly."""
    routes = (Route(to=(WeightedTarget(destination=OTHER),)),)
    changes = {"settings": Settings(breaker=Breaker(max_requests=0))}
    async with policy_mesh(BOTH, other=ok(b"other"), other_changes=changes, routes=routes) as m:
        response = await m.ask()
        assert flag_of(response) == "UO"
        assert m.cluster(name="other").breaker.requests == 0


@mesh_test
async def test_another_destination_that_is_unknown_or_empty() -> None:
    arms = (WeightedTarget(destination="shop/nobody:1"),)
    async with policy_mesh(BOTH, routes=(Route(to=arms),)) as m:
        response = await m.ask()
        assert (response.status, flag_of(response)) == (503, "NC")
        assert b"shop/nobody:1" in error(response)
        m.change(routes=(Route(to=(WeightedTarget(destination=OTHER),)),))
        response = await m.ask()
        assert (response.status, flag_of(response)) == (503, "UH")


@mesh_test
async def test_a_subset_without_endpoints_is_named() -> None:
    subsets = {"v9": Subset(labels={"version": "v9"})}
    async with policy_mesh(BOTH, subsets=subsets, routes=(to("v9", name="beta"),)) as m:
        response = await m.ask()
        assert error(response) == (
            b'flag=UH; side=client; rule="shop/server/beta"; subset="v9"; '
            b'detail="the subset v9 has no endpoint"'
        )
        record = await m.record(flag="UH")
        assert (record["rule"], record["subset"]) == ("shop/server/beta", "v9")


# -- changes on the way -----------------------------------------------------------------------------------


class Seen:
    """An application that keeps what it was sent."""

    def __init__(self, answer: bytes = ok(b"seen", b"X-Old: 1", b"Via: app")) -> None:
        self.requests: list[Message] = []
        self.answer = answer

    async def handle(self, peer: Peer) -> None:
        while True:
            self.requests.append(await peer.request())
            await peer.send(self.answer)


@pytest.mark.parametrize(
    ("match", "rewrite", "line", "sent"),
    [
        ("/a", PathRewrite(replace_prefix="/new"), b"GET /a/b?q=/a", b"/new/b?q=/a"),
        ("/a", PathRewrite(replace_prefix="/"), b"GET /a", b"/"),
        ("/a", PathRewrite(replace_full="/x"), b"GET /a/b?q", b"/x?q"),
    ],
)
@mesh_test
async def test_rewrite(match: str, rewrite: PathRewrite, line: bytes, sent: bytes) -> None:
    app = Seen()
    route = Route(
        match=(Match(path=PathMatch(prefix=match)),),
        to=(WeightedTarget(),),
        rewrite=Rewrite(path=rewrite, host="elsewhere:8080"),
    )
    async with policy_mesh({"v1": app.handle}, routes=(route,)) as m:
        assert (await m.ask(request(line))).status == 200
        (seen,) = app.requests
        assert (seen.path, seen.get(b"host")) == (sent, b"elsewhere:8080")
        assert (await m.record(status=200))["path"] == line.split(b" ")[1].decode(), "as the client sent it"


@mesh_test
async def test_header_changes() -> None:
    app = Seen()
    route = Route(
        to=(WeightedTarget(),),
        request_headers=HeaderEdits(set={"x-set": "new"}, add={"x-add": "2"}, remove=("x-gone",)),
        response_headers=HeaderEdits(set={"x-old": "2"}, add={"x-more": "3"}, remove=("via",)),
    )
    async with policy_mesh({"v1": app.handle}, routes=(route,)) as m:
        raw = request(b"GET /", b"X-Set: old", b"x-add: 1", b"X-GONE: 1", b"X-Gone-Not: 1")
        response = await m.ask(raw)
        (seen,) = app.requests
        assert seen.all(b"x-set") == [b"new"]
        assert seen.all(b"x-add") == [b"1", b"2"]
        assert seen.get(b"x-gone") is None
        assert seen.get(b"x-gone-not") == b"1"
        assert len(seen.get(b"x-request-id") or b"") == 32
        assert (response.get(b"x-old"), response.get(b"x-more")) == (b"2", b"3")
        assert response.get(b"via") is None
        assert response.body == b"seen"


@pytest.mark.parametrize("raw", [POST, POST[:-1], b"chunked", b"pieces", b"expect", b"1.0"])
@mesh_test
async def test_changes_keep_the_framing(raw: bytes) -> None:
    """Bodies, whole or in pieces, arrive as they were sent; what follows on the connection too."""
    app = Seen()
    route = Route(
        to=(WeightedTarget(),),
        rewrite=Rewrite(path=PathRewrite(replace_full="/x")),
        request_headers=HeaderEdits(set={"x-a": "b"}),
        response_headers=HeaderEdits(set={"x-c": "d"}),
    )
    head = b"POST /a HTTP/1.1\r\nHost: s\r\n"
    async with policy_mesh({"v1": app.handle}, routes=(route,)) as m:
        peer = await m.connect()
        if raw == b"1.0":
            await peer.send(b"POST /a HTTP/1.0\r\nContent-Length: 2\r\n\r\nab")
            response = await peer.response()
            assert (response.status, response.get(b"connection")) == (200, b"close")
            assert app.requests[0].body == b"ab"
            return
        if raw in (POST, POST[:-1]):
            await peer.send(raw)
            if raw != POST:
                await peer.send(POST[-1:])
            body = b"ab"
        elif raw == b"expect":
            await peer.send(head + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            await peer.send(b"ab")
            body = b"ab"
        else:
            body = b"3\r\nabc\r\n0\r\n\r\n"
            first = head + b"Transfer-Encoding: chunked\r\n\r\n"
            if raw == b"chunked":
                await peer.send(first + body)
            else:
                await peer.send(first)
                for i in range(len(body)):
                    await peer.send(body[i : i + 1])
        await peer.send(GET)
        for _ in range(2):
            response = await peer.response()
            assert (response.status, response.get(b"x-c")) == (200, b"d")
        one, two = app.requests
        assert (one.path, one.body, one.get(b"x-a")) == (b"/x", body, b"b")
        assert (two.path, two.body) == (b"/x", b"")


@mesh_test
async def test_a_client_cannot_split_a_request_with_what_is_changed() -> None:
    """Whatever a client sends, one request of its is one request at the application."""
    app = Seen()
    route = Route(
        match=(Match(path=PathMatch(prefix="/a")),),
        to=(WeightedTarget(),),
        rewrite=Rewrite(path=PathRewrite(replace_prefix="/b"), host="h"),
        request_headers=HeaderEdits(set={"x-set": "1"}, remove=("x-gone",)),
    )
    async with policy_mesh({"v1": app.handle}, routes=(route,)) as m:
        for line, field in (
            (b"GET /a/%0d%0aHost:%20evil", b"X-Gone: a"),
            (b"GET /a//evil/..%2f", b"x-gone:"),
            (b"GET http://s/a/b", b"X-Set: \t a:b, GET /evil HTTP/1.1"),
            (b"OPTIONS /a", b"x-set: 1\t"),
        ):
            response = await m.ask(request(line, field))
            assert response.status == 200
        assert len(app.requests) == 4
        for seen in app.requests:
            assert seen.path.startswith(b"/b")
            assert seen.all(b"host") == [b"h"]
            assert seen.all(b"x-set") == [b"1"]
            assert seen.get(b"x-gone") is None
        for field in (b"X-Gone: a\rb", b"X-Gone : a", b"X-Set: a\n b", b" X-Set: a"):
            assert (await m.ask(request(b"GET /a", field))).status == 400
        assert len(app.requests) == 4


# -- answers without an endpoint --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirect", "location", "status"),
    [
        (Redirect(scheme="https"), b"https://s/a/b?q=1", 301),
        (Redirect(host="h", port=8443, status=302), b"http://h:8443/a/b?q=1", 302),
        (Redirect(path=PathRewrite(replace_prefix="/n"), status=308), b"http://s/n/b?q=1", 308),
    ],
)
@mesh_test
async def test_redirect(redirect: Redirect, location: bytes, status: int) -> None:
    route = Route(match=(Match(path=PathMatch(prefix="/a")),), redirect=redirect)
    async with policy_mesh({"v1": ok()}, routes=(route,)) as m:
        peer = await m.connect()
        for method in (b"GET", b"HEAD", b"POST"):
            await peer.send(request(method + b" /a/b?q=1"))
            response = await peer.response(method)
            assert (response.status, response.get(b"location")) == (status, location)
            assert not response.body
        assert not m.apps["v1"].peers
        assert (await m.record(status=status))["attempts"] == 0


@mesh_test
async def test_respond() -> None:
    route = Route(
        respond=Respond(status=418, body="short and stout"),
        response_headers=HeaderEdits(set={"x-pot": "tea"}),
    )
    async with policy_mesh({"v1": ok()}, routes=(route,)) as m:
        peer = await m.connect()
        await peer.send(GET + request(b"HEAD /") + POST)
        response = await peer.response()
        assert (response.status, response.body) == (418, b"short and stout")
        assert response.get(b"x-pot") == b"tea"
        assert not error(response)
        head = await peer.response(b"HEAD")
        assert (head.status, head.get(b"content-length")) == (418, b"15")
        assert (await peer.response()).body == b"short and stout"


@mesh_test
async def test_fault_abort() -> None:
    fault = Fault(abort=Abort(percent=100, status=555))
    async with policy_mesh({"v1": ok()}, routes=(Route(to=(WeightedTarget(),), fault=fault),)) as m:
        response = await m.ask()
        assert (response.status, flag_of(response)) == (555, "FI")
        assert b'rule="shop/server/#0"' in error(response)
        assert not m.apps["v1"].peers
        m.change(routes=(Route(to=(WeightedTarget(),), fault=Fault(abort=Abort(percent=0))),))
        assert (await m.ask()).status == 200
        grpc = Fault(abort=Abort(percent=100, grpc_status=14))
        m.change(routes=(Route(to=(WeightedTarget(),), fault=grpc),))
        response = await m.ask()
        assert (response.status, response.get(b"grpc-status")) == (200, b"14")
        assert response.get(b"content-type") == b"application/grpc"


@mesh_test
async def test_fault_share() -> None:
    fault = Fault(abort=Abort(percent=30))
    async with policy_mesh({"v1": ok(b"")}, routes=(Route(to=(WeightedTarget(),), fault=fault),)) as m:
        m.client.app.runtime.rng.seed(5)
        got = await m.bodies(200)
        # Four standard deviations.
        assert 34 <= 200 - got[b""] <= 86, got


@mesh_test
async def test_fault_delay_holds_the_request() -> None:
    """The application has the request later than one that was sent after it."""
    app = Seen()
    slow = Match(path=PathMatch(exact="/slow"))
    fault = Fault(delay=Delay(percent=100, fixed_s=0.2))
    routes = (Route(match=(slow,), to=(WeightedTarget(),), fault=fault), Route(to=(WeightedTarget(),)))
    async with policy_mesh({"v1": app.handle}, routes=routes) as m:
        one, two = await m.connect(), await m.connect()
        await one.send(request(b"GET /slow"))
        await wait_until(lambda: m.client.metric("triomesh_connections", direction="outbound") == 2)
        await two.send(request(b"GET /fast"))
        assert (await two.response()).status == 200
        assert (await one.response()).status == 200
        assert [seen.path for seen in app.requests] == [b"/fast", b"/slow"]


@mesh_test
async def test_a_client_that_goes_ends_a_delay() -> None:
    fault = Fault(delay=Delay(percent=100, fixed_s=3600))
    async with policy_mesh({"v1": ok()}, routes=(Route(to=(WeightedTarget(),), fault=fault),)) as m:
        peer = await m.connect()
        await peer.send(GET)
        await wait_until(lambda: m.client.metric("triomesh_connections", direction="outbound") == 1)
        peer.reset()
        assert (await m.record(flag="DC"))["status"] == 0


@mesh_test
async def test_a_delay_counts_towards_the_timeout() -> None:
    fault = Fault(delay=Delay(percent=100, fixed_s=3600))
    route = Route(to=(WeightedTarget(),), fault=fault, timeout_s=0.05)
    async with policy_mesh({"v1": ok()}, routes=(route,), settings=Settings(timeouts=Timeouts())) as m:
        response = await m.ask()
        assert (response.status, flag_of(response)) == (504, "UT")
        assert not m.apps["v1"].peers
