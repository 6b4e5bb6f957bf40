"""What the control plane asks a sidecar, and what a sidecar reports: whole sidecars, and bad ones by hand."""

import msgspec
import pytest
import trio
import trio.testing

from mesh_api import admin
from mesh_api.discovery import (
    MAX_ASKED,
    MAX_EDGES,
    MAX_REPLY_PIECE,
    Applied,
    Ask,
    Goodbye,
    Held,
    Page,
    Ping,
    Pong,
    Reply,
    Report,
    Subscribe,
    Update,
)
from mesh_api.sidecar import Destination
from mesh_api.stats import Direction, Edge, EdgeKind
from mesh_control.serve import discovery_asks
from mesh_control.serve.discovery_asks import AskFailed
from mesh_control.serve.discovery_stream import REPORTS_AT_ONCE
from mesh_control.serve.subscriptions import PodRef
from mesh_proxy.discovery import stream as sidecar_stream
from mesh_proxy.discovery.answers import Answers
from mesh_proxy.net.addr import Addr
from tests.support.discovery import FakeSource, by_hand, control_plane, serving, streamed
from tests.support.mesh import TestCa, identity, run, wait_until

WEB = Destination(name="web", namespace="shop", port=80, addresses=("10.96.0.1",))
API = Destination(name="api", namespace="shop", port=80, addresses=("10.96.0.2",))
VIP = Addr("10.96.0.1", 80)
CLIENT = PodRef("shop", "client")


# -- whole sidecars ----------------------------------------------------------------------------------------


def test_configuration_and_log_of_a_sidecar():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put({**serving(WEB), **serving(API)})
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            await side.app.store.resolve(VIP, 2)
            await side.app.store.resolve(Addr("10.96.0.2", 80), 2)
            body = await plane.server.ask(CLIENT, Page.CONFIG, {})
            config = msgspec.json.decode(body, type=admin.SidecarConfig)
            assert (config.namespace, config.pod) == CLIENT
            assert sorted(config.destinations, key=lambda one: one.name) == [API, WEB]
            assert config.inbound == source.config.inbound
            ports = {listener.purpose: listener.port for listener in config.listeners}
            assert ports == side.app.ports
            leaf, root = config.certificates
            assert (leaf.role, leaf.subject) == ("leaf", identity("client"))
            assert (root.role, root.sha256) == ("root", ca.authority.bundle.fingerprints[0])
            body = await plane.server.ask(CLIENT, Page.LOG, {"level": "error"})
            assert msgspec.json.decode(body, type=admin.SidecarLog) == admin.SidecarLog("error", True)
            assert side.app.log.level == "error"
            with pytest.raises(AskFailed, match="the sidecar says: "):
                await plane.server.ask(CLIENT, Page.LOG, {"level": "loud"})
            del side.app.asked[Page.TAP]
            with pytest.raises(AskFailed, match="does not answer tap"):
                await plane.server.ask(CLIENT, Page.TAP, {"seconds": "1"})
            with pytest.raises(ValueError, match="seconds: expected a number above 0, at most 60"):
                await plane.server.ask(CLIENT, Page.TAP, {"seconds": "61"})
            with pytest.raises(AskFailed, match="not connected here"):
                await plane.server.ask(PodRef("shop", "nobody"), Page.CONFIG, {})
            assert plane.server.memory.held == 0

    run(main)


def test_serial_numbers_are_those_of_the_certificates():
    from cryptography import x509

    from mesh_proxy.admin.certificates import describe

    credentials = TestCa().credentials("client")
    certs = x509.load_pem_x509_certificates(credentials.chain_pem.encode())
    roots = x509.load_pem_x509_certificates(credentials.bundle_pem.encode())
    assert [one.serial for one in describe(credentials)] == [
        f"{cert.serial_number:x}" for cert in (*certs, *roots)
    ]
    assert [one.not_after[:19] for one in describe(credentials)] == [
        cert.not_valid_after_utc.isoformat()[:19] for cert in (*certs, *roots)
    ]


