"""The statistics' commands: from the control plane's answer to what is printed."""

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from mesh_api.stats import Direction, EdgeTable, TappedRequest, Top
from meshctl import stats_options
from meshctl.commands import top as top_command
from meshctl.main import cli
from meshctl.render import table
from meshctl.stats_view import number, paint, percent, short_identity
from tests.support.stats_scene import scene

GOLDEN = Path(__file__).parents[2] / "golden" / "stats.txt"
SHOWN = (
    "stat",
    "stat deploy -o wide",
    "stat svc",
    "stat ns",
    "stat svc -o wide",
    "edges",
    "edges -o wide",
    "routes reviews -n bookshop",
    "routes reviews.bookshop -o wide",
    "graph",
    "graph -o dot",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The queries that were sent; the answer is the scene's."""
    queries: list[dict[str, str]] = []

    def ask(
        _kube: object, _home: str, page: str, kind: type, *, query: dict[str, str], **_: object
    ) -> object:
        assert (page, kind) == ("/stats", EdgeTable)
        queries.append(query)
        return scene()

    monkeypatch.setattr(stats_options, "ask", ask)
    monkeypatch.setattr(stats_options, "home", lambda _kube: "triomesh-system")
    monkeypatch.setattr("meshctl.context.connect", lambda *_: None)
    return queries


def meshctl(line: str) -> Result:
    done = CliRunner().invoke(cli, line.split(), prog_name="meshctl")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_what_is_shown(asked: list[dict[str, str]]) -> None:
    text = "\n".join(f"$ meshctl {line}\n{meshctl(line).output}" for line in SHOWN)
    if os.environ.get("TRIOMESH_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert asked[0] == {"window": "60"}


def test_the_docs_show_what_is_shown() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "stats.md").read_text()
    shown = re.findall(r"```\n\$ meshctl [^\n]*\n(.*?)```", docs, re.DOTALL)
    assert len(shown) == 2
    assert all(each in GOLDEN.read_text() for each in shown)


def test_the_window(asked: list[dict[str, str]]) -> None:
    assert meshctl("stat --window 5m").exit_code == 0
    assert asked == [{"window": "300"}]
    for wrong in ("1s", "11m"):
        assert "expected 10s to 10m" in meshctl(f"stat --window {wrong}").output
    assert "expected a time such as 90s or 2m, got 'soon'" in meshctl("edges --window soon").output


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("stat servic", "error: expected deploy, svc or ns, got 'servic'; did you mean service?\n"),
        (
            "stat deploy rev",
            "error: no traffic of deploy rev was counted in the last 60 s; "
            "did you mean reviews-v1 or reviews-v2?\n",
        ),
        (
            "stat svc zebra",
            "error: no traffic of svc zebra was counted in the last 60 s; there is of: mysql, reviews\n",
        ),
        (
            "routes reviws -n bookshop",
            "error: no traffic of Service reviws of namespace bookshop was counted in the last 60 s; "
            "did you mean reviews?\n",
        ),
        (
            "routes reviews",
            "error: no traffic of Service reviews of namespace default was counted in the last 60 s; "
            "there is of: none\n",
        ),
    ],
)
def test_errors_say_what_there_is(asked: list[dict[str, str]], line: str, error: str) -> None:
    done = meshctl(line)
    assert (done.exit_code, done.output) == (2, error)


def test_namespaces(asked: list[dict[str, str]]) -> None:
    assert meshctl("stat -n bookshop").output == meshctl("stat -A").output == meshctl("stat").output
    assert meshctl("edges -n nowhere").output == "no traffic was counted in the last 60 s\n"
    assert "expected -n or -A, got both" in meshctl("stat -n a -A").output


def test_for_programs(asked: list[dict[str, str]]) -> None:
    found = json.loads(meshctl("stat svc reviews -o json").output)
    assert (found["windowSeconds"], found["kind"]) == (60.0, "svc")
    (row,) = found["rows"]
    assert (row["namespace"], row["name"], row["port"]) == ("bookshop", "reviews", 9080)
    callers = row["callers"]
    assert callers["rps"] == pytest.approx(100.4, abs=0.1)
    assert callers["success"] == pytest.approx(1 - 3 / 502, abs=1e-6)
    assert callers["actualSuccess"] == pytest.approx(1 - 9 / 508, abs=1e-6)
    assert (callers["overflows"], callers["ejections"], callers["mtls"]) == (24, 12, 1.0)
    assert callers["tcpOpen"] is None
    edges = yaml.safe_load(meshctl("edges -o yaml").output)["edges"]
    to_mysql = next(edge for edge in edges if edge["destination"] == "mysql.bookshop")
    assert (to_mysql["kind"], to_mysql["tcpOpen"], to_mysql["services"]) == (
        "tcp",
        4,
        ["mysql.bookshop:3306"],
    )
    assert to_mysql["identities"] == ["spiffe://cluster.local/ns/bookshop/sa/mysql"]
    routes = json.loads(meshctl("routes reviews -n bookshop -o json").output)["routes"]
    assert {route["subset"]: round(route["share"], 3) for route in routes} == {
        "": 0.004,
        "v1": 0.896,
        "v2": 0.1,
    }
    graph = json.loads(meshctl("graph -o json").output)
    assert {node["id"] for node in graph["nodes"]} == {
        end for edge in graph["edges"] for end in (edge["source"], edge["destination"])
    }


