"""Memory of a control group, and what a sidecar near its end refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from mesh_proxy.net import cgroup
from mesh_proxy.net.cgroup import Memory, Usage
from mesh_proxy.net.pressure import (
    BRISK_S,
    CALM_S,
    HEADROOM,
    NO_BOUND,
    RELEASE_EVERY_S,
    Pressure,
)
from tests.support.cgroup import MIB, group

V1_NONE = 9223372036854771712


def test_no_group_and_no_limit(tmp_path: Path) -> None:
    assert Memory(str(tmp_path)).read() == Usage(0, 0)
    assert Memory(str(group(tmp_path / "a", "max", 5 * MIB))).read() == Usage(0, 0)
    assert Memory(str(group(tmp_path / "b", V1_NONE, 5 * MIB, version=1))).read() == Usage(0, 0)
    assert Usage(0, 0).percent == 0.0


@pytest.mark.parametrize("version", [1, 2])
def test_file_pages_that_can_be_given_up_do_not_count(tmp_path: Path, version: int) -> None:
    place = group(tmp_path, 100 * MIB, 95 * MIB, inactive=30 * MIB, version=version)
    assert Memory(str(place)).read() == Usage(65 * MIB, 100 * MIB)
    # Where it cannot matter the costlier file is left alone.
    assert Memory(str(place)).read(above_percent=95.0) == Usage(95 * MIB, 100 * MIB)


def test_a_limit_that_comes_and_goes(tmp_path: Path) -> None:
    """A limit can be changed in place (KEP-1287), and a file may be gone or odd at any time."""
    memory = Memory(str(group(tmp_path, "max", 5 * MIB)))
    (tmp_path / "memory.max").write_text(f"{10 * MIB}\n")
    assert memory.read().percent == 50.0
    (tmp_path / "memory.current").write_text("what?\n")
    assert memory.read().percent == 0.0
    (tmp_path / "memory.max").unlink()
    assert memory.read() == Usage(0, 0)


def test_more_reclaimable_than_used_is_nothing_used(tmp_path: Path) -> None:
    assert Memory(str(group(tmp_path, 10 * MIB, MIB, inactive=2 * MIB))).read().used == 0


def own(tmp_path: Path, lines: str) -> Path:
    (tmp_path / "own").write_text(lines)
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("lines", "version", "at"),
    [
        ("0::/\n", 2, "."),
        ("0::/pods/mine\n", 2, "pods/mine"),
        ("0::/pods/mine\n", 2, "pods"),
        ("0::/of/the/host\n", 2, "."),
        ("0::/../../other\n", 2, "."),
        ("3:cpu,cpuacct:/x\n2:memory:/pods/mine\n0::/\n", 1, "memory/pods/mine"),
        ("1:name=systemd:/y\n2:memory:/docker/abc\n", 1, "memory"),
    ],
)
def test_where_the_group_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, version: int, at: str
) -> None:
    mount = tmp_path / "cgroup"
    (mount / "pods" / "mine").mkdir(parents=True)
    group(mount / at, 100 * MIB, 40 * MIB, version=version)
    monkeypatch.setattr(cgroup, "MOUNT", mount)
    monkeypatch.setattr(cgroup, "OWN", own(tmp_path, lines))
    assert Memory().read() == Usage(40 * MIB, 100 * MIB)


def test_the_level_that_is_nearest_to_its_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = tmp_path / "cgroup"
    group(mount / "pod", 100 * MIB, 90 * MIB)
    group(mount / "pod" / "container", 50 * MIB, 10 * MIB)
    monkeypatch.setattr(cgroup, "MOUNT", mount)
    monkeypatch.setattr(cgroup, "OWN", own(tmp_path, "0::/pod/container\n"))
    assert Memory().read() == Usage(90 * MIB, 100 * MIB)


class Scene:
    def __init__(self, tmp_path: Path, percent: float = 90, descriptors: int = NO_BOUND) -> None:
        self.place = group(tmp_path / "group", 100 * MIB, 50 * MIB)
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.released = 0
        self.spare = 0
        self.pressure = Pressure(
            10, descriptors, percent, Memory(str(self.place)), self._release, self._on_event
        )

    def use(self, mib: int) -> None:
        group(self.place, 100 * MIB, mib * MIB)

    def _release(self) -> None:
        self.released += 1
        if self.spare:
            self.use(self.spare)

    def _on_event(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        self.events.append((event, fields))


def test_memory_is_given_back_before_anybody_is_refused(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.spare = 60
    scene.use(95)
    assert scene.pressure.look(100.0) == 60.0
    assert scene.released == 1
    assert not scene.pressure.short
    assert scene.events == []


def test_short_memory_refuses_until_it_is_five_points_lower(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    pressure = scene.pressure
    assert pressure.refusal(5, 0) == ""
    scene.use(90)
    pressure.look(100.0)
    assert pressure.refusal(5, 0) == "memory"
    for mib in (89, 85):
        scene.use(mib)
        pressure.look(101.0)
        assert pressure.short
    scene.use(84)
    pressure.look(102.0)
    assert pressure.refusal(5, 0) == ""
    assert [event for event, _ in scene.events] == ["memory is short", "memory is free again"]


def test_a_low_percentage_can_be_left_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, percent=3)
    scene.pressure.look(100.0)
    assert scene.pressure.short
    scene.use(1)
    scene.pressure.look(101.0)
    assert not scene.pressure.short


def test_releasing_is_not_tried_all_the_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.use(99)
    for step in range(50):
        scene.pressure.look(100.0 + step * 0.1)
    assert scene.released == 1
    scene.pressure.look(100.0 + RELEASE_EVERY_S)
    assert scene.released == 2
    assert len(scene.events) == 1


def test_nothing_is_followed_without_a_limit_or_a_percentage(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            await Scene(tmp_path, percent=0).pressure.watch()
            scene = Scene(tmp_path)
            group(scene.place, "max", MIB)
            await scene.pressure.watch()

    trio.run(main)


def test_the_watch_follows_and_looks_more_often_near_the_limit(tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.pressure.watch)
            await trio.testing.wait_all_tasks_blocked()
            scene.use(80)
            await trio.sleep(CALM_S * 1.5)
            scene.use(95)
            await trio.sleep(BRISK_S * 1.5)
            assert scene.pressure.short
            scene.use(20)
            await trio.sleep(BRISK_S * 1.5)
            assert not scene.pressure.short
            nursery.cancel_scope.cancel()
        assert scene.events[0][0] == "memory limit"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_headroom_of_descriptors(tmp_path: Path) -> None:
    small = Scene(tmp_path, descriptors=400).pressure
    assert (small.accept_below, small.dial_below) == (300, 350)
    assert small.refusal(299, 0) == ""
    assert small.refusal(300, 0) == "descriptors"
    assert small.refusal(5, 10) == "too-many-connections"
    large = Scene(tmp_path, descriptors=100_000).pressure
    assert large.accept_below == 100_000 - HEADROOM


def test_too_few_descriptors_for_the_limit_are_told(tmp_path: Path) -> None:
    scene = Scene(tmp_path, percent=0, descriptors=20)
    trio.run(scene.pressure.watch)
    assert scene.events == [
        ("descriptors allow fewer connections than the limit", {"descriptors": 15, "connections": 10})
    ]


def test_a_reason_is_logged_once_in_a_while_and_counted_meanwhile(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for step in range(101):
        scene.pressure.say("memory", 50.0 + step * 0.1, connections=7)
    scene.pressure.say("descriptors", 51.0)
    first, second, other = scene.events
    assert first == ("new connections refused", {"reason": "memory", "connections": 7})
    assert second[1]["unsaid_before"] == 99
    assert other[1]["reason"] == "descriptors"
