"""The one owner of the configuration, and the look-up over it.

From a file: an immutable snapshot, swapped whole. From the control plane: parts that are asked for when they
are first used (`demand`) and kept up to date by increments (`contents`).

A look-up has three answers: the destination (or pod) that owns the address, `Absent.NOT_IN_MESH`, or
`Absent.NO_ANSWER` while nobody who knows has spoken. Only a synced source can say that an address is not in
the mesh. What was answered stays in force while the control plane is away.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from mesh_api.discovery import MAX_KEYS, Held, Update, WorkloadConfig, address_key
from mesh_api.keys import DestinationName, Family
from mesh_api.sidecar import Destination, EgressMode, MtlsMode, Protocol, Snapshot, TlsMode
from mesh_proxy.discovery.contents import Absent, Answer, Changes, Contents
from mesh_proxy.discovery.demand import Demand
from mesh_proxy.net.addr import Addr

RATE_WAIT_S = 0.1


class _Waiting:
    """Those who wait for the answer to one key."""

    __slots__ = ("count", "event")

    def __init__(self) -> None:
        self.count = 0
        self.event = trio.Event()


class ConfigStore:
    """Holds what is in force; `generation` rises with each change."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        """From a file: everything. From the control plane: the sidecar's own part; see `dump`."""
        self.generation = 0
        self._answers: dict[Addr, Answer] = {}
        self._pods: dict[str, Answer] = {}
        self._named: dict[str, Destination] = {}
        self._peers: dict[str, bool] = {}
        self._inbound_mtls: dict[int, MtlsMode] = {}
        self._inbound_protocols: dict[int, Protocol] = {}
        self._changed = trio.Event()

    def swap(self, snapshot: Snapshot) -> None:
        """Put a validated snapshot in force."""
        self._answers = {Addr(ip, dest.port): dest for dest in snapshot.destinations for ip in dest.addresses}
        self._pods = {ip: pod for pod in snapshot.pods for ip in pod.addresses}
        self._named = {_name(dest): dest for dest in snapshot.destinations}
        self._peers = {ip: pod.tls is TlsMode.MESH for pod in snapshot.pods for ip in pod.addresses}
        self._set_own(snapshot)
        self._bump()

    def lookup(self, addr: Addr) -> Answer:
        """Who owns an address, now."""
        found = self._answers.get(addr)
        return found if found is not None else self._missing(addr)

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

    def forgot(self, addr: Addr) -> bool:
        """Whether an address without an answer may have lost it only because it was not dialled for long."""
        return False

    def destination_by_key(self, key: str) -> Destination | None:
        """The destination of a name NAMESPACE/NAME:PORT[/FAMILY[/NODE]], as routes give it, if it is held."""
        return self._named.get(key)

    async def wait_changed(self, generation: int) -> None:
        """Return once the generation is another than `generation`."""
        while self.generation == generation:
            await self._changed.wait()

    def is_mesh_pod(self, ip: str) -> bool:
        """Whether the address is known to belong to a pod that has a sidecar."""
        return self._peers.get(ip, False)

    async def resolve_peer(self, ip: str, wait_s: float) -> bool:
        """The same, asking for it if need be; waits up to `wait_s` seconds."""
        await trio.lowlevel.checkpoint()
        return self.is_mesh_pod(ip)

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

    @property
    def subscriptions(self) -> int:
        """How many keys the control plane was asked for."""
        return 0

    def dump(self) -> Snapshot | None:
        """Everything that is in force."""
        return self.snapshot

    def _missing(self, addr: Addr) -> Answer:
        pod = self._pods.get(addr.ip)
        if pod is not None:
            return pod
        if self.snapshot is not None and self.snapshot.synced:
            return Absent.NOT_IN_MESH
        return Absent.NO_ANSWER

    def _set_own(self, snapshot: Snapshot) -> None:
        self._inbound_mtls = {int(port): mode for port, mode in snapshot.inbound.port_mtls.items()}
        self._inbound_protocols = {int(port): p for port, p in snapshot.inbound.protocols.items()}
        self.snapshot = snapshot

    def _bump(self) -> None:
        self.generation += 1
        self._changed.set()
        self._changed = trio.Event()