def test_a_large_answer_comes_in_pieces_while_updates_go_on():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.put(serving(WEB))
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            await store.resolve(VIP, 2)
            changed = msgspec.structs.replace(WEB, protocol=API.protocol.HTTP)
            paused = trio.Event()

            def parts():
                yield b'["'
                for _ in range(5):
                    yield b"x" * MAX_REPLY_PIECE
                source.put(serving(changed))
                yield b"y" * MAX_REPLY_PIECE
                paused.set()
                for _ in range(5):
                    yield b"z" * MAX_REPLY_PIECE
                yield b'"]'

            async def large(arguments):
                await trio.lowlevel.checkpoint()
                return parts()

            side.app.asked[Page.CONFIG] = large
            body = await plane.server.ask(CLIENT, Page.CONFIG, {})
            assert paused.is_set()
            assert len(body) == 11 * MAX_REPLY_PIECE + 4
            await wait_until(lambda: store.lookup(VIP) == changed)
            assert plane.server.memory.held == 0

    run(main)


def test_an_answer_above_the_bound_is_an_error_of_its_own(monkeypatch):
    async def main():
        ca = TestCa()
        async with control_plane(ca) as plane, streamed(ca, plane) as side:
            await wait_until(lambda: plane.server.states())

            async def large(arguments):
                await trio.lowlevel.checkpoint()
                return (b"x" * MAX_REPLY_PIECE for _ in range(40))

            side.app.asked[Page.CONFIG] = large
            with pytest.raises(AskFailed, match="at most 33554432 bytes"):
                await plane.server.ask(CLIENT, Page.CONFIG, {})
            assert msgspec.json.decode(await plane.server.ask(CLIENT, Page.LOG, {"level": "info"}))
            assert plane.server.memory.held == 0

    run(main)


def test_reports_come_regularly_and_say_who_counted(monkeypatch):
    monkeypatch.setattr(sidecar_stream, "REPORT_S", 0.05)

    async def main():
        ca, source = TestCa(), FakeSource()
        edge = Edge(direction=Direction.INBOUND, kind=EdgeKind.HTTP, requests=3)
        found = []
        async with control_plane(ca, source) as plane:
            plane.server.subscribe_reports(lambda *told: found.append(told))
            async with streamed(ca, plane) as side:
                await wait_until(lambda: found)
                side.app.stream._take_report = lambda span: Report(span, (edge,))
                await wait_until(lambda: found[-1][3].edges)
                side.app.stream._take_report = lambda span: 1 / 0
                await side.log.wait_for(lambda line: line["event"] == "report failed")
                assert plane.server.stats.connected == 1
        pod, who, workload, report = found[0]
        assert (pod, who, workload) == (CLIENT, identity("client"), "any")
        assert report.edges == ()
        assert report.span_s > 0
        assert found[-1][3].edges == (edge,)

    run(main)


def test_a_sidecar_that_ends_reports_what_it_has_not_told_yet(monkeypatch):
    monkeypatch.setattr(sidecar_stream, "REPORT_S", 600)

    async def main():
        ca = TestCa()
        edge = Edge(direction=Direction.OUTBOUND, kind=EdgeKind.HTTP, requests=1, overflows=1)
        found = []
        async with control_plane(ca) as plane:
            plane.server.subscribe_reports(lambda *told: found.append(told))
            async with streamed(ca, plane) as side:
                await wait_until(lambda: plane.server.states())
                side.app.stream._take_report = lambda span: Report(span, (edge,))
                side.app.stop.set()
                await wait_until(lambda: found)
        assert [told[3].edges for told in found] == [(edge,)]

    run(main)


