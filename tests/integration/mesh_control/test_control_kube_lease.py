"""Leader election between replicas, and Events, against the local API server."""

import random

import trio

from mesh_control.kube.client import Client
from mesh_control.kube.events import About, Recorder
from mesh_control.kube.lease import Election
from mesh_control.kube.resources import EVENTS, LEASES
from tests.support.control_api import ControlApi, run_api, until


class Replica:
    """Stands for election, and records what it was told."""

    def __init__(self, api: ControlApi, name: str, log: list[str]) -> None:
        self.client = api.admin()
        self.notes: list[tuple[str, dict]] = []
        self.log = log
        self.name = name
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.election = Election(
            self.client,
            "triomesh-system",
            "writers",
            name,
            random.Random(name),
            lease_s=1.0,
            renew_deadline_s=0.5,
            retry_s=0.1,
            on_note=lambda note, fields: self.notes.append((note, dict(fields))),
        )

    async def lead(self) -> None:
        self.log.append(f"{self.name} leads")
        try:
            await trio.sleep_forever()
        finally:
            self.log.append(f"{self.name} ends")

    async def run(self) -> None:
        async with self.client:
            with self.scope:
                await self.election.run(self.lead)
        self.done.set()


def test_one_leads_and_hands_over_when_it_ends(tmp_path):
    async def test(api: ControlApi) -> None:
        log: list[str] = []
        replicas = [Replica(api, name, log) for name in "abc"]
        async with trio.open_nursery() as nursery:
            for one in replicas:
                nursery.start_soon(one.run)
            await until(lambda: log)
            first = next(one for one in replicas if one.election.leading)
            assert sum(one.election.leading for one in replicas) == 1
            first.scope.cancel()
            await first.done.wait()
            await until(lambda: len(log) == 3)
            second = next(one for one in replicas if one.election.leading)
            assert log == [f"{first.name} leads", f"{first.name} ends", f"{second.name} leads"]
            async with api.admin() as client:
                spec = (await client.get(LEASES, "writers", "triomesh-system"))["spec"]
            assert spec["holderIdentity"] == second.name
            assert spec["leaseTransitions"] == 2
            await until(lambda: all(o.election.leader == second.name for o in replicas if o is not first))
            nursery.cancel_scope.cancel()
        async with api.admin() as client:
            spec = (await client.get(LEASES, "writers", "triomesh-system"))["spec"]
        assert spec["holderIdentity"] == ""

    run_api(tmp_path, test)


def test_a_leader_that_cannot_renew_stops_leading_before_the_lease_ends(tmp_path):
    async def test(api: ControlApi) -> None:
        log: list[str] = []
        one = Replica(api, "a", log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            await until(lambda: log)
            await api.stop()
            await until(lambda: log == ["a leads", "a ends"])
            assert not one.election.leading
            lost = next(fields for name, fields in one.notes if name == "lease.lost")
            assert lost["error"] == "not renewed within 0.5 s"
            await api.start()
            await until(lambda: log[2:] == ["a leads"])
            nursery.cancel_scope.cancel()

    run_api(tmp_path, test)


def test_a_lease_is_taken_only_after_its_holder_was_silent(tmp_path):
    async def test(api: ControlApi) -> None:
        log: list[str] = []
        async with api.admin() as client:
            # dated far in the past by a machine whose clock is wrong: it is held all the same
            spec = {
                "holderIdentity": "other",
                "leaseDurationSeconds": 1,
                "renewTime": "2001-01-01T00:00:00.000000Z",
                "acquireTime": "2001-01-01T00:00:00.000000Z",
            }
            await client.create(LEASES, {"metadata": {"name": "writers"}, "spec": spec}, "triomesh-system")
            one = Replica(api, "a", log)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.run)
                started = trio.current_time()
                await until(lambda: one.election.leader == "other")
                assert log == []
                await until(lambda: log)
                assert trio.current_time() - started > 1.0, "not before its duration"
                nursery.cancel_scope.cancel()

    run_api(tmp_path, test)


def test_events_are_written_and_repetitions_counted(tmp_path):
    async def test(api: ControlApi) -> None:
        async with api.admin() as client, trio.open_nursery() as nursery:
            recorder = Recorder(client, "triomesh-control", "control-1", random.Random(1))
            nursery.start_soon(recorder.run)
            about = About("v1", "Pod", "web-1", "default", "uid-1")
            recorder.record(about, "Warning", "InjectionSkipped", "hostNetwork")
            recorder.record(about, "Warning", "InjectionSkipped", "hostNetwork")
            recorder.record(About("v1", "Namespace", "shop"), "Normal", "Labelled", "x" * 3000)
            found: list[dict] = []
            with trio.fail_after(5):
                while sum(one["count"] for one in found) < 3:
                    found = await client.list(EVENTS, "default")
                    await trio.sleep(0.01)
            first, second = sorted(found, key=lambda one: one["reason"])
            assert (first["reason"], first["count"], first["message"]) == (
                "InjectionSkipped",
                2,
                "hostNetwork",
            )
            assert first["involvedObject"]["uid"] == "uid-1"
            assert len(second["message"]) == 1024
            assert recorder.dropped == 0
            nursery.cancel_scope.cancel()

    run_api(tmp_path, test)


def test_events_that_cannot_be_written_are_counted(tmp_path):
    async def test(api: ControlApi) -> None:
        await api.account("bot", "default")
        token = await api.token("bot", "default", audience=api.api_audience)
        notes: list[dict] = []
        client: Client = api.user(token)
        async with client, trio.open_nursery() as nursery:
            recorder = Recorder(
                client, "c", "i", random.Random(1), on_note=lambda _, fields: notes.append(dict(fields))
            )
            about = About("v1", "Pod", "p", "default")
            for number in range(300):
                recorder.record(about, "Normal", "R", str(number))
            assert recorder.dropped == 44
            nursery.start_soon(recorder.run)
            await until(lambda: recorder.dropped == 300)
            assert 'cannot create resource "events"' in notes[0]["error"]
            nursery.cancel_scope.cancel()

    run_api(tmp_path, test)
