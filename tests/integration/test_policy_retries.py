"""Retries: what is tried again, where, how often, and what is passed on in the end."""

from __future__ import annotations

import pytest
import trio

from mesh_api.traffic import Algorithm, Backoff, Budget, Outliers, Retries, RetryOn, Settings, Timeouts
from tests.integration.http_peers import Handler, Peer, application, closed_port, plain
from tests.integration.policy_mesh import GET, POST, error, flag_of, mesh_test, ok, policy_mesh, to
from tests.support.mesh import wait_until

NONE = Outliers(consecutive_5xx=0, consecutive_local=0)
TURNS = Settings(algorithm=Algorithm.ROUND_ROBIN, outliers=NONE)
"""The first endpoint takes the first request."""
BACKOFF = Backoff(base_s=0.001, max_s=0.002)
PUT = b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nab"
GET10 = b"GET / HTTP/1.0\r\nHost: s\r\n\r\n"


def status(code: int, *fields: bytes, body: bytes = b"bad") -> bytes:
    lines = b"".join(b"%s\r\n" % field for field in fields)
    return b"HTTP/1.1 %d Bad\r\nContent-Length: %d\r\n%s\r\n%s" % (code, len(body), lines, body)


def retries(*on: RetryOn, attempts: int = 1, **more: object) -> Retries:
    return Retries(on=on, attempts=attempts, **{"backoff": BACKOFF, **more})  # type: ignore[arg-type]


def script(*answers: bytes | None) -> tuple[list[bytes], Handler]:
    """A handler that gives these answers in turn, the last one for ever; None resets. What it was sent."""
    seen: list[bytes] = []

    async def handle(peer: Peer) -> None:
        while True:
            request = await peer.request()
            answer = answers[min(len(seen), len(answers) - 1)]
            seen.append(request.line.partition(b" ")[0] + request.body)
            if answer is None:
                peer.reset()
                return
            await peer.send(answer)

    return seen, handle


@pytest.mark.parametrize(
    ("on", "bad", "raw", "tried"),
    [
        (RetryOn.SERVER_ERROR, status(500), GET, True),
        (RetryOn.SERVER_ERROR, status(500), GET10, True),
        (RetryOn.SERVER_ERROR, status(404), GET, False),
        (RetryOn.SERVER_ERROR, status(500), PUT, True),
        (RetryOn.SERVER_ERROR, status(500), POST, False),
        (RetryOn.GATEWAY_ERROR, status(503), GET, True),
        (RetryOn.GATEWAY_ERROR, status(500), GET, False),
        (RetryOn.TOO_MANY_REQUESTS, status(429), GET, True),
        (RetryOn.TOO_MANY_REQUESTS, status(503), GET, False),
        (RetryOn.GRPC_UNAVAILABLE, ok(b"", b"grpc-status: 14"), GET, True),
        (RetryOn.GRPC_UNAVAILABLE, ok(b"", b"grpc-status: 13"), GET, False),
        (RetryOn.CONNECT_FAILURE, status(503), GET, False),
    ],
)
@mesh_test
async def test_responses(on: RetryOn, bad: bytes, raw: bytes, tried: bool) -> None:
    seen, handle = script(bad)
    async with policy_mesh({"v1": handle, "v2": ok(b"good")}, settings=TURNS, retries=retries(on)) as m:
        response = await m.ask(raw)
        assert len(seen) == 1
        assert (response.body == b"good") is tried
        assert not error(response)
        assert (await m.record(attempts=2 if tried else 1))["status"] == response.status
        assert m.client.metric("triomesh_retries_total", result="tried") == tried


@pytest.mark.parametrize("on", [RetryOn.CONNECT_FAILURE, RetryOn.TOO_MANY_REQUESTS])
@mesh_test
async def test_what_was_never_processed_is_tried_again_whatever_is_named(on: RetryOn) -> None:
    async with policy_mesh({"v1": ok(b"good")}, settings=TURNS, retries=retries(on)) as m:
        (good,) = m.client.app.store.snapshot.destinations[0].endpoints
        m.change(endpoints=(plain(closed_port()), good))
        assert (await m.ask(POST)).status == 200