def test_state_of_sidecars():
    async def main():
        ca, source = TestCa(), FakeSource()
        source.config = msgspec.structs.replace(source.config, bundle_pem="told")
        source.put(serving(WEB))
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            server = plane.server
            await side.app.store.resolve(VIP, 2)
            await plane.settled()
            (state,) = server.states()
            assert (state.namespace, state.pod, state.identity) == (*CLIENT, identity("client"))
            assert (state.state, state.keys, state.replica) == (admin.SyncState.SYNCED, 2, "replica-1")
            assert server.bundle_of(CLIENT) == "told"
            source.put(serving(msgspec.structs.replace(WEB, addresses=("nonsense",))))
            source.contents.pop("address/nonsense:80")
            await wait_until(lambda: server.states()[0].state is admin.SyncState.REJECTED)
            assert "expected an IP address, got 'nonsense'" in server.states()[0].error
            source.put(serving(msgspec.structs.replace(WEB, protocol=API.protocol.TCP)))
            await wait_until(lambda: server.states()[0].state is admin.SyncState.SYNCED)
            assert server.states()[0].error == ""

    run(main)


# -- sidecars by hand --------------------------------------------------------------------------------------


async def failing(server, page, arguments, failures):
    try:
        await server.ask(CLIENT, page, arguments)
    except AskFailed as exc:
        failures.append((exc.status, str(exc)))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda number: Reply(number + 1, b"{}"), "nothing was asked with id 2"),
        (lambda number: Reply(number, b"x" * (MAX_REPLY_PIECE + 1)), "pieces of at most 1048576 bytes"),
        (lambda number: Reply(number, b"", last=False), "pieces that are not empty"),
        (lambda number: Report(5.0, (EDGE,) * (MAX_EDGES + 1)), "at most 2048 edges"),
    ],
)
def test_nonsense_is_named_and_ends_the_stream(reply, reason):
    async def test(hand, nursery):
        failures = []
        nursery.start_soon(failing, hand.server, Page.CONFIG, {}, failures)
        ask = await hand.hear(Ask)
        await hand.say(reply(ask.id))
        assert reason in (await hand.hear(Goodbye)).reason
        await wait_until(lambda: failures)
        assert failures[0][0] == 503
        assert reason in failures[0][1]

    by_hand(test)


EDGE = Edge(direction=Direction.INBOUND, kind=EdgeKind.TCP)


def test_too_much_ends_the_stream(monkeypatch):
    monkeypatch.setattr(discovery_asks, "MAX_ADMIN_BYTES", 3 * MAX_REPLY_PIECE)

    async def test(hand, nursery):
        failures = []
        nursery.start_soon(failing, hand.server, Page.CONFIG, {}, failures)
        ask = await hand.hear(Ask)
        for _ in range(4):
            await hand.say(Reply(ask.id, b"x" * MAX_REPLY_PIECE, last=False))
        assert "an answer of at most" in (await hand.hear(Goodbye)).reason

    by_hand(test)


def test_what_a_replica_holds_is_bounded(monkeypatch):
    monkeypatch.setattr(discovery_asks, "MAX_HELD_BYTES", MAX_REPLY_PIECE)

    async def test(hand, nursery):
        failures = []
        nursery.start_soon(failing, hand.server, Page.CONFIG, {}, failures)
        ask = await hand.hear(Ask)
        await hand.say(Reply(ask.id, b"x" * MAX_REPLY_PIECE, last=False))
        await hand.say(Reply(ask.id, b"x" * MAX_REPLY_PIECE, last=False))
        await wait_until(lambda: failures)
        assert "too many answers at once" in failures[0][1]
        assert hand.server.memory.held == 0
        await hand.say(Reply(ask.id, b"x"))
        await hand.say(Subscribe((Held("workload"),)))
        await hand.hear(Update)

    by_hand(test)


def test_reports_that_come_too_fast_end_the_stream():
    async def test(hand, nursery):
        for _ in range(REPORTS_AT_ONCE + 1):
            await hand.say(Report(5.0))
        assert (await hand.hear(Goodbye)).reason == "expected a report every 5 s"

    by_hand(test)


