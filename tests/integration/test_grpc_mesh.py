"""What the mesh adds to gRPC: balancing, deadlines, retries, errors, numbers; and connections that end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import grpc
import msgspec
import pytest

from mesh_api.sidecar import Protocol
from mesh_api.traffic import (
    Abort,
    Algorithm,
    Breaker,
    Fault,
    Outliers,
    Respond,
    Retries,
    RetryOn,
    Route,
    Settings,
    Timeouts,
    WeightedTarget,
)
from tests.support.grpc_mesh import CALL_S, MESHED, Scene, fails, over
from tests.support.mesh import Sidecar

MESH = pytest.mark.parametrize("path", MESHED)
CODE = grpc.StatusCode
ROUND_ROBIN = Settings(algorithm=Algorithm.ROUND_ROBIN)
TO_ALL = (WeightedTarget(),)


def fronts(scene: Scene) -> Sidecar:
    assert scene.front is not None
    return scene.front


@MESH
def test_calls_of_one_connection_are_balanced(path: str) -> None:
    def body(scene: Scene) -> None:
        for _ in range(20):
            scene.call("who")
        assert [server.count("who") for server in scene.servers] == [10, 10]
        assert scene.metric(fronts(scene), "triomesh_connections") == 1

    over(path, body, servers=2, settings=ROUND_ROBIN)


@MESH
def test_streams_stay_where_they_are_while_calls_are_balanced(path: str) -> None:
    def body(scene: Scene) -> None:
        done = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"3:"
            done.wait(CALL_S)
            yield b"4:"

        stream = scene.method("stream_stream", "ping_pong")(requests(), timeout=CALL_S)
        assert next(stream) == b"rrr"
        for _ in range(10):
            scene.call("who")
        done.set()
        assert next(stream) == b"rrrr"
        assert list(stream) == []
        assert sorted(server.count("ping_pong") for server in scene.servers) == [0, 1]
        assert sum(server.count("who") for server in scene.servers) == 10

    over(path, body, servers=2, settings=ROUND_ROBIN)


@MESH
def test_the_route_shortens_the_deadline(path: str) -> None:
    def body(scene: Scene) -> None:
        assert 0 < float(scene.call("remaining", timeout=9)) <= 2.1
        assert scene.method("unary_unary", "remaining")(b"", timeout=None) == b"none"
        assert 0 < float(scene.call("remaining", timeout=1)) <= 1.1

    over(path, body, routes=(Route(to=TO_ALL, timeout_s=2),))


@MESH
def test_the_route_s_deadline_ends_a_call(path: str) -> None:
    def body(scene: Scene) -> None:
        fails(CODE.DEADLINE_EXCEEDED, lambda: scene.call("sleep"))
        assert scene.server.cancelled.wait(CALL_S)
        front = fronts(scene)
        # Who ends it, the server by itself or the sidecar (UT), is a matter of milliseconds.
        labels = {"direction": "outbound", "code": "grpc-4"}
        scene.wait_until(lambda: scene.metric(front, "triomesh_requests_total", **labels) == 1)

    over(path, body, routes=(Route(to=TO_ALL, timeout_s=0.3),))


@MESH
def test_trailers_only_unavailable_is_tried_again_where_asked(path: str) -> None:
    def body(scene: Scene) -> None:
        scene.server.failures_left = 2
        assert scene.call("flaky", b"at last") == b"at last"
        assert scene.server.count("flaky") == 3
        assert scene.metric(fronts(scene), "triomesh_retries_total", result="tried") == 2

    over(path, body, retries=Retries(attempts=3, on=(RetryOn.GRPC_UNAVAILABLE,)))


@MESH
def test_a_status_is_not_tried_again_unasked(path: str) -> None:
    def body(scene: Scene) -> None:
        scene.server.failures_left = 1
        assert fails(CODE.UNAVAILABLE, lambda: scene.call("flaky")).details() == "not now"
        assert scene.server.count("flaky") == 1

    over(path, body, retries=Retries(attempts=3))


@MESH
def test_another_status_is_not_tried_again(path: str) -> None:
    def body(scene: Scene) -> None:
        fails(CODE.INTERNAL, lambda: scene.call("fail", b"INTERNAL x"))
        assert scene.server.count("fail") == 1

    over(path, body, retries=Retries(attempts=3, on=(RetryOn.GRPC_UNAVAILABLE,)))


@MESH
def test_a_server_that_is_gone_is_unavailable(path: str) -> None:
    def body(scene: Scene) -> None:
        error = fails(CODE.UNAVAILABLE, lambda: scene.call("echo"))
        assert error.details().startswith("UF"), error.details()

    over(path, body, gone=True, retries=Retries(attempts=0))


@MESH
def test_no_endpoint_is_unavailable(path: str) -> None:
    def body(scene: Scene) -> None:
        error = fails(CODE.UNAVAILABLE, lambda: scene.call("echo"))
        assert error.details().startswith("UH"), error.details()

    over(path, body, endpoints=())


@MESH
def test_a_breaker_that_is_open_is_unavailable(path: str) -> None:
    def body(scene: Scene) -> None:
        first = scene.method("unary_unary", "sleep").future(b"", timeout=CALL_S)
        scene.wait_until(lambda: scene.server.count("sleep"))
        error = fails(CODE.UNAVAILABLE, lambda: scene.call("echo"))
        assert error.details().startswith("UO"), error.details()
        first.cancel()

    over(path, body, settings=Settings(breaker=Breaker(max_requests=1)))


@MESH
def test_answers_of_routes(path: str) -> None:
    """HTTP's own errors as gRPC maps them, and a status by name."""
    routes = (
        Route(to=TO_ALL, fault=Fault(abort=Abort(percent=100, grpc_status=8))),
        Route(to=TO_ALL, fault=Fault(abort=Abort(percent=100, status=429))),
        Route(respond=Respond(status=403)),
        Route(respond=Respond(status=401)),
    )
    codes = (CODE.RESOURCE_EXHAUSTED, CODE.UNAVAILABLE, CODE.PERMISSION_DENIED, CODE.UNAUTHENTICATED)
    for route, code in zip(routes, codes, strict=True):

        def body(scene: Scene, code: grpc.StatusCode = code) -> None:
            fails(code, lambda: scene.call("echo"))
            assert not scene.server.calls

        over(path, body, routes=(route,))


