"""The statistics' pages by hand: several replicas, sidecars that do not answer, wrong parameters."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from mesh_api.discovery import Page, Report
from mesh_api.stats import Direction, Edge, EdgeKind, EdgeTable, Tapped, TappedRequest, Top, WindowPart
from mesh_control.serve.admin import AdminPages, Call, Refused
from mesh_control.serve.admin_replicas import Gathered
from mesh_control.serve.discovery_asks import AskFailed
from mesh_control.serve.stats_pages import MAX_TAPPED, StatsPages
from mesh_control.serve.subscriptions import PodRef
from mesh_control.stats.window import Window
from tests.support.stats_scene import at_once

NOW = 1_700_000_000.0


class Discovery:
    """Sidecars that answer what is given here; None: not at all."""

    def __init__(self, answers: dict[str, Tapped | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.take: Any = None

    @property
    def sidecars(self) -> list[PodRef]:
        return [PodRef("shop", name) for name in self.answers]

    def subscribe_reports(self, callback: Any) -> None:
        self.take = callback

    async def ask(self, pod: PodRef, page: Page, arguments: dict[str, str]) -> bytes:
        assert (page, arguments) == (Page.TAP, {"seconds": "3"})
        self.asked.append(pod.name)
        await trio.sleep(3)
        answer = self.answers[pod.name]
        if answer is None:
            raise AskFailed(504, "no answer")
        return msgspec.json.encode(answer)


class Fleet:
    """Other replicas, of which some answer."""

    def __init__(self, replicas: int = 1, answers: tuple[object, ...] = ()) -> None:
        self.found = Gathered(replicas, 1 + len(answers), list(answers))

    async def gather(self, call: Call, kind: type, within_s: float = 6.0) -> Gathered[Any]:
        assert all(isinstance(answer, kind) for answer in self.found.answers)
        await trio.sleep(1)
        return self.found


def pages(discovery: Discovery, fleet: Fleet | None = None) -> AdminPages:
    pods = [
        SimpleNamespace(
            key=PodRef("shop", name),
            namespace="shop",
            workload=name.partition("-")[0],
            ips=(f"10.0.0.{i}",),
            injected=True,
        )
        for i, name in enumerate(discovery.answers)
    ]
    found = AdminPages()
    StatsPages(discovery, fleet or Fleet(), lambda: pods, lambda: NOW).add_to(found)  # type: ignore[arg-type, return-value]
    return found


def get(of: AdminPages, path: str, kind: type, *, local: bool = False, **query: str) -> Any:
    async def main() -> bytes:
        handler, _ = of.find("GET", path)
        return await handler(Call("GET", path, {}, query, local))

    body = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return msgspec.json.decode(body, type=kind)


def seen(source: str, count: int, direction: Direction = Direction.INBOUND) -> TappedRequest:
    return TappedRequest(direction, source, "web.shop", "GET", "/", count, 0, 1.0, 2.0, 1.5)


def edge(requests: int) -> Edge:
    return Edge(Direction.OUTBOUND, EdgeKind.HTTP, "web.shop:80", requests=requests)


def test_replicas_that_answer_are_added_up() -> None:
    other = Window()
    other.add(("shop", "b-1"), "b", Report(5.0, (edge(7),)), NOW)
    discovery = Discovery({"a-1": Tapped(3.0)})
    found = pages(discovery, Fleet(3, (at_once(other.part(60, NOW)), WindowPart(7, 1))))
    discovery.take(PodRef("shop", "a-1"), "spiffe://x", "a", Report(5.0, (edge(5),)))
    table = get(found, "/stats", EdgeTable)
    assert {(row.workload, row.edge.requests) for row in table.rows} == {("a", 5), ("b", 7)}
    assert (table.replicas, table.answered) == (3, 2)  # one speaks of other buckets
    mine = get(found, "/stats", WindowPart, local=True)
    assert [each.workload for each in mine.edges] == ["a"]


def test_a_sidecar_that_has_gone_has_nothing_open() -> None:
    discovery = Discovery({"a-1": Tapped(3.0)})
    found = pages(discovery)
    report = Report(5.0, (msgspec.structs.replace(edge(0), kind=EdgeKind.TCP, open=3),))
    discovery.take(PodRef("shop", "a-1"), "spiffe://x", "a", report)
    assert get(found, "/stats", EdgeTable).rows[0].edge.open == 3
    discovery.answers.clear()
    assert get(found, "/stats", EdgeTable).rows[0].edge.open == 0


@pytest.mark.parametrize(
    ("path", "query", "error"),
    [
        ("/stats", {"window": "9"}, "window: expected 10 to 600 seconds, got '9'"),
        ("/stats", {"window": "nan"}, "window: expected 10 to 600 seconds, got 'nan'"),
        ("/top", {"seconds": "31"}, "seconds: expected 1 to 30 seconds, got '31'"),
        ("/top", {"namespace": "other"}, "no sidecar in namespace other is connected"),
        ("/top", {"workload": "wab"}, "no sidecar of workload wab is connected; did you mean web"),
        ("/top", {"workload": "x"}, "no sidecar of workload x is connected$"),
    ],
)
def test_wrong_parameters(path: str, query: dict[str, str], error: str) -> None:
    with pytest.raises(Refused, match=error):
        get(pages(Discovery({"web-1": Tapped(3.0)})), path, Top, **query)


def test_live_requests_of_sidecars_and_replicas() -> None:
    discovery = Discovery(
        {
            "api-1": Tapped(3.0),
            "web-1": Tapped(3.0, (seen("10.0.0.0", 2), seen("192.168.0.1", 1)), 4),
            "web-2": None,
        }
    )
    elsewhere = Top(3.0, 1, 1, 1, 0, ("web.shop",), (seen("api.shop", 5),))
    top = get(pages(discovery, Fleet(2, (elsewhere,))), "/top", Top, workload="web")
    assert sorted(discovery.asked) == ["web-1", "web-2"]
    assert [(each.source, each.count) for each in top.requests] == [("api.shop", 7), ("192.168.0.1", 1)]
    assert (top.replicas, top.answered, top.sidecars, top.failed, top.dropped) == (2, 2, 3, 1, 4)


def test_sidecars_that_are_watched_are_bounded() -> None:
    discovery = Discovery({f"web-{i}": Tapped(3.0) for i in range(MAX_TAPPED + 3)})
    top = get(pages(discovery), "/top", Top, local=True)
    assert len(discovery.asked) == MAX_TAPPED
    assert (top.sidecars, top.failed) == (MAX_TAPPED + 3, 3)