@mesh_test
async def test_what_may_have_been_processed_is_tried_again_only_where_it_is_named() -> None:
    async def resetting(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    async with application(resetting) as app:
        for on, asked in ((RetryOn.TOO_MANY_REQUESTS, 1), (RetryOn.SERVER_ERROR, 2)):
            async with policy_mesh({"v1": ok()}, settings=TURNS, retries=retries(on)) as m:
                app.peers.clear()
                m.change(endpoints=(plain(app.addr),))
                assert flag_of(await m.ask()) == "UC"
                assert len(app.peers) == asked


@mesh_test
async def test_the_last_response_is_passed_on_as_it_is() -> None:
    seen, handle = script(status(500, b"X-N: 1"), status(502, b"X-N: 2", b"Via: a"), status(503, b"X-N: 3"))
    policy = retries(RetryOn.SERVER_ERROR, attempts=1)
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=policy) as m:
        response = await m.ask()
        assert (response.status, response.get(b"x-n"), response.get(b"via")) == (502, b"2", b"a")
        assert response.body == b"bad"
        assert not error(response), "it is the application's own"
        assert len(seen) == 2, "the only endpoint is asked again"
        assert (await m.record(status=502))["retry_reason"] == "no retries are left"


@pytest.mark.parametrize(("body", "opened"), [(b"bad", 1), (bytes(1 << 20), 4)])
@mesh_test
async def test_a_response_that_is_tried_again_keeps_or_loses_its_connection(body: bytes, opened: int) -> None:
    """Whole in the first read it is drained; otherwise its connection is closed, and nothing is left."""
    bad = status(500, body=body)
    _, handle = script(bad, ok(b"1"), bad, ok(b"2"), bad, ok(b"3"))
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=retries(RetryOn.SERVER_ERROR)) as m:
        assert await m.bodies(3) == {b"1": 1, b"2": 1, b"3": 1}
        assert m.client.metric("triomesh_upstream_connections_opened_total") == opened


@mesh_test
async def test_hosts_that_were_tried_come_last() -> None:
    seen: list[str] = []

    def failing(name: str) -> Handler:
        async def handle(peer: Peer) -> None:
            while True:
                await peer.request()
                seen.append(name)
                await peer.send(status(503))

        return handle

    apps = {name: failing(name) for name in ("v1", "v2", "v3")}
    policy = retries(RetryOn.GATEWAY_ERROR, attempts=5)
    async with policy_mesh(apps, settings=TURNS, retries=policy) as m:
        assert (await m.ask()).status == 503
        assert len(seen) == 6
        assert set(seen[:3]) == {"v1", "v2", "v3"}


@pytest.mark.parametrize("raw", [GET, POST])
@mesh_test
async def test_methods(raw: bytes) -> None:
    seen, handle = script(status(503), ok(b"good"))
    policy = retries(RetryOn.GATEWAY_ERROR, methods=("POST",))
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=policy) as m:
        assert ((await m.ask(raw)).body == b"good") is (raw is POST)
        assert seen == ([b"POSTab", b"POSTab"] if raw is POST else [b"GET"])


