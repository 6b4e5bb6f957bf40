"""The sidecar's server side over sockets against the lists of what RFC 9113 asks, with each engine."""

from __future__ import annotations

import pytest
import trio

from mesh_proxy.net.addr import Addr
from tests.integration.http2_mesh import chain
from tests.integration.http2_peers import OK, Http2Stream, http2_application
from tests.integration.http_peers import STEP_S
from tests.support import http2_frames as h2
from tests.support import http2_messages as messages
from tests.support.http2_conformance import FINAL_PING, FRAMES, KINDS, PREFACES, STATES, Case, complaint
from tests.support.http2_known import with_engines
from tests.support.mesh import run

CASES = [case for case in (*PREFACES, *FRAMES, *STATES, *KINDS, *messages.SERVER) if not case.in_memory]
AT_ONCE = 16


async def answering(stream: Http2Stream) -> None:
    await stream.respond(OK)


async def silent(stream: Http2Stream) -> None:
    """Nothing is answered."""


def answered(came: bytes) -> bool:
    """Whether stream 1 has ended."""
    kinds = (h2.HEADERS, h2.DATA)
    return any(f.stream == 1 and f.kind in kinds and f.flags & h2.END_STREAM for f in h2.read_frames(came))


def over(case: Case, came: bytes) -> bool:
    """Whether there is nothing more to wait for."""
    return not case.raw and any(f.kind == h2.PING and f.payload == FINAL_PING for f in h2.read_frames(came))


async def came_back(case: Case, addr: Addr) -> bytes:
    """What the sidecar sends upon a case, to the connection's end or the answer to the last PING."""
    came = b""
    stream = await trio.open_tcp_stream(*addr)
    async with stream:
        with trio.move_on_after(STEP_S):
            try:
                if case.raw:
                    await stream.send_all(case.sends)
                    await stream.send_eof()
                else:
                    await stream.send_all(h2.PREFACE + h2.settings() + case.sends)
                    while case.then and not answered(came):
                        came += await stream.receive_some()
                    await stream.send_all(case.then + h2.ping(FINAL_PING))
                while not over(case, came) and (data := await stream.receive_some()):
                    came += data
            except trio.BrokenResourceError:
                pass
    return came


@pytest.fixture(scope="module")
def complaints() -> dict[tuple[str, str], str]:
    """What is wrong with each case, by engine and name: all run side by side."""
    found: dict[tuple[str, str], str] = {}

    async def ask(engine: str, case: Case, addr: Addr, limit: trio.CapacityLimiter) -> None:
        async with limit:
            found[engine, case.name] = complaint(case, h2.read_frames(await came_back(case, addr)))

    async def all_cases(engine: str, held: bool) -> None:
        settings = {"http2_engine": engine}
        async with (
            http2_application(silent if held else answering) as app,
            chain(app.addr, "one-sidecar", client_settings=settings) as c,
            trio.open_nursery() as nursery,
        ):
            limit = trio.CapacityLimiter(AT_ONCE)
            for case in CASES:
                if case.held is held:
                    nursery.start_soon(ask, engine, case, c.addr, limit)

    for engine in ("nghttp2", "hyper"):
        for held in (False, True):
            run(lambda e=engine, h=held: all_cases(e, h), 120)
    return found


@pytest.mark.parametrize(("engine", "case"), with_engines(CASES))
def test_server(engine: str, case: Case, complaints: dict[tuple[str, str], str]) -> None:
    assert complaints[engine, case.name] == ""
