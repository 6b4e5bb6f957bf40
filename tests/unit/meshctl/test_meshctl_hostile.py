"""What `meshctl` prints of a control plane, or of sidecars, that mean harm; and of one that is older."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from mesh_api.admin import (
    NO_PAGE,
    AdminError,
    Certificate,
    ControlVersion,
    Listener,
    SidecarConfig,
    SidecarList,
    SidecarState,
    SyncState,
)
from mesh_api.sidecar import Destination, Pod
from mesh_api.stats import Direction, Edge, EdgeKind, EdgeRow, EdgeTable, TappedRequest, Top
from mesh_api.traffic import Route, WeightedTarget
from meshctl import admin, apply
from meshctl.kube import Answer
from meshctl.main import cli

EVIL = "\x1b]0;owned\x07\x9b31m\u202e\r"


def _state() -> SidecarState:
    return SidecarState(EVIL, EVIL, EVIL, EVIL, EVIL, SyncState.REJECTED, 1, 1.0, EVIL, (), EVIL)


def _rows() -> tuple[EdgeRow, ...]:
    out = Edge(
        Direction.OUTBOUND,
        EdgeKind.HTTP,
        f"reviews.shop:{EVIL}",
        EVIL,
        EVIL,
        "shop",
        EVIL,
        EVIL,
        requests=3,
        attempts=3,
    )
    back = Edge(Direction.INBOUND, EdgeKind.HTTP, identity=EVIL, requests=3)
    routed = msgspec.structs.replace(out, service="reviews.shop:80")
    return tuple(EdgeRow("shop", EVIL, 1, 5.0, edge) for edge in (out, back, routed))


def _config() -> SidecarConfig:
    dest = Destination(
        name=EVIL,
        namespace=EVIL,
        port=80,
        addresses=(EVIL,),
        routes=(Route(name=EVIL, to=(WeightedTarget(subset=EVIL),)),),
    )
    return SidecarConfig(
        EVIL,
        EVIL,
        destinations=(dest,),
        pods=(Pod(name=EVIL, namespace=EVIL, addresses=(EVIL,), identity=EVIL),),
        listeners=(Listener(EVIL, 1, EVIL),),
        certificates=(Certificate(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL),),
    )


_TAPPED = TappedRequest(Direction.INBOUND, EVIL, EVIL, EVIL, EVIL, 1, 0, 1.0, 1.0, 1.0)
ANSWERS: Mapping[str, object] = {
    "/version": ControlVersion(EVIL, EVIL, EVIL),
    "/sidecars": SidecarList(1, 1, (_state(),)),
    "/stats": EdgeTable(60.0, 1, 1, _rows()),
    "/top": Top(3.0, 1, 1, 1, 0, (EVIL,), (_TAPPED,)),
    "/config": _config(),
}


class Kube:
    """An API server that passes on what is given here."""

    host = "test"

    def __init__(self, status: int, body: bytes | None) -> None:
        self.status = status
        self.body = body

    def token_of(self, *_: str) -> str:
        return "token"

    def send(self, _method: str, path: str, *_: Any, **__: Any) -> Answer:
        page = next(name for name in ANSWERS if path.endswith(name))
        body = msgspec.json.encode(ANSWERS[page]) if self.body is None else self.body
        return Answer(self.status, {}, body)


def meshctl(
    monkeypatch: pytest.MonkeyPatch, line: str, status: int = 200, body: bytes | None = None
) -> Result:
    monkeypatch.setattr("meshctl.context.connect", lambda *_: Kube(status, body))
    monkeypatch.setattr(apply, "existing", lambda _kube: type("There", (), {"namespace": "home"}))
    # As on a terminal: click leaves colours and escape sequences alone.
    done = CliRunner().invoke(cli, line.split(), prog_name="meshctl", color=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


COMMANDS = (
    *("proxy-status", "proxy-config web", "stat", "stat svc", "stat ns -o wide", "edges -o wide", "top"),
    *("graph", "graph -o dot", "routes reviews -n shop"),
    *(
        f"{command} -o {form}"
        for command in ("proxy-status", "proxy-config web", "top")
        for form in ("json", "yaml")
    ),
    *(f"{command} -o {form}" for command in ("stat", "stat svc", "edges") for form in ("json", "yaml")),
    "graph -o json",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_terminal_obeys_what_is_shown(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    done = meshctl(monkeypatch, command)
    assert done.exit_code in (0, 1), done.output
    assert "owned" in done.output or "svc" in command or "ns" in command or "routes" in command
    bad = {char for char in done.output if not char.isprintable() and char != "\n"}
    assert not bad


@pytest.mark.parametrize("command", ["proxy-status", "stat", "top", "proxy-config web"])
@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (503, msgspec.json.encode(AdminError(EVIL)), "error: \\x1b]0;owned\\x07"),
        (404, msgspec.json.encode(AdminError(NO_PAGE)), "is older than this meshctl"),
        (200, b'{"\xff": 1}', "cannot read"),
        (200, b"[" * 100_000, "cannot read"),
        (500, b"\xff\xfe", "cannot read"),
        (500, b"<html>", "cannot read"),
        (200, b'{"answered": -1e400}', "cannot read"),
    ],
)
def test_an_answer_that_is_none_is_one_line(
    monkeypatch: pytest.MonkeyPatch, command: str, status: int, body: bytes, said: str
) -> None:
    done = meshctl(monkeypatch, command, status, body)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.splitlines()) == 1
    assert done.output.rstrip("\n").isprintable()


def test_a_message_of_the_api_server_in_place_of_an_answer() -> None:
    assert admin._refusal(b'{"message": "no"}', "home", 500) == "the API server says: no"
