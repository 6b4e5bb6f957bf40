"""Sidecars that mean harm: what they say is shown harmlessly, and what they cost is theirs to wait for."""

import pytest
import trio
import trio.testing

from mesh_api.discovery import Applied, Ask, Goodbye, Held, Page, Pong, Reply, Report, Subscribe, Update
from mesh_api.sidecar import Destination
from mesh_api.stats import Direction, Edge, EdgeKind
from mesh_control.serve.discovery_asks import AskFailed
from mesh_control.serve.discovery_stream import HEAVY_S, REST
from mesh_control.serve.subscriptions import PodRef
from tests.support.discovery import by_hand, serving
from tests.support.mesh import wait_until

CLIENT = PodRef("shop", "client")
EVIL = "\x1b]0;owned\x07\u202e"
SHOWN = "\\x1b]0;owned\\x07\\u202e"
WEB = Destination(name="web", namespace="shop", port=80, addresses=("10.96.0.1",))


def test_what_a_sidecar_says_obeys_no_terminal():
    async def test(hand, nursery):
        server = hand.server
        server.source.put(serving(WEB))
        await hand.say(Subscribe((Held("address/10.96.0.1:80"),)))
        update = await hand.hear(Update)
        await hand.say(Applied(update.nonce, EVIL))
        await wait_until(lambda: server.states()[0].error)
        (state,) = server.states()
        assert (state.version, state.error) == (SHOWN, SHOWN)
        failures = []

        async def ask():
            with pytest.raises(AskFailed) as failed:
                await server.ask(CLIENT, Page.CONFIG, {})
            failures.append(str(failed.value))

        nursery.start_soon(ask)
        await hand.say(Reply((await hand.hear(Ask)).id, error=EVIL))
        await wait_until(lambda: failures)
        assert failures == [f"the sidecar says: {SHOWN}"]

    by_hand(test, EVIL)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Report(5.0, (Edge(Direction.INBOUND, EdgeKind.HTTP, requests=-1),)), "Expected `int` >= 0"),
        (Report(5.0, (Edge(Direction.INBOUND, EdgeKind.HTTP, latency_sum_s=float("nan")),)), "Expected"),
        (Report(5.0, (Edge(Direction.INBOUND, EdgeKind.HTTP, route="x" * 641),)), "length <= 640"),
        (Subscribe((Held("destination/\x1b"),)), "expected"),
        (Reply(7, b"{}"), "nothing was asked with id 7"),
        (Applied(1), "nothing was to be applied"),
    ],
)
def test_what_cannot_be_ends_the_stream_and_nothing_else(message, reason):
    async def test(hand, nursery):
        reported = []
        hand.server.subscribe_reports(lambda *told: reported.append(told))
        await hand.say(message)
        assert reason in (await hand.hear(Goodbye)).reason
        assert reported == []

    by_hand(test)


def test_a_sidecar_that_costs_much_waits_for_it():
    async def test(hand, nursery):
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        subscriptions = hand.server.subscriptions
        began, costs = [], iter([HEAVY_S * 20, HEAVY_S / 2, 0.0])
        subscribe = subscriptions.subscribe

        def slow(*arguments):
            began.append(trio.current_time())
            clock.jump(next(costs))
            subscribe(*arguments)

        subscriptions.subscribe = slow
        for _ in range(3):
            await hand.say(Subscribe((Held("workload"),)))
        await wait_until(lambda: len(began) == 3)
        assert began[1] - began[0] >= HEAVY_S * 20 * (1 + REST)
        assert began[2] - began[1] < HEAVY_S * 5
        await hand.say(Pong())
        assert hand.server.stats.connected == 1

    by_hand(test)


def test_an_answer_in_crumbs_takes_no_more_memory_than_its_bytes():
    async def test(hand, nursery):
        answers = []

        async def ask():
            answers.append(await hand.server.ask(CLIENT, Page.CONFIG, {}))

        nursery.start_soon(ask)
        number = (await hand.hear(Ask)).id
        for _ in range(500):
            await hand.say(Reply(number, b"x", last=False))
        (stream,) = hand.server._streams.values()
        await wait_until(lambda: hand.server.memory.held == 500)
        (question,) = stream.questions._open.values()
        assert isinstance(question.held, bytearray)
        await hand.say(Reply(number, b"y"))
        await wait_until(lambda: answers)
        assert answers == [b"x" * 500 + b"y"]

    by_hand(test)