def test_the_graph_is_in_the_language_of_graphviz(asked: list[dict[str, str]]) -> None:
    # The subset of the DOT grammar that is used: graph '{' statements ';' '}'; IDs quoted or alphanumeric.
    name = r'(?:"(?:[^"\\]|\\.)*"|[A-Za-z_]\w*)'
    attributes = rf"\[{name}={name}(?:, {name}={name})*\]"
    statement = rf"\s*(?:{name}={name}|node {attributes}|({name}) -> ({name}) {attributes});\n"
    text = meshctl("graph -o dot").output
    assert re.fullmatch(rf"digraph {name} \{{\n(?:{statement})+\}}\n", text)
    ends = re.findall(rf"({name}) -> ({name}) ", text)
    assert ('"web.bookshop"', '"mysql.bookshop"') in ends


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, str]]) -> None:
    partial = msgspec.structs.replace(scene(), replicas=3, answered=2, dropped=7)
    monkeypatch.setattr(stats_options, "ask", lambda *_, **__: partial)
    done = meshctl("graph")
    assert done.stderr == (
        "only 2 of 3 replicas of the control plane answered; 7 edges found no room and are not counted\n"
    )


def test_watching_ends_with_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, str]]
) -> None:
    class Pause:
        def wait(self, seconds: float) -> None:
            if len(asked) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(stats_options.threading, "Event", Pause)
    done = meshctl("stat ns --watch")
    assert done.exit_code == 0
    assert len(asked) == 3
    assert done.output.count("NAMESPACE") == 3


def test_colours() -> None:
    shown = table(("NAME", "SUCCESS %", "mTLS %"), [("a", "94.00", "-"), ("b", "98.00", "99.00")], paint)
    first, second = shown.splitlines()[1:]
    assert "\x1b[31m94.00" in first
    assert "\x1b[33m98.00" in second
    assert "\x1b[33m99.00" in second
    plain = table(("NAME", "SUCCESS %", "mTLS %"), [("a", "94.00", "-"), ("b", "98.00", "99.00")])
    assert re.sub(r"\x1b\[\d+m", "", shown) == plain


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (1.0, "100.00"), (0.999999, "99.99"), (0.0, "0.00"), (0.00001, "0.01"), (0.98765, "98.77")],
)
def test_a_share(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0.00"), (9.994, "9.99"), (10, "10.0"), (1234.5, "1234")]
)
def test_a_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_an_identity_in_short() -> None:
    assert short_identity("spiffe://cluster.local/ns/shop/sa/web") == "shop/web"
    assert short_identity("spiffe://cluster.local/else") == "spiffe://cluster.local/else"


def test_live_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, str]]] = []
    requests = tuple(
        TappedRequest(
            Direction.INBOUND, "web.shop", "reviews.shop", "GET", f"/{'x' * 80}{i}", 4, 1, 0.5, 20, 3
        )
        for i in range(3)
    )
    answer = Top(2.0, 2, 2, 5, 1, ("reviews.shop",), requests, 9)

    def ask(
        _kube: object, _home: str, page: str, _kind: type, *, query: dict[str, str], read_s: float
    ) -> Top:
        assert read_s > 2.0
        sent.append((page, query))
        return answer

    monkeypatch.setattr(top_command, "ask", ask)
    monkeypatch.setattr(top_command, "home", lambda _kube: "triomesh-system")
    monkeypatch.setattr("meshctl.context.connect", lambda *_: None)
    done = meshctl("top reviews -n shop --seconds 2s --max 2")
    assert sent == [("/top", {"seconds": "2", "namespace": "shop", "workload": "reviews"})]
    heading, first, _ = done.stdout.splitlines()
    assert heading.split("   ")[0] == "SOURCE"
    assert first.split() == [
        *("web.shop", "reviews.shop", "GET", "/" + "x" * 56 + "..."),
        *("4", "0.50", "20.0", "3.00", "75.00"),
    ]
    assert done.stderr.splitlines() == [
        "1 of 5 sidecars did not answer",
        "9 requests found no room",
        "1 more lines; --max shows them",
    ]
    assert json.loads(meshctl("top -o json --seconds 2s").stdout)["requests"][0]["bestMs"] == 0.5
    assert "expected 1s to 30s" in meshctl("top --seconds 31s").output
