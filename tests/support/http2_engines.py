"""Engines in memory: made by name, fed, drained, and joined to each other."""

from __future__ import annotations

from collections.abc import Iterable

from mesh_proxy.wire.http2 import engines
from mesh_proxy.wire.http2.seam import DATA, Engine, Event, Http2Error, Http2Limits, RequestFields
from tests.support import http2_frames as h2
from tests.support.http2_frames import Frame

_MAKE = {name: engines.load(name).make for name in engines.NAMES}


def make(name: str, *, server: bool, limits: Http2Limits | None = None) -> Engine:
    """An engine of this name; that it cannot be had is an error, not a reason to skip."""
    return _MAKE[name](server, limits or Http2Limits())


def drained(engine: Engine) -> bytes:
    """All that is to be sent now."""
    return b"".join(iter(engine.drain, b""))


def answers(engine: Engine) -> list[Frame]:
    """The frames that are to be sent now."""
    return h2.read_frames(drained(engine))


def greeted(name: str, *, server: bool = True, limits: Http2Limits | None = None) -> Engine:
    """An engine whose peer has sent its preface and acknowledged ours; nothing is left to drain."""
    engine = make(name, server=server, limits=limits)
    engine.feed((h2.PREFACE if server else b"") + h2.settings() + h2.settings_ack(), 0.0)
    drained(engine)
    return engine


def request(method: bytes = b"GET", path: bytes = b"/", block: bytes = b"host: a.test\r\n") -> RequestFields:
    """A request to send."""
    return RequestFields(method, b"http", path, b"", block)


def plain(events: Iterable[Event]) -> list[tuple[int, int, object, bool]]:
    """Events to compare: heads as tuples, DATA of a stream that follows DATA of it joined.

    Engines may cut DATA anywhere, so an end that comes alone belongs to the piece before it.
    """
    found: list[tuple[int, int, object, bool]] = []
    open_data: dict[int, int] = {}
    for kind, stream, value, end in events:
        if isinstance(value, RequestFields):
            value = (value.method, value.scheme, value.target, value.protocol, value.block)
        if kind == DATA and stream in open_data:
            at = open_data[stream]
            found[at] = (DATA, stream, found[at][2] + value, end)  # type: ignore[operator]
            continue
        if kind == DATA:
            open_data[stream] = len(found)
        found.append((kind, stream, value, end))
    return found


def consume(engine: Engine, events: Iterable[Event]) -> None:
    """Give all credit back at once."""
    for kind, stream, value, _ in events:
        if kind == DATA and value:
            engine.consumed(0, len(value))  # type: ignore[arg-type]
            engine.consumed(stream, len(value))  # type: ignore[arg-type]


def fed(engine: Engine, data: bytes, now: float = 0.0) -> tuple[list[Event], int | None]:
    """Events, and the code of the connection error if there was one."""
    try:
        return engine.feed(data, now), None
    except Http2Error as error:
        return error.events, error.code


class Pair:
    """A client and a server that are joined; `told` keeps the events of each, in their order."""

    def __init__(self, client: str, server: str, limits: Http2Limits | None = None) -> None:
        self.ends = {
            "client": make(client, server=False, limits=limits),
            "server": make(server, server=True, limits=limits),
        }
        self.client, self.server = self.ends["client"], self.ends["server"]
        self.told: dict[str, list[Event]] = {"client": [], "server": []}
        self.settle()

    def settle(self) -> None:
        """Carry bytes in both directions until neither end has more to say."""
        moved = True
        while moved:
            moved = self._carry("client", "server")
            moved = self._carry("server", "client") or moved

    def passing(self, source: str, data: bytes) -> None:
        """See what is under way from `source`."""

    def came(self, name: str, events: list[Event]) -> None:
        """Take events of one end; here, all DATA is consumed at once."""
        consume(self.ends[name], events)

    def _carry(self, source: str, sink: str) -> bool:
        data = self.ends[source].drain()
        if not data:
            return False
        self.passing(source, data)
        events = self.ends[sink].feed(data, 0.0)
        self.told[sink] += events
        self.came(sink, events)
        return True

    def take(self, name: str) -> list[tuple[int, int, object, bool]]:
        """The events of one end since the last call."""
        events, self.told[name] = self.told[name], []
        return plain(events)
