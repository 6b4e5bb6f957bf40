"""Informer, work queue, runner and event recorder, against a client that the test drives."""

import logging
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mesh_local.client import ObjectList, WatchEvent
from mesh_local.controllers.events import BURST, QUEUE_SIZE, Recorder
from mesh_local.controllers.everything import Everything
from mesh_local.controllers.informer import Informer, Informers
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller, run_controller
from mesh_local.controllers.scheduler import Scheduler
from mesh_local.controllers.tools import Tools
from mesh_local.kinds.base import Kind
from mesh_local.machinery.errors import expired, failure, not_found
from mesh_local.machinery.objects import meta, name_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def run(main, *args):
    return trio.run(main, *args, clock=MockClock(autojump_threshold=0))


def obj(name, version, namespace="t", **extra):
    metadata = {"name": name, "namespace": namespace, "uid": f"u-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **extra}


class FakeClient:
    """Lists what `lists` holds; each watch gets the next channel of `watches`, or its error."""

    def __init__(self):
        self.lists = []
        self.watches = []
        self.calls = []
        self.open = 0

    async def list(self, resource, namespace="", *, labels="", fields=""):
        self.calls.append("list")
        found = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(found, Exception):
            raise found
        return ObjectList(list(found[1]), str(found[0]))

    @asynccontextmanager
    async def watch(self, resource, namespace="", *, resource_version="", labels="", fields=""):
        self.calls.append(f"watch {resource_version}")
        found = self.watches.pop(0) if self.watches else None
        if isinstance(found, Exception):
            raise found
        self.open += 1
        try:
            yield self._events(found or [])
        finally:
            self.open -= 1

    async def _events(self, events):
        for event in events:
            if isinstance(event, Exception):
                raise event
            await trio.lowlevel.checkpoint()
            yield event
        await trio.sleep_forever()


async def informed(client, check):
    """Run an informer until everything is still, then let `check` look at it and at what it told."""
    informer = Informer(client, "configmaps", rng=random.Random(1))
    told = []
    informer.on_change(lambda old, new: told.append((old and name_of(old), new and name_of(new))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(informer.run)
        await trio.sleep(3)
        check(informer, told)
        nursery.cancel_scope.cancel()
    assert client.open == 0


def test_informer_lists_then_watches():
    client = FakeClient()
    client.lists = [(5, [obj("a", 1), obj("b", 2)])]
    changed = obj("a", 6, data={"k": "v"})
    client.watches = [[WatchEvent("MODIFIED", changed), WatchEvent("DELETED", obj("b", 7))]]

    def check(informer, told):
        assert informer.synced.is_set()
        assert informer.list("t") == [changed]
        assert informer.get("a", "t") is changed
        assert informer.get("b", "t") is None
        assert told == [(None, "a"), (None, "b"), ("a", "a"), ("b", None)]
        assert client.calls == ["list", "watch 5"]

    run(informed, client, check)


def test_informer_resumes_after_the_last_event_and_lists_again_when_too_old():
    client = FakeClient()

    async def main():
        client.lists = [(5, [obj("a", 1)]), (20, [obj("c", 15)])]
        ended = Ended([WatchEvent("ADDED", obj("b", 8)), WatchEvent("BOOKMARK", obj("", 9))])
        client.watches = [ended, expired("too old"), []]
        client._events = lambda events: (
            ended.events() if events is ended else FakeClient._events(client, events)
        )

        def check(informer, told):
            assert client.calls == ["list", "watch 5", "watch 9", "list", "watch 20"]
            assert [name_of(o) for o in informer.list()] == ["c"]
            assert told[-3:] == [("a", None), ("b", None), (None, "c")]

        await informed(client, check)

    run(main)


class Ended(list):
    """Events after which the server ends the watch."""

    async def events(self):
        for event in self:
            yield event


def test_informer_backs_off_while_the_server_fails():
    client = FakeClient()
    client.lists = [failure(500, "", "down"), OSError("gone"), (3, [obj("a", 1)])]

    def check(informer, _told):
        assert client.calls == ["list", "list", "list", "watch 3"]
        assert informer.synced.is_set()

    run(informed, client, check)


def test_informer_survives_a_broken_callback(caplog):
    client = FakeClient()
    client.lists = [(5, [obj("a", 1)])]

    async def main():
        informer = Informer(client, "configmaps", rng=random.Random(1))
        informer.on_change(lambda old, new: 1 / 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(informer.run)
            await informer.synced.wait()
            nursery.cancel_scope.cancel()
        assert informer.get("a", "t")

    run(main)
    assert "A callback for configmaps failed" in caplog.text


def test_own_writes_show_at_once_and_are_not_undone_by_older_events():
    client = FakeClient()
    client.lists = [(5, [obj("a", 1)])]
    send, receive = None, None

    async def main():
        nonlocal send, receive
        send, receive = trio.open_memory_channel(10)
        client._events = lambda _events: receive
        informer = Informer(client, "configmaps", rng=random.Random(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(informer.run)
            await wait_all_tasks_blocked()
            informer.wrote(obj("a", 7, data={"n": "7"}))
            informer.wrote(obj("new", 8))
            assert informer.get("new", "t")
            await send.send(WatchEvent("MODIFIED", obj("a", 6, data={"n": "6"})))
            await wait_all_tasks_blocked()
            assert informer.get("a", "t")["data"] == {"n": "7"}
            await send.send(WatchEvent("DELETED", obj("new", 9)))
            await wait_all_tasks_blocked()
            informer.wrote(obj("new", 8))
            assert informer.get("new", "t") is None
            nursery.cancel_scope.cancel()

    run(main)


def test_index_follows_changes():
    client = FakeClient()
    client.lists = [(5, [obj("a", 1, color="red"), obj("b", 2, color="red")])]
    client.watches = [[WatchEvent("MODIFIED", obj("a", 6, color="blue"))]]

    async def main():
        informer = Informer(
            client, "configmaps", indexes={"color": lambda o: (o["color"],)}, rng=random.Random(1)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(informer.run)
            await wait_all_tasks_blocked()
            assert [name_of(o) for o in informer.by_index("color", "red")] == ["b"]
            assert [name_of(o) for o in informer.by_index("color", "blue")] == ["a"]
            assert informer.by_index("color", "green") == []
            nursery.cancel_scope.cancel()

    run(main)


def test_dropped_informer_stops_watching():
    client = FakeClient()
    client.lists = [(5, [])]

    async def main():
        informers = Informers(client, random.Random(1))
        informers.of("configmaps")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(informers.run)
            await informers.synced()
            informers.of("secrets")
            await wait_all_tasks_blocked()
            assert client.open == 2
            informers.drop("configmaps")
            await wait_all_tasks_blocked()
            assert client.open == 1
            nursery.cancel_scope.cancel()

    run(main)


def test_queue_holds_a_key_once():
    async def main():
        queue = WorkQueue(list)
        for key in ("a", "b", "a"):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == ["a", "b"]
        with trio.move_on_after(1) as scope:
            await queue.get()
        assert scope.cancelled_caught

    run(main)


def test_key_added_while_worked_on_comes_after_done():
    async def main():
        queue = WorkQueue(list)
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        with trio.move_on_after(1) as scope:
            await queue.get()
        assert scope.cancelled_caught
        queue.done("a")
        assert await queue.get() == "a"

    run(main)


def test_delays_and_back_off():
    async def main():
        queue = WorkQueue(list)
        start = trio.current_time()
        queue.add_after("late", 10)
        queue.add_after("late", 3)
        queue.add_after("late", 7)
        assert await queue.get() == "late"
        assert trio.current_time() - start == 3
        queue.done("late")
        assert len(queue) == 0
        assert [queue.add_failed("bad") for _ in range(4)] == [0.005, 0.01, 0.02, 0.04]
        queue.forget("bad")
        assert queue.add_failed("bad") == 0.005
        assert [queue.add_failed("worst") for _ in range(40)][-1] == 60

    run(main)


def test_busy_workers_leave_the_clock_to_idle_ones():
    async def main():
        queue, taken = WorkQueue(list), []

        async def work():
            while True:
                key = await queue.get()
                taken.append((key, trio.current_time()))
                await trio.sleep(100)
                queue.done(key)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work)
            await wait_all_tasks_blocked()
            for key, delay in (("slow", 9), ("soon", 5), ("now", 0)):
                queue.add_after(key, delay)
            await trio.sleep(50)
            nursery.cancel_scope.cancel()
        start = taken[0][1]
        assert [(key, at - start) for key, at in taken] == [("now", 0), ("soon", 5), ("slow", 9)]

    run(main)


def test_full_queue_asks_for_everything_later():
    async def main():
        queue = WorkQueue(lambda: ["a", "b", "c"], limit=2)
        for key in ("a", "b", "c"):
            queue.add(key)
        found = []
        for _ in range(3):
            key = await queue.get()
            queue.done(key)
            found.append(key)
        assert set(found) >= {"a", "b"}
        with trio.move_on_after(1):
            while True:
                key = await queue.get()
                queue.done(key)
                found.append(key)
        assert "c" in found

    run(main)


def test_waiting_worker_that_is_cancelled_loses_no_key():
    async def main():
        queue = WorkQueue(list)
        with trio.move_on_after(1):
            await queue.get()
        queue.add("a")
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await queue.get() == "a"
            queue.done("a")

    run(main)


def test_exception_in_one_reconcile_is_logged_and_tried_again(caplog):
    caplog.set_level(logging.DEBUG)

    async def main():
        queue, seen = WorkQueue(list), []

        async def reconcile(key):
            seen.append(key)
            if seen.count("bad") == 1 and key == "bad":
                raise ZeroDivisionError("oops")
            if key == "refused" and seen.count(key) < 3:
                raise not_found("pods", "", "x")
            return 5.0 if key == "again" and seen.count(key) == 1 else None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_controller, Controller("c", queue, reconcile))
            for key in ("bad", "refused", "again", "good"):
                queue.add(key)
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
        counts = {key: seen.count(key) for key in seen}
        assert counts == {"bad": 2, "refused": 3, "again": 2, "good": 1}

    run(main)
    assert "c: reconciling bad failed" in caplog.text


def test_refused_for_good_waits_for_the_next_change():
    async def main():
        queue, seen = WorkQueue(list), []

        async def reconcile(key):
            seen.append(key)
            raise failure(422, "Invalid", "never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_controller, Controller("c", queue, reconcile, attempts=4))
            queue.add("a")
            await trio.sleep(1000)
            assert len(seen) == 5
            queue.add("a")
            await trio.sleep(1000)
            assert len(seen) == 10
            nursery.cancel_scope.cancel()

    run(main)


class EventClient:
    """Keeps events; `fail` is raised by the next call."""

    def __init__(self):
        self.stored = {}
        self.fail = None

    async def create(self, resource, body, namespace="", *, subresource=""):
        await self._call()
        assert (resource, namespace) == ("events", meta(body)["namespace"])
        assert name_of(body) not in self.stored
        self.stored[name_of(body)] = body
        return body

    async def patch(self, resource, name, namespace, patch, *, type="merge", subresource=""):
        await self._call()
        if name not in self.stored:
            raise not_found("events", "", name)
        self.stored[name] = {**self.stored[name], **patch}
        return self.stored[name]

    async def _call(self):
        await trio.lowlevel.checkpoint()
        if self.fail is not None:
            raise self.fail


async def recording(client, script, **options):
    clock = lambda: NOW + timedelta(seconds=trio.current_time())  # noqa: E731
    recorder = Recorder(client, "replicaset-controller", now=clock, rng=random.Random(1), **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        await script(recorder)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    return list(client.stored.values())


def test_repeated_event_is_counted():
    async def script(recorder):
        for _ in range(3):
            recorder.event(obj("web", 4), "Warning", "FailedCreate", "no")
            await trio.sleep(2)
        recorder.event(obj("web", 4), "Warning", "FailedCreate", "other")

    first, second = run(recording, EventClient(), script)
    prefix, _, suffix = name_of(first).rpartition(".")
    assert (prefix, len(suffix)) == ("web", 16)
    int(suffix, 16)
    assert first["involvedObject"] == {
        "kind": "ConfigMap",
        "namespace": "t",
        "name": "web",
        "uid": "u-web",
        "apiVersion": "v1",
        "resourceVersion": "4",
    }
    assert (first["count"], second["count"]) == (3, 1)
    assert first["firstTimestamp"] < first["lastTimestamp"]
    assert first["source"] == {"component": "replicaset-controller"}


def test_event_with_an_action_has_the_newer_form():
    async def script(recorder):
        for _ in range(2):
            recorder.event(obj("web", 4), "Normal", "Scheduled", "yes", action="Binding")

    (found,) = run(lambda: recording(EventClient(), script, host="vm"))
    assert (found["source"], found["firstTimestamp"], found["lastTimestamp"]) == ({}, None, None)
    assert (found["action"], found["reportingInstance"]) == ("Binding", "replicaset-controller-vm")
    assert found["series"]["count"] == 2
    assert "count" not in found


def test_one_object_cannot_flood_the_events():
    async def script(recorder):
        for i in range(BURST + 20):
            recorder.event(obj("web", 4), "Normal", "R", f"message {i}")
        recorder.event(obj("quiet", 4), "Normal", "R", "m")

    found = run(recording, EventClient(), script)
    assert len(found) == BURST + 1
    assert name_of(found[-1]).startswith("quiet.")


def test_event_of_which_the_first_is_gone_is_made_anew():
    client = EventClient()

    async def script(recorder):
        recorder.event(obj("web", 4), "Normal", "R", "m")
        await trio.sleep(1)
        client.stored.clear()
        recorder.event(obj("web", 4), "Normal", "R", "m")

    (found,) = run(recording, client, script)
    assert found["count"] == 1


@pytest.mark.parametrize("error", [failure(403, "Forbidden", "no"), failure(500, "", "x"), OSError("x")])
def test_recorder_never_fails_its_caller(error):
    client = EventClient()

    async def script(recorder):
        client.fail = error
        recorder.event(obj("web", 4), "Normal", "R", "lost")
        await trio.sleep(1)
        client.fail = None
        for i in range(QUEUE_SIZE + 5):
            recorder.event(obj("other", 4), "Normal", "R", str(i))

    found = run(recording, client, script)
    assert len(found) == BURST


def test_every_served_kind_is_watched_and_no_other():
    client = FakeClient()
    client.lists = [(5, [])]
    event = Kind(kind="Event", plural="events", singular="event")
    review = Kind(kind="Review", plural="reviews", singular="review", verbs=("create",))
    widget = Kind(kind="Widget", plural="widgets", singular="widget", group="example.com")
    newer = replace(widget, version="v2")
    served = [event, review, widget, newer]

    async def main():
        informers = Informers(client, random.Random(1))
        everything = Everything(informers, lambda: served)
        gone = []
        everything.on_change(lambda resource, old, new: gone.append((resource, name_of(old or {}), new)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(informers.run)
            await wait_all_tasks_blocked()
            assert client.open == 1
            assert [k.resource for k in everything.resources(namespaced=True)] == [
                "widgets.example.com",
                "events",
            ]
            assert everything.kind_of("example.com/v9", "Widget") is widget
            informers.of("widgets.example.com").wrote(obj("w", 6))
            gone.clear()
            del served[2:]
            await everything.controller().reconcile("")
            await wait_all_tasks_blocked()
            assert client.open == 0
            assert gone == [("widgets.example.com", "w", None)]
            assert everything.kind_of("example.com/v1", "Widget") is None
            nursery.cancel_scope.cancel()

    run(main)


def test_scheduler_counts_what_it_has_just_placed():
    """Both pods are decided on before the copy shows the first binding."""
    client = FakeClient()
    bound = []

    async def create(resource, binding, namespace="", *, subresource=""):
        bound.append((name_of(binding), binding["target"]["name"], subresource))
        return {}

    async def patch(resource, name, namespace, patch, **options):
        bound.append((name, patch["status"]["conditions"][0]["message"], "status"))
        return obj(name, 1)

    client.create, client.patch = create, patch

    async def main():
        informers = Informers(client, random.Random(1))
        recorder = Recorder(client, "default-scheduler", now=lambda: NOW, rng=random.Random(1))
        scheduler = Scheduler(Tools(client, recorder, informers, lambda: NOW))
        allocatable = {"cpu": "4", "pods": "10"}
        informers.of("nodes").wrote(obj("n", 1, "", status={"allocatable": allocatable}))
        containers = [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]
        for version, name in enumerate(("a", "b"), 2):
            informers.of("pods").wrote(obj(name, version, spec={"containers": containers}))
        for _ in range(2):
            await scheduler.controller().reconcile(("t", "a"))
        await scheduler.controller().reconcile(("t", "b"))
        assert [entry[0] for entry in bound] == ["a", "b"]
        assert bound[0] == ("a", "n", "binding")
        assert bound[1][1].startswith("0/1 nodes are available: 1 Insufficient cpu.")

    run(main)
