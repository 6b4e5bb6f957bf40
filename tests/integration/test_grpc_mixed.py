"""gRPC calls of every kind at once, through two sidecars: each is answered rightly, nothing is left over."""

from __future__ import annotations

import random
import threading

import grpc
import pytest

from tests.support.grpc_mesh import CALL_S, Scene, over


class Mixed:
    """One client's calls of every kind, in an order and of sizes that its seed says, each checked."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._rng = random.Random(seed)
        self.problems: list[str] = []

    def run(self, calls: int) -> None:
        kinds = (self._echo, self._sized, self._ping_pong, self._collect, self._cancelled, self._late)
        for _ in range(calls):
            kind = self._rng.choice(kinds)
            try:
                if not kind():
                    self.problems.append(f"{kind.__name__}: wrong answer")
            except grpc.RpcError as exc:
                self.problems.append(f"{kind.__name__}: {exc.code()}: {exc.details()}")

    def _size(self) -> int:
        return int(self._rng.expovariate(1 / 100_000))

    def _echo(self) -> bool:
        data = self._rng.randbytes(self._size())
        return self._scene.call("echo", data) == data

    def _sized(self) -> bool:
        size = self._size()
        return len(self._scene.call("sized", b"%d:" % size)) == size

    def _ping_pong(self) -> bool:
        sizes = [self._rng.randrange(50_000) for _ in range(5)]
        requests = (b"%d:" % size + b"q" * size for size in sizes)
        responses = self._scene.method("stream_stream", "ping_pong")(requests, timeout=CALL_S)
        return [len(response) for response in responses] == sizes

    def _collect(self) -> bool:
        sizes = [self._rng.randrange(90_000) for _ in range(8)]
        collect = self._scene.method("stream_unary", "collect")
        return int(collect((b"c" * size for size in sizes), timeout=CALL_S)) == sum(sizes)

    def _cancelled(self) -> bool:
        call = self._scene.method("unary_unary", "sized").future(b"%d:" % (self._size() * 10), timeout=CALL_S)
        threading.Event().wait(self._rng.random() / 100)
        call.cancel()
        return True

    def _late(self) -> bool:
        try:
            self._scene.call("sized", b"%d:" % (self._size() * 10), timeout=self._rng.random() / 20)
        except grpc.RpcError as exc:
            return exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return True


@pytest.mark.parametrize("path", ["two sidecars", "two on hyper"])
def test_everything_at_once_and_nothing_left_over(path: str) -> None:
    def body(scene: Scene) -> None:
        clients = [Mixed(scene, seed) for seed in range(8)]
        threads = [threading.Thread(target=client.run, args=(30,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [problem for client in clients for problem in client.problems] == []
        assert scene.front is not None
        runtime = scene.front.app.runtime
        endpoints = [one for service in runtime.services.all() for one in service.endpoints()]
        scene.wait_until(lambda: not any(one.inflight for one in endpoints))
        scene.wait_until(lambda: runtime.http2.budget.used == 0)

    over(path, body, servers=2)