def test_deadlines_questions_at_once_and_late_answers():
    async def test(hand, nursery):
        server, failures = hand.server, []
        for _ in range(MAX_ASKED):
            nursery.start_soon(failing, server, Page.CONFIG, {}, failures)
        asks = [await hand.hear(Ask) for _ in range(MAX_ASKED)]
        await failing(server, Page.CONFIG, {}, failures)
        assert failures == [(503, "the sidecar is busy with 4 questions; try again")]
        await trio.sleep(3.9)
        assert len(failures) == 1
        await trio.sleep(0.2)
        assert failures[1:] == [(504, "the sidecar did not answer within 4 s")] * MAX_ASKED
        for ask in asks:
            await hand.say(Reply(ask.id, b"late"))
        (stream,) = server._streams.values()
        await wait_until(lambda: not stream.questions.open)
        answers = []

        async def tap():
            answers.append(await server.ask(CLIENT, Page.TAP, {"seconds": "9"}))

        nursery.start_soon(tap)
        ask = await hand.hear(Ask)
        assert ask.arguments == {"seconds": "9"}
        await trio.sleep(12)
        await hand.say(Reply(ask.id, b"{", last=False))
        await hand.say(Reply(ask.id, b"}"))
        await wait_until(lambda: answers)
        assert answers == [b"{}"]

    by_hand(test)


def test_a_sidecar_that_never_answers_is_cut_off():
    async def test(hand, nursery):
        failures = []
        nursery.start_soon(failing, hand.server, Page.CONFIG, {}, failures)
        await hand.hear(Ask)
        for _ in range(4):
            await hand.hear(Ping)
            await hand.say(Pong())
        await failing(hand.server, Page.CONFIG, {}, failures)
        assert "its stream is made anew" in failures[-1][1]
        assert (await hand.hear(Goodbye)).reason == "questions were not answered"

    by_hand(test)


def test_who_stops_waiting_leaves_nothing():
    async def test(hand, nursery):
        (stream,) = hand.server._streams.values()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as asking:
                asking.start_soon(hand.server.ask, CLIENT, Page.CONFIG, {})
                ask = await hand.hear(Ask)
                await hand.say(Reply(ask.id, b"x" * 1000, last=False))
                await wait_until(lambda: hand.server.memory.held)
                scope.cancel()
        assert hand.server.memory.held == 0
        await hand.say(Reply(ask.id, b"x"))
        await wait_until(lambda: not stream.questions.open)
        assert hand.server.stats.connected == 1

    by_hand(test)


def test_an_update_is_not_behind_an_unanswered_question():
    async def test(hand, nursery):
        nursery.start_soon(failing, hand.server, Page.CONFIG, {}, [])
        await hand.hear(Ask)
        await hand.say(Subscribe((Held("workload"),)))
        update = await hand.hear(Update)
        nursery.start_soon(failing, hand.server, Page.LOG, {"level": "info"}, [])
        assert (await hand.hear(Ask)).page is Page.LOG, "a question is not behind an unanswered update"
        await hand.say(Applied(update.nonce))

    by_hand(test)


def test_one_piece_at_a_time_whatever_is_asked():
    """However many answers are under way, what else a sidecar says waits for one piece at most."""

    async def main():
        waiting, said = [], []
        go_on = trio.Semaphore(0)

        async def say(reply):
            waiting.append(reply)
            await go_on.acquire()
            waiting.remove(reply)
            said.append(reply)

        async def large(arguments):
            await trio.lowlevel.checkpoint()
            return (b"x" * MAX_REPLY_PIECE for _ in range(3))

        answers = Answers({Page.CONFIG: large}, say)
        async with trio.open_nursery() as nursery:
            for number in range(MAX_ASKED):
                assert answers.admit()
                nursery.start_soon(answers.answer, Ask(number, Page.CONFIG))
            assert not answers.admit()
            for _ in range(3 * MAX_ASKED):
                await trio.testing.wait_all_tasks_blocked()
                assert len(waiting) == 1
                go_on.release()
        assert answers.open == 0
        for number in range(MAX_ASKED):
            own = [reply for reply in said if reply.id == number]
            assert [reply.last for reply in own] == [False, False, True]

    trio.run(main)


def test_a_cancelled_answer_makes_room():
    async def main():
        async def forever(arguments):
            await trio.sleep_forever()

        answers = Answers({Page.TAP: forever}, None)
        assert answers.admit()
        with trio.move_on_after(0):
            await answers.answer(Ask(1, Page.TAP, {"seconds": "5"}))
        assert answers.open == 0

    trio.run(main)
