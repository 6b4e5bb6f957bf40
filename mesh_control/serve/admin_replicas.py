"""The other replicas of the control plane: found in the index, asked over mTLS with a deadline."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

import h11
import msgspec
import trio

from certs.events import OnEvent, ignore_event
from certs.verify import PeerRejected, peer_identity
from mesh_api.admin import ADMIN_PREFIX, MAX_ADMIN_BYTES, AdminError
from mesh_api.traffic import Message
from mesh_control.index.objects import Key, Phase, Pod
from mesh_control.serve.admin import Call, Refused

ASK_REPLICA_S = 6.0
"""For a whole exchange; longer than a sidecar has for its answer."""
MAX_REPLICAS = 16
_SAME = ("app.kubernetes.io/name", "app.kubernetes.io/component")
"""Labels that tell the replicas of one Deployment."""

T = TypeVar("T", bound=Message)


class ReplicaError(Exception):
    """A replica gave no answer; the text says why."""


class Answer(NamedTuple):
    """What a replica answered."""

    status: int
    body: bytes


class Gathered(NamedTuple, Generic[T]):
    """What the other replicas know; the one that asks counts itself as one that has answered."""

    replicas: int
    answered: int
    answers: list[T]


def others(pods: Iterable[Pod], own: Key) -> list[Pod]:
    """The replicas besides the pod `own`: running, of the same ServiceAccount and Deployment, by name."""
    known = {pod.key: pod for pod in pods if pod.namespace == own[0]}
    me = known.get(own)
    if me is None:
        return []
    alike = [
        pod
        for pod in known.values()
        if pod is not me
        and pod.ips
        and pod.phase is Phase.RUNNING
        and not pod.deleting
        and pod.service_account == me.service_account
        and all(pod.labels.get(label) == me.labels.get(label) for label in _SAME)
    ]
    return sorted(alike, key=lambda pod: pod.name)[:MAX_REPLICAS]


class Fleet:
    """Asks the other replicas, all at once.

    Args:
        find: the other replicas now; may raise Refused while they cannot be known.
        context: the client's TLS context; None before this replica has a certificate.
        identity: SPIFFE id that each must prove.
    """

    def __init__(
        self,
        find: Callable[[], list[Pod]],
        context: Callable[[], ssl.SSLContext | None],
        identity: str,
        port: int,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self._find = find
        self._context = context
        self._identity = identity
        self._port = port
        self._on_event = on_event

    async def gather(self, call: Call, kind: type[T], within_s: float = ASK_REPLICA_S) -> Gathered[T]:
        """The answers of the other replicas to the same question."""
        pods = self._find()
        found: list[T] = []

        async def ask(pod: Pod) -> None:
            try:
                answer = await self._ask(pod, call, within_s)
                if answer.status != 200:
                    raise ReplicaError(_reason(answer))
                found.append(msgspec.json.decode(answer.body, type=kind))
            except (ReplicaError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                self._on_event("admin.replica-failed", {"replica": pod.name, "error": str(exc)[:300]})

        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(ask, pod)
        return Gathered(1 + len(pods), 1 + len(found), found)

    async def forward(self, call: Call, within_s: float = ASK_REPLICA_S) -> bytes | None:
        """The answer of the one replica that does not say 404; None where all say so. Raises Refused."""
        pods = self._find()
        found: list[Answer] = []
        silent: list[str] = []
        async with trio.open_nursery() as nursery:

            async def ask(pod: Pod) -> None:
                try:
                    answer = await self._ask(pod, call, within_s)
                except ReplicaError as exc:
                    silent.append(f"{pod.name}: {exc}")
                    return
                if answer.status != 404:
                    found.append(answer)
                    nursery.cancel_scope.cancel()

            for pod in pods:
                nursery.start_soon(ask, pod)
        if found:
            if found[0].status == 200:
                return found[0].body
            raise Refused(found[0].status, _reason(found[0]))
        if silent:
            raise Refused(
                503, f"it may be connected to a replica that did not answer: {'; '.join(silent)}"[:500]
            )
        return None

    async def _ask(self, pod: Pod, call: Call, within_s: float) -> Answer:
        target = ADMIN_PREFIX + call.path + "?" + urlencode({**call.query, "local": "1"})
        try:
            with trio.fail_after(within_s):
                return await self._exchange(pod.ips[0], call.method, target)
        except trio.TooSlowError:
            raise ReplicaError(f"no answer within {within_s:g} s") from None
        except (OSError, trio.BrokenResourceError, h11.ProtocolError) as exc:
            raise ReplicaError(str(exc.__cause__ or exc)[:300]) from None

    async def _exchange(self, ip: str, method: str, target: str) -> Answer:
        context = self._context()
        if context is None:
            raise ReplicaError("this replica has no certificate yet")
        transport = await trio.open_tcp_stream(ip, self._port)
        stream = trio.SSLStream(transport, context, https_compatible=True)
        try:
            await stream.do_handshake()
            self._check(stream.getpeercert())
            headers = [("host", "triomesh-control"), ("content-length", "0")]
            parser = h11.Connection(h11.CLIENT)
            await stream.send_all(parser.send(h11.Request(method=method, target=target, headers=headers)))
            parser.send(h11.EndOfMessage())
            return await _read(stream, parser)
        finally:
            await trio.aclose_forcefully(stream)

    def _check(self, certificate: Mapping[str, object]) -> None:
        try:
            peer = peer_identity(certificate, self._identity.split("/")[2])
        except PeerRejected as exc:
            raise ReplicaError(str(exc)) from None
        if peer.identity != self._identity:
            raise ReplicaError(f"expected {self._identity}, the peer is {peer.identity}")


async def _read(stream: trio.abc.ReceiveStream, parser: h11.Connection) -> Answer:
    status = 0
    body = bytearray()
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(bytes(await stream.receive_some(64 * 1024)))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_ADMIN_BYTES:
                raise ReplicaError(f"expected an answer of at most {MAX_ADMIN_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, bytes(body))
        else:
            raise ReplicaError("the connection ended before its answer")


def _reason(answer: Answer) -> str:
    try:
        return msgspec.json.decode(answer.body, type=AdminError).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return f"HTTP {answer.status}"
