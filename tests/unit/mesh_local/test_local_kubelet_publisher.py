"""Writing status: only what has changed, over what others wrote, and not to another pod."""

from typing import Any, cast

import pytest
import trio

from mesh_local.client import Client
from mesh_local.kubelet.publisher import PodGone, publish, remove
from mesh_local.machinery.errors import STALE, ApiError, conflict, not_found
from mesh_local.machinery.objects import Object


def pod(version: int, uid: str = "u", **status: Any) -> Object:
    return {
        "metadata": {"name": "p", "namespace": "t", "uid": uid, "resourceVersion": str(version)},
        "status": status,
    }


class Server:
    """One pod, with optimistic locking."""

    def __init__(self, present: Object | None) -> None:
        self.present = present
        self.writes = 0
        self.deleted: list[dict[str, Any]] = []

    async def get(self, resource: str, name: str, namespace: str = "") -> Object:
        if self.present is None:
            raise not_found("pods", "", "p")
        return self.present

    async def update(self, resource: str, obj: Object, *, subresource: str = "") -> Object:
        present = await self.get("pods", "p")
        assert subresource == "status"
        if present["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise conflict("pods", "", "p", STALE)
        self.writes += 1
        self.present = pod(int(present["metadata"]["resourceVersion"]) + 1, **obj["status"])
        return self.present

    async def delete(self, resource: str, name: str, namespace: str = "", **options: Any) -> Object:
        self.deleted.append(options)
        raise not_found("pods", "", "p") if self.present is None else conflict("pods", "", "p", "uid")


def written(server: Server, known: Object) -> Object:
    def build(found: Object) -> Object:
        return {"phase": "Running", "others": found["status"].get("others"), "absent": None}

    return trio.run(publish, cast(Client, server), known, build)


def test_a_status_that_is_there_is_not_written() -> None:
    server = Server(pod(5, phase="Running", others=1))
    assert written(server, pod(5, phase="Running", others=1)) == pod(5, phase="Running", others=1)
    assert server.writes == 0


def test_a_conflict_takes_over_what_others_wrote() -> None:
    server = Server(pod(7, phase="Pending", others="gate"))
    found = written(server, pod(5, phase="Pending"))
    assert (found["status"]["phase"], found["status"]["others"]) == ("Running", "gate")
    assert server.writes == 1


@pytest.mark.parametrize("present", [None, pod(9, uid="another")])
def test_a_pod_that_is_gone(present: Object | None) -> None:
    with pytest.raises(PodGone):
        written(Server(present), pod(5))


def test_a_pod_is_removed_with_its_uid_only() -> None:
    for present in (None, pod(9, uid="another")):
        server = Server(present)
        trio.run(remove, cast(Client, server), pod(5))
        assert server.deleted == [{"grace_s": 0, "uid": "u"}]


def test_a_write_that_always_conflicts_ends() -> None:
    class Busy(Server):
        async def update(self, resource: str, obj: Object, *, subresource: str = "") -> Object:
            raise conflict("pods", "", "p", STALE)

    with pytest.raises(trio.TooSlowError):
        written(Busy(pod(5)), pod(5))
    with pytest.raises(ApiError):
        trio.run(Busy(pod(5)).update, "pods", {})