class StreamStore(ConfigStore):
    """A store that the discovery stream feeds, and that asks it for what is used."""

    def __init__(self, trust_domain: str, on_changes: Callable[[Changes], None]) -> None:
        """`on_changes` is called after each change of the store, in the same step."""
        super().__init__()
        self._demand = Demand()
        self._contents = Contents(trust_domain, self._demand.wants)
        self._answers = self._contents.answers
        self._peers = self._contents.peers
        self._on_changes = on_changes
        self._waiting: dict[Addr | str, _Waiting] = {}
        self._asked = trio.Event()

    # -- for the data path ---------------------------------------------------------------------------------

    async def resolve(self, addr: Addr, wait_s: float) -> Answer:
        """Who owns an address. One that is new is asked for; what is known is kept from being forgotten."""
        answer = self.lookup(addr)
        if answer is not Absent.NO_ANSWER:
            self._demand.use(address_key(*addr))
            return answer
        with trio.move_on_after(wait_s):
            while answer is Absent.NO_ANSWER:
                await self._answer_to(addr, self._demand.address(addr, trio.current_time()))
                answer = self.lookup(addr)
        return answer

    async def resolve_peer(self, ip: str, wait_s: float) -> bool:
        with trio.move_on_after(wait_s):
            while ip not in self._peers:
                await self._answer_to(ip, self._demand.peer(ip, trio.current_time()))
        return self.is_mesh_pod(ip)

    def forgot(self, addr: Addr) -> bool:
        return not self._demand.wants(address_key(*addr))

    def destination_by_key(self, key: str) -> Destination | None:
        return self._contents.destination(key)

    def dump(self) -> Snapshot | None:
        if self.snapshot is None:
            return None
        contents = self._contents
        return msgspec.structs.replace(
            self.snapshot, destinations=contents.destinations(), pods=contents.pods()
        )

    def _missing(self, addr: Addr) -> Answer:
        return Absent.NO_ANSWER

    # -- for the stream ------------------------------------------------------------------------------------

    def apply(self, update: Update) -> None:
        """Put an update in force, whole. Raises ConfigError, and then nothing has changed."""
        self._commit(self._contents.apply(update))

    async def wait_requests(self) -> None:
        """Return once there is something to subscribe or to unsubscribe."""
        while not self._demand.changed:
            await self._asked.wait()

    def take_requests(self) -> tuple[tuple[Held, ...], tuple[str, ...]]:
        """What to subscribe and to unsubscribe since the last call.

        A key is asked for as if nothing were held of it.
        """
        subscribe, unsubscribe = self._demand.take()
        return tuple(map(Held, subscribe)), tuple(unsubscribe)

    def everything(self) -> tuple[tuple[Held, ...], tuple[Held, ...]]:
        """For a new stream: every wanted key, and what is held through them, with versions."""
        version = self._contents.version
        keys = tuple(Held(key, version(key)) for key in self._demand.everything())
        return keys, self._contents.holds()[:MAX_KEYS]  # what is not named is sent again

    def status(self) -> dict[str, object]:
        """How much is wanted and held."""
        return {"subscriptions": self._demand.counts(), "held": len(self._contents)}

    @property
    def subscriptions(self) -> int:
        return len(self._demand)

    # -- inside --------------------------------------------------------------------------------------------

    def _commit(self, changes: Changes) -> None:
        if changes.own is not None:
            self._set_own(_own_part(changes.own))
        self._bump()
        for who in changes.answered:
            if isinstance(who, Addr) and who in self._answers:
                self._demand.learnt(who, self._answers[who] is not Absent.NOT_IN_MESH)
            waiting = self._waiting.pop(who, None)
            if waiting is not None:
                waiting.event.set()
        for key in changes.again:
            self._demand.again(key)
        self._on_changes(changes)
        self._trim()

    def _trim(self) -> None:
        evicted = self._demand.evict()
        if evicted:
            changes = self._contents.drop(evicted)
            self._bump()
            self._on_changes(changes)
        if self._demand.changed:
            self._asked.set()
            self._asked = trio.Event()

    async def _answer_to(self, who: Addr | str, asked: bool) -> None:
        """Wait for news about `who`, or for leave to ask if that was refused."""
        if not asked:
            await trio.sleep(RATE_WAIT_S)
            return
        self._trim()
        waiting = self._waiting.get(who)
        if waiting is None:
            waiting = self._waiting[who] = _Waiting()
        waiting.count += 1
        try:
            await waiting.event.wait()
        finally:
            waiting.count -= 1
            if not waiting.count and self._waiting.get(who) is waiting:
                del self._waiting[who]


def _name(dest: Destination) -> str:
    return str(DestinationName(dest.namespace, dest.name, dest.port, dest.family or Family.IPV4))


def _own_part(own: WorkloadConfig) -> Snapshot:
    return Snapshot(
        workload=own.workload,
        trust_domain=own.trust_domain,
        draining=own.draining,
        egress=own.egress,
        path_normalization=own.path_normalization,
        inbound=own.inbound,
        access_log=own.access_log,
    )