@MESH
def test_status_counts_as_success_or_failure(path: str) -> None:
    def body(scene: Scene) -> None:
        front = fronts(scene)

        def counted(code: str) -> float:
            return scene.metric(front, "triomesh_requests_total", direction="outbound", code=code)

        for _ in range(3):
            scene.call("echo")
        assert list(scene.method("unary_stream", "spread")(b"1,2", timeout=CALL_S)) == [b"s", b"ss"]
        fails(CODE.INTERNAL, lambda: scene.call("fail", b"INTERNAL x"))
        fails(CODE.NOT_FOUND, lambda: scene.call("fail", b"NOT_FOUND x"))
        scene.wait_until(lambda: counted("200") == 4)
        assert (counted("grpc-13"), counted("grpc-5")) == (1, 1)
        if scene.back is not None:
            back = scene.back
            scene.wait_until(
                lambda: (
                    scene.metric(back, "triomesh_requests_total", direction="inbound", code="grpc-13") == 1
                )
            )

    over(path, body)


@MESH
def test_connections_that_the_server_ends_by_age_fail_no_call(path: str) -> None:
    """GOAWAY again and again: grpcio gives a connection half a second, and five times that to finish."""

    def body(scene: Scene) -> None:
        codes: Counter[str] = Counter()
        ended = threading.Event()

        def worker() -> None:
            method = scene.method("unary_unary", "echo")
            while not ended.is_set():
                try:
                    method(b"x", timeout=CALL_S)
                    codes["ok"] += 1
                except grpc.RpcError as exc:
                    codes[f"{exc.code()}: {exc.details()}"] += 1

        workers = [threading.Thread(target=worker) for _ in range(4)]
        for one in workers:
            one.start()
        ended.wait(1.5)
        ended.set()
        for one in workers:
            one.join()
        assert set(codes) == {"ok"}, codes
        assert codes["ok"] > 100
        assert scene.metric(fronts(scene), "triomesh_upstream_connections_opened_total") >= (
            2 if path in ("one sidecar", "undeclared") else 1
        )

    age = (("grpc.max_connection_age_ms", 500), ("grpc.max_connection_age_grace_ms", 2500))
    over(path, body, server_options=age)


