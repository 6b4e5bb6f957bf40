"""The conformance lists against each engine in memory; the sidecar answers the same lists over sockets."""

import pytest

from mesh_proxy.wire.http2.seam import REQUEST, Engine
from tests.support import http2_frames as h2
from tests.support import http2_messages as messages
from tests.support.http2_conformance import FINAL_PING, FRAMES, KINDS, PREFACES, STATES, Case, complaint
from tests.support.http2_engines import drained, fed, make, request
from tests.support.http2_known import with_engines

SERVER = [*PREFACES, *FRAMES, *STATES, *KINDS, *messages.SERVER, *messages.IN_MEMORY]


def told(engine: Engine, pieces: list[bytes], *, answer: bool) -> bytes:
    """What an engine sends when it gets these pieces one by one."""
    out = drained(engine)
    for piece in pieces:
        events, code = fed(engine, piece)
        if code is not None:
            out += drained(engine)
            assert h2.read_frames(out)[-1].code == code
            assert engine.feed(h2.ping(FINAL_PING), 1.0) == []
            return out + drained(engine)
        for kind, stream, _, _ in events:
            if kind == REQUEST and answer:
                engine.respond(stream, 200, b"", True)
        out += drained(engine)
    return out


@pytest.mark.parametrize(("engine", "case"), with_engines(SERVER))
def test_server(engine: str, case: Case) -> None:
    if case.raw:
        pieces = [case.sends]
    else:
        pieces = [h2.PREFACE + h2.settings() + case.sends, case.then, h2.ping(FINAL_PING)]
    out = told(make(engine, server=True), pieces, answer=not case.held)
    assert complaint(case, h2.read_frames(out)) == ""


@pytest.mark.parametrize(("engine", "case"), with_engines(messages.CLIENT))
def test_client(engine: str, case: Case) -> None:
    client = make(engine, server=False)
    client.feed(h2.settings() + h2.settings_ack(), 0.0)
    assert client.request(request(), True) == 1
    assert client.request(request(b"HEAD"), True) == 3
    assert client.request(request(b"POST"), False) == 5
    out = told(client, [case.sends, case.then, h2.ping(FINAL_PING)], answer=False)
    assert complaint(case, h2.read_frames(out)) == ""


def test_names_are_unique() -> None:
    for cases in (SERVER, messages.CLIENT):
        names = [case.name for case in cases]
        assert len(names) == len(set(names))
