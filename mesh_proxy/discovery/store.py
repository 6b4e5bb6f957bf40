"""The one owner of the configuration: an immutable snapshot, swapped whole, and the look-up over it.

A look-up has three answers: the destination (or pod) that owns the address, `Absent.NOT_IN_MESH`, or
`Absent.NO_ANSWER` while nobody who knows has spoken. Only a synced source can say that an address is not in
the mesh.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import trio

from mesh_api.sidecar import Destination, EgressMode, MtlsMode, Pod, Protocol, Snapshot, TlsMode
from mesh_proxy.net.addr import Addr


class Absent(enum.Enum):
    """Why a look-up found nothing."""

    NOT_IN_MESH = "not in the mesh"
    NO_ANSWER = "no answer"


Answer = Destination | Pod | Absent


class ConfigStore:
    """Holds the last good snapshot; `generation` rises with each swap."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.generation = 0
        self._destinations: dict[Addr, Destination] = {}
        self._pods: dict[str, Pod] = {}
        self._inbound_mtls: dict[int, MtlsMode] = {}
        self._inbound_protocols: dict[int, Protocol] = {}
        self._changed = trio.Event()

    def swap(self, snapshot: Snapshot) -> None:
        """Put a validated snapshot in force."""
        self._destinations = {
            Addr(ip, dest.port): dest for dest in snapshot.destinations for ip in dest.addresses
        }
        self._pods = {ip: pod for pod in snapshot.pods for ip in pod.addresses}
        self._inbound_mtls = {int(port): mode for port, mode in snapshot.inbound.port_mtls.items()}
        self._inbound_protocols = {int(port): p for port, p in snapshot.inbound.protocols.items()}
        self.snapshot = snapshot
        self.generation += 1
        self._changed.set()
        self._changed = trio.Event()

    def lookup(self, addr: Addr) -> Answer:
        """Who owns an address, now."""
        dest = self._destinations.get(addr)
        if dest is not None:
            return dest
        pod = self._pods.get(addr.ip)
        if pod is not None:
            return pod
        if self.snapshot is not None and self.snapshot.synced:
            return Absent.NOT_IN_MESH
        return Absent.NO_ANSWER

    async def resolve(self, addr: Addr, wait_s: float) -> Answer:
        """Who owns an address; waits up to `wait_s` seconds for an answer."""
        answer = self.lookup(addr)
        if answer is not Absent.NO_ANSWER:
            return answer
        with trio.move_on_after(wait_s):
            while answer is Absent.NO_ANSWER:
                await self._changed.wait()
                answer = self.lookup(addr)
        return answer

    async def wait_changed(self, generation: int) -> None:
        """Return once the generation is another than `generation`."""
        while self.generation == generation:
            await self._changed.wait()

    def destinations(self) -> Iterable[Destination]:
        """Every destination in force."""
        return self.snapshot.destinations if self.snapshot is not None else ()

    def is_mesh_pod(self, ip: str) -> bool:
        """Whether the address belongs to a pod that has a sidecar."""
        pod = self._pods.get(ip)
        return pod is not None and pod.tls is TlsMode.MESH

    def inbound_mtls(self, port: int) -> MtlsMode:
        """What this pod's port accepts. Nothing known yet: STRICT, which fails closed."""
        if self.snapshot is None:
            return MtlsMode.STRICT
        return self._inbound_mtls.get(port, self.snapshot.inbound.mtls)

    def inbound_protocol(self, port: int) -> Protocol:
        """What this pod's port is declared to speak."""
        return self._inbound_protocols.get(port, Protocol.AUTO)

    @property
    def egress(self) -> EgressMode:
        """What happens to addresses outside the mesh."""
        return self.snapshot.egress if self.snapshot is not None else EgressMode.REFUSE

    @property
    def access_log(self) -> bool:
        """Whether every request and connection is logged."""
        return self.snapshot is not None and self.snapshot.access_log
