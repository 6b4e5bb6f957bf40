"""What a hostile sidecar, or somebody who can only reach a port, does to the control plane's pages."""

import base64
import json

import msgspec
import pytest
import trio
import trio.testing

from mesh_api.admin import ADMIN_AUDIENCE
from mesh_api.discovery import MAX_EDGES, Report, decode_from_sidecar, encode_message
from mesh_api.edge_sums import Sums, key_of
from mesh_api.stats import (
    LATENCY_BUCKETS_S,
    MAX_COUNT,
    Direction,
    Edge,
    EdgeKind,
    EdgeTable,
    Tapped,
    TappedRequest,
    Top,
)
from mesh_control.kube.reviews import Reviewed
from mesh_control.serve import admin_auth
from mesh_control.serve.admin_auth import AdminAuthenticator, Denied, Rights
from mesh_control.serve.ca_review import token_end
from mesh_control.serve.stats_pages import MAX_TAP_BYTES, _named, _read
from mesh_control.serve.validate import Validator
from mesh_control.stats.merge import merge, merge_top
from mesh_control.stats.window import GONE_S, MAX_KEY_CHARS, Window
from tests.support.stats_scene import at_once

NOW = 1_700_000_000.0
POD = ("shop", "web-1")


def edge(**fields: object) -> Edge:
    return Edge(Direction.OUTBOUND, EdgeKind.HTTP, **fields)  # type: ignore[arg-type]


def table(window: Window) -> EdgeTable:
    return at_once(merge([at_once(window.part(60, NOW))], 60, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        edge(latency_sum_s=float("nan")),
        edge(latency_sum_s=float("inf")),
        edge(latency_sum_s=-1.0),
        edge(requests=-1),
        edge(requests=2**63),
        edge(latencies={-1: 1}),
        edge(latencies={1: -1}),
        edge(workload="x" * 641),
    ],
)
def test_numbers_and_names_that_cannot_be_end_at_the_door(wrong: Edge) -> None:
    with pytest.raises(ValueError, match="expected a message of a sidecar: Expected"):
        decode_from_sidecar(encode_message(Report(5.0, (wrong,))))
    for dropped in (-1, 2**63):
        with pytest.raises(ValueError, match="dropped"):
            decode_from_sidecar(encode_message(Report(5.0, dropped=dropped)))


def test_sums_beyond_what_can_be_said_are_still_an_answer() -> None:
    window = Window()
    full = edge(
        workload="reviews", requests=MAX_COUNT, latency_sum_s=float(MAX_COUNT), latencies={1: MAX_COUNT}
    )
    for _ in range(3):
        window.add(POD, "web", Report(5.0, (full,) * 3, dropped=MAX_COUNT), NOW)
    found = msgspec.json.decode(msgspec.json.encode(table(window)), type=EdgeTable)
    assert found.rows[0].edge == full
    assert found.dropped == 3 * MAX_EDGES
    once = TappedRequest(Direction.INBOUND, "a", "b", "GET", "/", MAX_COUNT, MAX_COUNT, 1, 1, 1)
    top = merge_top([Top(3.0, 1, 1, requests=(once,), dropped=MAX_COUNT)] * 2, 2, 10)
    read = msgspec.json.decode(msgspec.json.encode(top), type=Top)
    assert (read.requests[0].count, read.dropped) == (MAX_COUNT, MAX_COUNT)


@pytest.mark.parametrize("name", ["\x1b[31m", "reviews\u202e", "caf\u00e9", "a\nb"])
def test_names_that_nobody_can_have_are_left_out(name: str) -> None:
    window = Window()
    window.add(POD, "web", Report(5.0, (edge(workload=name, open=1), edge(workload="reviews"))), NOW)
    assert [row.edge.workload for row in table(window).rows] == ["reviews"]
    assert window.dropped == 1


