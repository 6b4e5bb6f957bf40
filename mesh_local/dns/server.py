"""The cluster's DNS server, on UDP and TCP of the node's addresses."""

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import trio

from mesh_local.dns.answer import answer
from mesh_local.dns.records import Index, Zones, build
from mesh_local.machinery.objects import Object
from mesh_local.network import namespace
from mesh_local.network.node import NodeNetwork
from mesh_local.network.types import ObjectSource

logger = logging.getLogger(__name__)

PORT: Final = 53
_LARGEST_QUERY: Final = 4096
_CONNECTIONS: Final = 64
_IDLE_S: Final = 10.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_EXHAUSTED_PAUSE_S: Final = 0.1


class ClusterNames:
    """The index of names, made anew when it is asked for after a change."""

    def __init__(
        self, zones: Zones, services: ObjectSource, slices: ObjectSource, pods: ObjectSource
    ) -> None:
        """Take over copies of `services`, `endpointslices.discovery.k8s.io` and `pods`."""
        self._zones = zones
        self._sources = (services, slices, pods)
        self._index: Index | None = None
        for source in self._sources:
            source.on_change(self._on_change)

    async def wait_synced(self) -> None:
        """Until then, names that exist would be denied."""
        for source in self._sources:
            await source.synced.wait()

    def _on_change(self, _old: Object | None, _new: Object | None) -> None:
        self._index = None

    def current(self) -> Index:
        if self._index is None:
            self._index = build(self._zones, *(source.list() for source in self._sources))
        return self._index


async def run_cluster_dns(
    network: NodeNetwork,
    names: ClusterNames,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on the node's addresses until cancelled; started once it answers.

    Raises:
        OSError, NetworkError: an address cannot be bound.
    """
    await names.wait_synced()
    async with AsyncExitStack() as stack:
        sockets, listeners = [], []
        for address in network.node_ips:
            sockets.append(await namespace.open_udp(network.netns, address, PORT))
            stack.callback(sockets[-1].close)
            listeners.append(await namespace.open_listener(network.netns, address, PORT))
            stack.push_async_callback(listeners[-1].aclose)
        task_status.started()
        await serve(sockets, listeners, names.current)


async def serve(
    sockets: Sequence[trio.socket.SocketType],
    listeners: Sequence[trio.SocketListener],
    index: Callable[[], Index],
) -> None:
    """Answer queries until cancelled; `index` gives the records at each. The sockets stay the caller's."""
    limit = trio.Semaphore(_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        for sock in sockets:
            nursery.start_soon(_serve_udp, sock, index)
        for listener in listeners:
            nursery.start_soon(_serve_tcp, listener, index, limit)


def _respond(wire: bytes, index: Callable[[], Index], *, tcp: bool) -> bytes | None:
    """The answer; a query that trips a fault of ours is logged and dropped, the server stays."""
    try:
        return answer(wire, index(), tcp=tcp)
    except Exception:
        logger.exception("A DNS query could not be answered: %s", wire[:_LARGEST_QUERY].hex())
        return None


async def _serve_udp(sock: trio.socket.SocketType, index: Callable[[], Index]) -> None:
    while True:
        wire, peer = await sock.recvfrom(_LARGEST_QUERY)
        response = _respond(wire, index, tcp=False)
        if response is None:
            continue
        try:
            await sock.sendto(response, peer)
        except OSError as error:
            # A pod that is gone, a full buffer, a made-up source port: the others still want answers.
            logger.debug("A DNS answer to %s was not sent: %s", peer, error)


async def _serve_tcp(
    listener: trio.SocketListener, index: Callable[[], Index], limit: trio.Semaphore
) -> None:
    async def converse(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                while await _exchange(stream, index):
                    pass
            except (trio.BrokenResourceError, trio.TooSlowError):
                return  # the client went away, or is idle: it may ask again on a new connection
            finally:
                limit.release()

    async with trio.open_nursery() as nursery:
        while True:
            await limit.acquire()
            try:
                stream = await listener.accept()
            except BaseException as error:
                limit.release()
                if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
                    raise
                logger.error("A DNS connection was not accepted: %s", error)
                await trio.sleep(_EXHAUSTED_PAUSE_S)
                continue
            nursery.start_soon(converse, stream)


async def _exchange(stream: trio.SocketStream, index: Callable[[], Index]) -> bool:
    """One query and its answer (RFC 7766); False at the end of the conversation."""
    with trio.fail_after(_IDLE_S):
        length = int.from_bytes(await _read(stream, 2))
        wire = await _read(stream, length) if 0 < length <= _LARGEST_QUERY else b""
        response = _respond(wire, index, tcp=True)
        if response is None:
            return False
        await stream.send_all(len(response).to_bytes(2) + response)
        return True


async def _read(stream: trio.SocketStream, size: int) -> bytes:
    """Exactly `size` bytes, or none at the end of the stream."""
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            return b""
        data += piece
    return data