@pytest.mark.parametrize("size", [60_000, 70_000])
@mesh_test
async def test_a_body_in_pieces_is_kept_up_to_64_kib(size: int) -> None:
    seen, handle = script(status(503), ok(b"good"))
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=retries(RetryOn.GATEWAY_ERROR)) as m:
        peer = await m.connect()
        await peer.send(b"PUT / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, bytes(size))
        await wait_until(lambda: m.apps["v1"].peers)
        for at in range(0, len(body), 10_000):
            await peer.send(body[at : at + 10_000])
        response = await peer.response()
        if size == 60_000:
            assert response.body == b"good"
            assert seen == [b"PUT" + body] * 2
        else:
            assert response.status == 503
            assert (await m.record(status=503))["retry_reason"].startswith("the request body is over 64 KiB")
        await peer.send(GET)
        assert (await peer.response()).body == b"good"


@mesh_test
async def test_per_try_timeout() -> None:
    asked: list[str] = []

    async def silent(peer: Peer) -> None:
        await peer.request()
        asked.append("silent")
        await peer.rest()

    policy = retries(RetryOn.GATEWAY_ERROR, per_try_s=0.1)
    async with policy_mesh({"v1": silent, "v2": ok(b"good")}, settings=TURNS, retries=policy) as m:
        assert (await m.ask()).body == b"good"
        assert asked == ["silent"]
    async with policy_mesh({"v1": silent}, settings=TURNS, retries=policy) as m:
        response = await m.ask(POST)
        assert (response.status, flag_of(response)) == (504, "UT")
        assert b"per-try timeout" in error(response)


@mesh_test
async def test_a_slow_body_is_no_matter_of_the_per_try_timeout() -> None:
    async def slow(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await trio.sleep(0.2)
        await peer.send(b"cd")

    policy = retries(RetryOn.GATEWAY_ERROR, per_try_s=0.1)
    async with policy_mesh({"v1": slow}, retries=policy) as m:
        assert (await m.ask()).body == b"abcd"


@mesh_test
async def test_the_request_timeout_covers_all_attempts() -> None:
    seen, handle = script(status(503))
    policy = retries(RetryOn.GATEWAY_ERROR, attempts=10, backoff=Backoff(base_s=60, max_s=60))
    settings = Settings(outliers=NONE, timeouts=Timeouts(request_s=2))
    async with policy_mesh({"v1": handle}, settings=settings, retries=policy) as m:
        m.client.app.runtime.rng.seed(1)
        response = await m.ask()
        assert response.status == 503, "the response is passed on where there is no time for another attempt"
        assert len(seen) == 1
        reason = (await m.record(status=503))["retry_reason"]
        assert reason == "the request timeout leaves no time for another attempt"


@mesh_test
async def test_a_client_that_goes_ends_a_backoff() -> None:
    seen, handle = script(status(503))
    policy = retries(RetryOn.GATEWAY_ERROR, backoff=Backoff(base_s=3600, max_s=3600))
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=policy) as m:
        peer = await m.connect()
        await peer.send(GET)
        await wait_until(lambda: m.client.metric("triomesh_retries_total", result="tried"))
        assert m.cluster().breaker.requests == 1
        peer.reset()
        assert (await m.record(flag="DC"))["status"] == 0
        assert len(seen) == 1
        assert m.cluster().breaker.requests == 0


@pytest.mark.parametrize(("after", "waits"), [(b"0", True), (b"31", False), (b"nonsense", True)])
@mesh_test
async def test_retry_after(after: bytes, waits: bool) -> None:
    seen, handle = script(status(503, b"Retry-After: " + after), ok(b"good"))
    policy = retries(RetryOn.GATEWAY_ERROR, honor_retry_after=True)
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=policy) as m:
        assert (await m.ask()).status == (200 if waits else 503)
        assert len(seen) == 1 + waits


@mesh_test
async def test_retry_after_counts_only_where_it_is_honoured() -> None:
    _, handle = script(status(503, b"Retry-After: 31"), ok(b"good"))
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=retries(RetryOn.GATEWAY_ERROR)) as m:
        assert (await m.ask()).body == b"good"


@mesh_test
async def test_the_budget_holds_for_responses() -> None:
    seen, handle = script(status(503))
    async with policy_mesh(
        {"v1": handle},
        settings=TURNS,
        retries=retries(RetryOn.GATEWAY_ERROR, attempts=10),
        budget=Budget(percent=50, min_per_s=0),
    ) as m:
        await m.bodies(20)
        assert len(seen) == 30
        assert m.client.metric("triomesh_retries_total", result="budget") == 20


@mesh_test
async def test_resets_are_tried_again_with_the_body() -> None:
    seen, handle = script(None, None, ok(b"good"))
    policy = retries(RetryOn.SERVER_ERROR, attempts=2)
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=policy) as m:
        # The server's sidecar answers for the application that has reset.
        assert (await m.ask(PUT)).body == b"good"
        assert seen == [b"PUTab"] * 3


@mesh_test
async def test_a_route_has_retries_of_its_own() -> None:

    _, handle = script(status(503), ok(b"good"))
    route = to("", retries=retries(RetryOn.GATEWAY_ERROR))
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=Retries(attempts=0), routes=(route,)) as m:
        assert (await m.ask()).body == b"good"


@mesh_test
async def test_pipelined_requests_are_answered_in_their_order() -> None:
    _, handle = script(status(503), ok(b"1"), status(503), status(503), ok(b"2"), ok(b"3"))
    policy = retries(RetryOn.GATEWAY_ERROR, attempts=3)
    async with policy_mesh({"v1": handle}, settings=TURNS, retries=policy) as m:
        peer = await m.connect()
        await peer.send(GET * 3)
        assert [(await peer.response()).body for _ in range(3)] == [b"1", b"2", b"3"]