@MESH
def test_a_stream_outlives_the_age_of_its_connection(path: str) -> None:
    def body(scene: Scene) -> None:
        more = threading.Semaphore(1)

        def requests() -> Iterator[bytes]:
            for number in range(4):
                assert more.acquire(timeout=CALL_S)
                yield b"%d:" % number

        got = []
        for response in scene.method("stream_stream", "ping_pong")(requests(), timeout=CALL_S):
            got.append(len(response))
            threading.Event().wait(0.4)
            more.release()
        assert got == [0, 1, 2, 3]

    age = (("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 20_000))
    over(path, body, server_options=age)


@MESH
def test_keepalive_pings_of_both_ends_are_tolerated(path: str) -> None:
    """An answer to each, and no GOAWAY with ENHANCE_YOUR_CALM."""
    often = (("grpc.keepalive_time_ms", 20), ("grpc.keepalive_timeout_ms", 5000))
    lenient = (("grpc.http2.max_pings_without_data", 0), ("grpc.keepalive_permit_without_calls", 1))

    def body(scene: Scene) -> None:
        with scene.connect(*often, *lenient) as channel:
            method = channel.unary_unary("/mesh.test.Tests/sleep")
            fails(CODE.DEADLINE_EXCEEDED, lambda: method(b"", timeout=1))
            assert channel.unary_unary("/mesh.test.Tests/echo")(b"x", timeout=CALL_S) == b"x"
        front = fronts(scene)
        assert scene.metric(front, "triomesh_requests_total", direction="outbound") == 2

    over(path, body, server_options=(*often, *lenient, ("grpc.http2.min_ping_interval_without_data_ms", 1)))


@MESH
def test_streams_go_on_through_new_configurations(path: str) -> None:
    def body(scene: Scene) -> None:
        front = fronts(scene)
        more = threading.Semaphore(1)

        def requests() -> Iterator[bytes]:
            for number in range(10):
                assert more.acquire(timeout=CALL_S)
                yield b"%d:" % number

        snapshot = front.app.store.snapshot
        assert snapshot is not None
        got = []
        for response in scene.method("stream_stream", "ping_pong")(requests(), timeout=CALL_S):
            got.append(len(response))
            (destination,) = snapshot.destinations
            settings = Settings(timeouts=Timeouts(connect_s=1.0 + len(got)))
            changed = msgspec.structs.replace(destination, settings=settings)
            scene.apply(front, msgspec.structs.replace(snapshot, destinations=(changed,)))
            more.release()
        assert got == list(range(10))

    over(path, body)


def test_a_server_s_sidecar_that_drains_fails_no_call() -> None:
    def body(scene: Scene) -> None:
        assert scene.back is not None
        codes: Counter[str] = Counter()

        def worker() -> None:
            for _ in range(200):
                try:
                    scene.call("echo")
                    codes["ok"] += 1
                except grpc.RpcError as exc:
                    codes[f"{exc.code()}: {exc.details()}"] += 1

        workers = [threading.Thread(target=worker) for _ in range(4)]
        for one in workers:
            one.start()
        scene.wait_until(lambda: codes["ok"] > 100)
        scene.drain(scene.back)
        for one in workers:
            one.join()
        assert codes == {"ok": 800}, codes

    outliers = Outliers(consecutive_local=0, consecutive_5xx=0)
    settings = Settings(algorithm=Algorithm.ROUND_ROBIN, outliers=outliers)
    over("two sidecars", body, servers=2, settings=settings)


def test_grpc_through_a_port_declared_as_http() -> None:
    def body(scene: Scene) -> None:
        assert scene.call("echo", b"x") == b"x"

    over("one sidecar", body, protocol=Protocol.HTTP)