def test_long_names_cost_no_memory() -> None:
    window = Window()
    long = "x" * (MAX_KEY_CHARS // 2)
    window.add(POD, "web", Report(5.0, (edge(workload=long, identity=long, service="x"),)), NOW)
    assert (window.rows, window.dropped) == (0, 1)


def test_a_sidecar_that_makes_edges_up_crowds_out_nobody() -> None:
    window = Window(max_cells=400)
    for number in range(100):
        window.add((f"ns-{number}", "web-1"), "web", Report(5.0, (edge(workload="reviews"),)), NOW)
    for number in range(40):
        made_up = tuple(edge(workload=f"no-{number}-{i}") for i in range(50))
        window.add(("shop", "evil-1"), "evil", Report(5.0, made_up), NOW + number / 10)
    owners = [row.workload for row in table(window).rows]
    assert owners.count("web") >= 50
    assert owners.count("evil") >= 50
    assert window.cells <= 400
    assert sum(held.cells for held in window._held.values()) == window.cells
    window.add(POD, "web", Report(5.0), NOW + 2000)
    assert (window.cells, window._held) == (0, {})


def test_silent_sidecars_are_forgotten_oldest_first() -> None:
    window = Window()
    for number in range(3):
        window.add(("shop", f"web-{number}"), "web", Report(5.0, (edge(open=1),)), NOW + number)
    window.add(("shop", "web-0"), "web", Report(5.0), NOW + GONE_S + 1.5)
    assert sorted(window._sidecars) == [("shop", "web-0"), ("shop", "web-2")]
    assert window._open == 1


def test_a_sum_of_edges_is_an_edge() -> None:
    sums = Sums()
    for _ in range(2):
        sums.add(edge(sent=MAX_COUNT, latencies={99: 1}))
    found = sums.edge(key_of(edge()))
    assert (found.sent, found.latencies) == (MAX_COUNT, {len(LATENCY_BUCKETS_S): 2})
    assert msgspec.convert(msgspec.to_builtins(found), Edge) == found


# -- live requests ------------------------------------------------------------------------------------------


def tapped(direction: Direction, **fields: object) -> TappedRequest:
    given = {"source": "10.0.0.1", "destination": "db.bank", "method": "GET", "path": "/", **fields}
    return TappedRequest(direction, *given.values(), 1, 0, 1.0, 1.0, 1.0)  # type: ignore[arg-type, call-arg]


def test_a_sidecar_speaks_for_its_own_workload_only() -> None:
    lie = tapped(Direction.OUTBOUND, source="payments.bank", path="/\x1b]0;x\x07", method="G\u202eT")
    told = _named(lie, "evil.shop", {})
    assert (told.source, told.destination) == ("evil.shop", "db.bank")
    assert (told.path, told.method) == ("/\\x1b]0;x\\x07", "G\\u202eT")
    told = _named(tapped(Direction.INBOUND), "evil.shop", {"10.0.0.1": "web.shop"})
    assert (told.source, told.destination) == ("web.shop", "evil.shop")


@pytest.mark.parametrize(
    "answer",
    [
        b'"\xff"',
        b'{"seconds":3,"requests":' + b"[" * 3000,
        b"{" + b'"a":{' * 3000,
        b'{"seconds":3,"requests":[],"dropped":-1}',
        b" " * (MAX_TAP_BYTES + 1),
        msgspec.json.encode(Tapped(3.0, (tapped(Direction.INBOUND),))).replace(b'"count":1', b'"count":-1'),
    ],
)
def test_an_answer_that_is_none_is_a_sidecar_that_failed(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        _read(answer)


# -- tokens and reviews -------------------------------------------------------------------------------------


def test_tokens_of_nobody_push_out_no_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_auth, "REMEMBERED", 3)
    viewer = Reviewed("system:serviceaccount:home:triomesh-viewer", (ADMIN_AUDIENCE,))
    asked: list[str] = []

    async def review(token: str) -> Reviewed:
        asked.append(token)
        await trio.lowlevel.checkpoint()
        return viewer if token == "good" else Reviewed(error="no")

    async def main() -> None:
        auth = AdminAuthenticator("home", review, lambda: 1000.0)
        await auth.check("good", Rights.READ)
        for number in range(10):
            with pytest.raises(Denied):
                await auth.check(f"bad-{number}", Rights.READ)
        await auth.check("good", Rights.READ)

    trio.run(main)
    assert asked.count("good") == 1


def test_claims_of_any_depth_are_no_defect() -> None:
    claims = b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"
    token = f"x.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.x"
    assert token_end(token) == 0.0


def test_kinds_of_nobody_make_no_metrics() -> None:
    validator = Validator()
    for number in range(100):
        request = {
            "uid": "u",
            "kind": {"group": "g", "version": "v", "kind": f"Made{number}"},
            "operation": "CREATE",
            "object": {},
        }
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        validator.answer(json.dumps(review).encode())
    assert dict(validator.decisions) == {("other", "denied"): 100}
