"""The admin pages of the statistics: what all sidecars have counted, and what is requested just now."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
import trio

from certs.clock import WallClock, wall_clock
from mesh_api.discovery import ASK_S, Page, Report
from mesh_api.stats import Direction, Tapped, TappedRequest, Top, WindowPart
from mesh_control.index.objects import Pod
from mesh_control.serve.admin import AdminPages, Call, Refused
from mesh_control.serve.admin_replicas import ASK_REPLICA_S, Fleet
from mesh_control.serve.discovery import DiscoveryServer
from mesh_control.serve.discovery_asks import AskFailed
from mesh_control.serve.metrics import Metrics
from mesh_control.serve.subscriptions import PodRef
from mesh_control.stats.merge import merge, merge_top
from mesh_control.stats.steps import Steps
from mesh_control.stats.window import MAX_WINDOW_S, Window
from mesh_ops.printable import clean

MIN_WINDOW_S, WINDOW_S = 10.0, 60.0
TOP_S, MAX_TOP_S = 3.0, 30.0
MAX_TAPPED = 50
"""Sidecars that each replica watches at once."""
MAX_REQUESTS = 1000
"""Lines of an answer about live requests."""
MAX_TAP_BYTES = 1024 * 1024
MAX_OF_ONE = 500
"""Lines that one sidecar may add to it."""
MAX_NAME_CHARS = 320
T = TypeVar("T")


class StatsPages:
    """Takes the reports of sidecars, and answers from them."""

    def __init__(
        self,
        discovery: DiscoveryServer,
        fleet: Fleet,
        pods: Callable[[], Collection[Pod]],
        wall: WallClock = wall_clock,
    ) -> None:
        """`pods` gives every pod of the cluster; may raise Refused while that is not known."""
        self.window = Window()
        self._discovery = discovery
        self._fleet = fleet
        self._pods = pods
        self._wall = wall
        discovery.subscribe_reports(self._take)

    def add_to(self, pages: AdminPages) -> None:
        """Add them all."""
        pages.add("GET", "/stats", self._stats)
        pages.add("GET", "/top", self._top)

    def declare(self, metrics: Metrics) -> None:
        """Add their metrics."""
        window = self.window
        metrics.counter("reports_total", "Reports of sidecars about their edges.", lambda: window.reports)
        metrics.gauge("edges", "Edges that are known of the last minutes.", lambda: window.rows)
        metrics.counter(
            "edges_dropped_total", "Edges that found no room, in a sidecar or here.", lambda: window.dropped
        )

    def _take(self, pod: PodRef, _identity: str, workload: str, report: Report) -> None:
        self.window.add(pod, workload, report, self._wall())

    async def _stats(self, call: Call) -> bytes:
        window_s = _seconds(call, "window", WINDOW_S, MIN_WINDOW_S, MAX_WINDOW_S)
        self.window.keep(self._discovery.sidecars)
        mine = await _in_steps(self.window.part(window_s, self._wall()))
        if call.local:
            return msgspec.json.encode(mine)
        rest = await self._fleet.gather(call, WindowPart)
        parts = [mine, *(part for part in rest.answers if part.bucket_s == mine.bucket_s)]
        return msgspec.json.encode(await _in_steps(merge(parts, window_s, rest.replicas)))

    async def _top(self, call: Call) -> bytes:
        seconds = _seconds(call, "seconds", TOP_S, 1.0, MAX_TOP_S)
        namespace, workload = call.query.get("namespace", ""), call.query.get("workload", "")
        pods = {pod.key: pod for pod in self._pods()}
        wanted = [
            pod
            for ref in sorted(self._discovery.sidecars)
            if (pod := pods.get(ref)) is not None
            and namespace in ("", pod.namespace)
            and workload in ("", pod.workload)
        ]
        if call.local:
            return msgspec.json.encode(await self._watch(wanted, seconds))
        found: list[Top] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                found.append(await self._watch(wanted, seconds))

            nursery.start_soon(watch)
            rest = await self._fleet.gather(call, Top, seconds + ASK_REPLICA_S)
        top = merge_top([*found, *rest.answers], rest.replicas, MAX_REQUESTS)
        if not top.sidecars:
            raise Refused(404, _nobody(namespace, workload, pods.values()))
        return msgspec.json.encode(top)

    async def _watch(self, pods: list[Pod], seconds: float) -> Top:
        """What the sidecars of these pods see, as far as they answer."""
        names = {ip: f"{pod.workload}.{pod.namespace}" for pod in self._pods() for ip in pod.ips}
        asked = pods[:MAX_TAPPED]
        requests: list[TappedRequest] = []
        failed = dropped = 0

        async def ask(pod: Pod) -> None:
            nonlocal failed, dropped
            try:
                with trio.fail_after(seconds + ASK_S):
                    answer = await self._discovery.ask(
                        PodRef(*pod.key), Page.TAP, {"seconds": f"{seconds:g}"}
                    )
                tapped = _read(answer)
            except (AskFailed, ValueError, trio.TooSlowError):
                failed += 1
                return
            own = f"{pod.workload}.{pod.namespace}"
            requests.extend(_named(each, own, names) for each in tapped.requests[:MAX_OF_ONE])
            dropped += tapped.dropped + max(0, len(tapped.requests) - MAX_OF_ONE)

        async with trio.open_nursery() as nursery:
            for pod in asked:
                nursery.start_soon(ask, pod)
        watched = tuple(sorted({f"{pod.workload}.{pod.namespace}" for pod in asked}))
        return Top(
            seconds, 1, 1, len(pods), failed + len(pods) - len(asked), watched, tuple(requests), dropped
        )


async def _in_steps(steps: Steps[T]) -> T:
    """Do long work while sidecars are served."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await trio.lowlevel.checkpoint()


def _read(answer: bytes) -> Tapped:
    """A sidecar's answer. Raises ValueError for what is none."""
    if len(answer) > MAX_TAP_BYTES:
        raise ValueError(f"expected at most {MAX_TAP_BYTES} bytes")
    try:
        return msgspec.json.decode(answer, type=Tapped)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from None


def _named(each: TappedRequest, own: str, names: dict[str, str]) -> TappedRequest:
    """A request of workload `own`, whatever its sidecar calls itself; a caller by its workload, where the
    address is a pod's. What is shown is printable, whatever the sidecar says.
    """
    if each.direction is Direction.INBOUND:
        source, destination = names.get(each.source, each.source), own
    else:
        source, destination = own, each.destination
    return msgspec.structs.replace(
        each,
        source=clean(source, MAX_NAME_CHARS),
        destination=clean(destination, MAX_NAME_CHARS),
        method=clean(each.method, MAX_NAME_CHARS),
        path=clean(each.path, MAX_NAME_CHARS),
    )


def _seconds(call: Call, name: str, default: float, least: float, most: float) -> float:
    text = call.query.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not least <= seconds <= most:
        raise Refused(400, f"{name}: expected {least:g} to {most:g} seconds, got {text[:40]!r}")
    return seconds


def _nobody(namespace: str, workload: str, pods: Collection[Pod]) -> str:
    """What to say where no sidecar is wanted."""
    there = {pod.workload for pod in pods if pod.injected and namespace in ("", pod.namespace)}
    where = f" in namespace {namespace}" if namespace else ""
    if not workload:
        return f"no sidecar{where} is connected"
    close = difflib.get_close_matches(workload, there, 1)
    hint = f"; did you mean {close[0]}?" if close and close[0] != workload else ""
    return f"no sidecar of workload {workload}{where} is connected{hint}"
