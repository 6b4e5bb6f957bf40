"""gRPC calls through policies: what trailers say, deadlines, and the mesh's own errors."""

from __future__ import annotations

import pytest
import trio

from mesh_api.traffic import (
    Abort,
    Algorithm,
    Fault,
    Outliers,
    Retries,
    RetryOn,
    Route,
    Settings,
    Timeouts,
    WeightedTarget,
)
from tests.integration.http2_peers import OK, Fields, Handler, Http2Peer, Http2Stream
from tests.integration.http_peers import mesh_test
from tests.integration.policy_mesh import policy_mesh
from tests.integration.test_h2_policy import TURNS, Gate, client_of, said

pytestmark = pytest.mark.usefixtures("http2_engine")
GRPC: Fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
GRPC_HEAD: Fields = [*OK, (b"content-type", b"application/grpc")]


def grpc(status: int, message: bool = False) -> Handler:
    """Answers a call with this status: trailers-only, or after a message."""

    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        said = (b"grpc-status", b"%d" % status)
        if message:
            await stream.respond(GRPC_HEAD, b"\0\0\0\0\1x", [said])
        else:
            await stream.respond([*GRPC_HEAD, said])

    return handle


async def call(peer: Http2Peer, *more: tuple[bytes, bytes], path: bytes = b"/s/M") -> Http2Stream:
    """One gRPC call with one message."""
    return await peer.ask(path, method=b"POST", fields=[*GRPC, *more], body=b"\0\0\0\0\1x")


@pytest.mark.parametrize(
    ("on", "status", "tried"),
    [
        (RetryOn.GRPC_UNAVAILABLE, 14, True),
        (RetryOn.GRPC_UNAVAILABLE, 13, False),
        (RetryOn.GRPC_INTERNAL, 13, True),
        (RetryOn.GRPC_CANCELLED, 1, True),
        (RetryOn.GRPC_DEADLINE_EXCEEDED, 4, True),
        (RetryOn.GRPC_RESOURCE_EXHAUSTED, 8, True),
        (RetryOn.SERVER_ERROR, 14, False),
    ],
)
@mesh_test
async def test_grpc_statuses_are_retried(on: RetryOn, status: int, tried: bool) -> None:
    two = {"v1": grpc(status), "v2": grpc(0, message=True)}
    retries = Retries(on=(on,))
    async with policy_mesh({}, http2=two, settings=TURNS, retries=retries) as m, client_of(m) as peer:
        response = await call(peer)
        assert response.get(b"grpc-status") == (b"0" if tried else b"%d" % status)


@mesh_test
async def test_failures_eject() -> None:
    settings = Settings(
        algorithm=Algorithm.ROUND_ROBIN, outliers=Outliers(consecutive_5xx=2, base_ejection_s=60)
    )
    two = {"v1": grpc(14), "v2": grpc(0, message=True)}
    async with policy_mesh({}, http2=two, settings=settings) as m, client_of(m) as peer:
        with trio.fail_after(10):
            while not m.cluster().outliers.ejected:
                await call(peer)
        assert {endpoint.workload for endpoint in m.cluster().outliers.ejected} == {"server-v1"}
        assert m.client.metric("triomesh_requests_total", code="grpc-14") >= 2


@mesh_test
async def test_errors_of_the_mesh_are_grpc_statuses() -> None:
    cases = (
        ({"endpoints": ()}, b"14", b"flag=UH"),
        (
            {"routes": (Route(to=(WeightedTarget(),), fault=Fault(abort=Abort(percent=100))),)},
            b"14",
            b"flag=FI",
        ),
        (
            {
                "routes": (
                    Route(to=(WeightedTarget(),), fault=Fault(abort=Abort(percent=100, grpc_status=5))),
                )
            },
            b"5",
            b"flag=FI",
        ),
        ({"settings": Settings(timeouts=Timeouts(request_s=0.05))}, b"4", b"flag=UT"),
    )
    for changes, status, flag in cases:
        gate = Gate()
        async with policy_mesh({}, http2={"v1": gate.handle}, **changes) as m, client_of(m) as peer:
            response = await call(peer)
            assert (response.status, response.get(b"grpc-status")) == (200, status)
            assert response.get(b"content-type") == b"application/grpc"
            assert said(response).startswith(flag)
            assert response.get(b"grpc-message")
            assert not response.body


@pytest.mark.parametrize(
    ("asked", "route_s", "least", "most"),
    [(b"10S", None, 10_000, 10_000), (b"10S", 2.0, 1_000, 2_000), (b"100m", 2.0, 50, 100)],
)
@mesh_test
async def test_the_deadline_that_goes_on(asked: bytes, route_s: float | None, least: int, most: int) -> None:
    seen: list[bytes] = []

    async def handle(stream: Http2Stream) -> None:
        seen.append(stream.get(b"grpc-timeout") or b"")
        await grpc(0)(stream)

    settings = Settings(timeouts=Timeouts(request_s=route_s))
    async with policy_mesh({}, http2={"v1": handle}, settings=settings) as m, client_of(m) as peer:
        await call(peer, (b"grpc-timeout", asked))
        unit = {b"S": 1000, b"m": 1}[seen[0][-1:]]
        assert least <= int(seen[0][:-1]) * unit <= most


@mesh_test
async def test_a_grpc_deadline_holds_and_a_malformed_one_does_not() -> None:
    gate = Gate()
    async with policy_mesh({}, http2={"v1": gate.handle}) as m, client_of(m) as peer:
        late = await call(peer, (b"grpc-timeout", b"50m"))
        assert late.get(b"grpc-status") == b"4"
        gate.go.set()
        for bad in (b"5", b"-1S", b"123456789S", b"1.5S", b"1s"):
            assert bytes((await call(peer, (b"grpc-timeout", bad))).body) == b"go"


@mesh_test
async def test_a_call_that_is_cut_ends_with_a_status() -> None:
    async def handle(stream: Http2Stream) -> None:
        await stream.respond(GRPC_HEAD, b"\0\0\0\0\1x", end=False)

    settings = Settings(timeouts=Timeouts(request_s=0.1))
    async with policy_mesh({}, http2={"v1": handle}, settings=settings) as m, client_of(m) as peer:
        response = await call(peer)
        assert bytes(response.body) == b"\0\0\0\0\1x"
        assert response.get(b"grpc-status") == b"4"
        assert (await m.record(path="/s/M"))["flag"] == "UT"
