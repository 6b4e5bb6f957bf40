"""From Kubernetes objects to a sidecar's answers: index, compiler, stream and store together."""

from collections.abc import Callable, Collection

import trio

from mesh_api.sidecar import Destination, Pod
from mesh_control.compile import Compiler, Mesh
from mesh_control.index.changes import Changes
from mesh_control.index.state import Index
from mesh_proxy.discovery.contents import Absent
from mesh_proxy.net.addr import Addr
from tests.support.control_objects import endpoint, node, pod, read, service, slice_of
from tests.support.discovery import control_plane, streamed
from tests.support.mesh import TRUST_DOMAIN, TestCa, run, wait_until

VIP = Addr("10.96.0.10", 80)


class IndexSource:
    """The index as the stream's source."""

    def __init__(self) -> None:
        self.index = Index(TRUST_DOMAIN, ["10.96.0.0/16"])
        self.lookup = Compiler(self.index, Mesh(TRUST_DOMAIN, "")).lookup
        self._callbacks: list[Callable[[Collection[str]], None]] = []

    async def wait_synced(self) -> None:
        await trio.lowlevel.checkpoint()

    def current(self) -> bool:
        return True

    def subscribe(self, callback: Callable[[Collection[str]], None]) -> None:
        self._callbacks.append(callback)

    def put(self, kind, obj) -> None:
        self._tell(self.index.apply(read(kind, obj)))

    def delete(self, kind, name, namespace="shop") -> None:
        self._tell(self.index.delete(kind, namespace, name))

    def _tell(self, changes: Changes) -> None:
        keys = (*changes.keys, "address/") if changes.networks else tuple(changes.keys)
        for callback in self._callbacks:
            callback(keys)


def test_objects_become_answers():
    async def main():
        ca, source = TestCa(), IndexSource()
        source.put("Node", node("n1", "10.244.0.0/24"))
        source.put("Pod", pod("client", "10.244.0.2", account="client"))
        source.put("Pod", pod("web-1", "10.244.0.3"))
        async with control_plane(ca, source) as plane, streamed(ca, plane) as side:
            store = side.app.store
            await wait_until(lambda: not side.app.not_ready())
            assert store.snapshot.workload.service_account == "client"
            assert await store.resolve(VIP, 0.4) is Absent.NO_ANSWER, "of the cluster, and nobody's yet"
            assert await store.resolve(Addr("93.184.215.14", 443), 2) is Absent.NOT_IN_MESH

            source.put("Service", service("web", VIP.ip))
            source.put("EndpointSlice", slice_of("web", endpoint("10.244.0.3", "web-1")))
            await wait_until(
                lambda: isinstance(store.lookup(VIP), Destination) and store.lookup(VIP).endpoints
            )
            [one] = store.lookup(VIP).endpoints
            assert (one.address, one.identity) == ("10.244.0.3", "spiffe://cluster.local/ns/shop/sa/web")

            addr = Addr("10.244.0.3", 8080)
            first = await store.resolve(addr, 2)
            assert isinstance(first, Pod)
            assert first.identity == one.identity
            source.delete("Pod", "web-1")
            await wait_until(lambda: store.lookup(addr) is Absent.NO_ANSWER)
            source.put("Pod", pod("other-1", addr.ip, account="other"))
            await wait_until(lambda: isinstance(store.lookup(addr), Pod))
            assert store.lookup(addr).identity == "spiffe://cluster.local/ns/shop/sa/other"

            source.delete("Service", "web")
            await wait_until(lambda: store.lookup(VIP) is Absent.NO_ANSWER)
            assert store.dump().destinations == ()
            source.put(
                "Pod", pod("client", "10.244.0.2", account="client", deletionTimestamp="2026-01-02T00:00:00Z")
            )
            await wait_until(lambda: side.app.runtime.draining)

    run(main)
