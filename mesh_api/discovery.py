"""What passes between a sidecar and the control plane on the discovery stream.

Transport: mTLS (TLS 1.3, ALPN `triomesh-discovery/1`), frames of a u32 length (big endian) and one msgpack
message. A sidecar asks for what it uses; the answer to each key is live: it is sent again whenever its
content changes. `version` is a hash of the content, so versions compare across replicas: after a
reconnection the sidecar says what it holds and receives the differences only.

Keys: `workload` (this sidecar's own configuration), `address/IP:PORT` (who owns an address; IPv6 in
brackets), `destination/NAMESPACE/NAME:PORT[/FAMILY[/NODE]]` (keys.py), `pod/IP`. An address that belongs to a
destination or a pod brings that with it, in the same update and live as well, without being asked for; so
does a destination with those that its routes lead to (which bring nothing more).

Order: Hello, Welcome; then Subscribe and Unsubscribe as the sidecar needs them, and one Update at a time,
each answered by Applied before the next; Report and the answers to Ask at any time. Either side may end; the
control plane says why (Goodbye).
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
from collections.abc import Iterator, Mapping

import msgspec

from mesh_api.keys import parse_destination
from mesh_api.sidecar import (
    ConfigError,
    Destination,
    EgressMode,
    Inbound,
    Name,
    Pod,
    Workload,
    check_destination,
    check_own,
    check_pod,
)
from mesh_api.stats import Count, Edge
from mesh_api.traffic import Message, PathNormalization

ALPN_DISCOVERY = "triomesh-discovery/1"
MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_HELLO_BYTES = 4096
MAX_KEYS = 8192
"""Subscriptions of one sidecar."""
MAX_KEY_CHARS = 420
MAX_BUNDLE_CHARS = 192 * 1024
WORKLOAD_KEY = "workload"
REPORT_S = 5.0
MAX_EDGES = 2048
"""In one report."""
MAX_ASKED = 4
MAX_REPLY_PIECE = 1024 * 1024
ASK_S = 4.0
"""For an answer, besides the time that a tap takes."""
MAX_TAP_S = 60.0
PING_S = 10.0
"""The control plane says something at least this often."""
SILENT_S = 25.0
"""A side that has heard nothing for so long ends the stream."""


class Hello(Message, frozen=True, tag="hello"):
    """First message of a sidecar. The identity is the certificate's; the pod must belong to it."""

    pod: Name
    namespace: Name
    version: str
    """Of the sidecar's program."""
    http2: str = ""
    """Name and version of its HTTP/2 engine."""


class Held(Message, frozen=True):
    """A key that the sidecar wants, and what it has of it ('' for nothing)."""

    key: str
    version: str = ""


class Subscribe(Message, frozen=True, tag="subscribe"):
    """Add keys; those already subscribed are compared again.

    What an address brings is compared with `holds`: contents that the sidecar has through its addresses. What
    is not named there is sent, whatever was sent before.
    """

    keys: tuple[Held, ...]
    holds: tuple[Held, ...] = ()


class Unsubscribe(Message, frozen=True, tag="unsubscribe"):
    """Drop keys; what only they brought is dropped with them, by both sides."""

    keys: tuple[str, ...]


class Applied(Message, frozen=True, tag="applied"):
    """An update is in force, or (with `error`) refused: then the last good content stays."""

    nonce: int
    error: str = ""
    """Path and what was expected there."""


class Pong(Message, frozen=True, tag="pong"):
    """The answer to Ping."""


class Reply(Message, frozen=True, tag="reply"):
    """A piece of the answer to `Ask`: JSON, or `error` in words. The pieces of one answer come in order."""

    id: int
    body: bytes = b""
    last: bool = True
    error: str = ""


class Report(Message, frozen=True, tag="report"):
    """What the sidecar counted since its last report; sent about every REPORT_S, an empty one too."""

    span_s: float
    edges: tuple[Edge, ...] = ()
    dropped: Count = 0
    """Edges that found no room in this report."""


class Page(enum.Enum):
    """What a sidecar can be asked."""

    CONFIG = "config"
    """admin.SidecarConfig"""
    LOG = "log"
    """Set the log's level (`level`); admin.SidecarLog"""
    TAP = "tap"
    """stats.Tapped: the requests that end within `seconds`"""


class Ask(Message, frozen=True, tag="ask"):
    """A question; at most MAX_ASKED are open at once. The sidecar answers with one or more `Reply`."""

    id: int
    page: Page
    arguments: dict[str, str] = {}


def tap_seconds(arguments: Mapping[str, str]) -> float:
    """How long a tap watches. Raises ValueError that says what was expected."""
    text = arguments.get("seconds", "")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TAP_S:
        raise ValueError(f"seconds: expected a number above 0, at most {MAX_TAP_S:g}, got {text[:40]!r}")
    return seconds


def answer_within(page: Page, arguments: Mapping[str, str]) -> float:
    """How long an answer may take, in seconds. Raises ValueError as `tap_seconds`."""
    return ASK_S + (tap_seconds(arguments) if page is Page.TAP else 0.0)


class Welcome(Message, frozen=True, tag="welcome"):
    """First message of the control plane; sent once its caches have synced."""

    replica: str
    version: str


class Ping(Message, frozen=True, tag="ping"):
    """The control plane is alive; it wants to know the same of the sidecar."""


class Goodbye(Message, frozen=True, tag="goodbye"):
    """Last message of the control plane: why it ends the stream."""

    reason: str
    moving: bool = False
    """Nothing is wrong: come back soon, to another replica if there is one."""


class AddressAnswer(Message, frozen=True):
    """Who owns an address; neither field set: nobody in the mesh.

    An address of the cluster's own ranges that nobody is known to own yet has no content at all: it is held.
    """

    destination: str = ""
    """NAMESPACE/NAME:PORT[/FAMILY[/NODE]]"""
    pod: str = ""
    """IP"""


class WorkloadConfig(Message, frozen=True):
    """A sidecar's own configuration."""

    workload: Workload
    trust_domain: Name
    bundle_pem: str
    """Trust bundle; a change is taken over at once."""
    inbound: Inbound = Inbound()
    egress: EgressMode = EgressMode.PASSTHROUGH
    path_normalization: PathNormalization = PathNormalization.BASE
    access_log: bool = False
    draining: bool = False


Content = Destination | Pod | AddressAnswer | WorkloadConfig


class Resource(Message, frozen=True):
    """The content of one key, as msgpack of the type that the key says."""

    key: str
    version: str
    body: bytes


class Update(Message, frozen=True, tag="update"):
    """Changes that belong together: applied whole or not at all."""

    nonce: int
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    """Keys that have no content: a destination that was deleted, an address that has no answer."""


FromSidecar = Hello | Subscribe | Unsubscribe | Applied | Pong | Reply | Report
FromControl = Welcome | Update | Ping | Ask | Goodbye

_TYPES: dict[str, type[Content]] = {
    "address": AddressAnswer,
    "destination": Destination,
    "pod": Pod,
    "workload": WorkloadConfig,
}
_decoders = {name: msgspec.msgpack.Decoder(kind) for name, kind in _TYPES.items()}
_from_sidecar: msgspec.msgpack.Decoder[FromSidecar] = msgspec.msgpack.Decoder(FromSidecar)
_from_control: msgspec.msgpack.Decoder[FromControl] = msgspec.msgpack.Decoder(FromControl)
encode_message = msgspec.msgpack.Encoder().encode
"""One message of either side, without its length."""


def address_key(ip: str, port: int) -> str:
    """The key that asks who owns an address."""
    return f"address/[{ip}]:{port}" if ":" in ip else f"address/{ip}:{port}"


def pod_key(ip: str) -> str:
    """The key of the pod that has an address."""
    return f"pod/{ip}"


def led_to(dest: Destination) -> tuple[str, ...]:
    """The keys of the destinations that the routes of one lead to."""
    names = {arm.destination: None for route in dest.routes for arm in route.to if arm.destination}
    return tuple(f"destination/{name}" for name in names)


def brought_by(answer: AddressAnswer) -> tuple[str, ...]:
    """The keys of the contents that come with an answer."""
    keys = []
    if answer.destination:
        keys.append(f"destination/{answer.destination}")
    if answer.pod:
        keys.append(pod_key(answer.pod))
    return tuple(keys)


def split_address(key: str) -> tuple[str, int]:
    """IP and port of an `address/` key. Raises ValueError if they are not in their canonical form."""
    ip, _, port = key.removeprefix("address/").rpartition(":")
    bare = ip[1:-1] if ip[:1] == "[" and ip[-1:] == "]" else ip
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"expected address/IP:PORT, got {key[:100]!r}")
    if address_key(_canonical(bare, key), int(port)) != key:
        raise ValueError(f"expected address/IP:PORT in canonical form, got {key[:100]!r}")
    return bare, int(port)


def check_key(key: str) -> None:
    """Raise ValueError for what cannot be asked for."""
    if len(key) > MAX_KEY_CHARS:
        raise ValueError(f"expected a key of at most {MAX_KEY_CHARS} characters, got {len(key)}")
    kind, _, rest = key.partition("/")
    if kind == "address":
        split_address(key)
    elif kind == "pod":
        _canonical(rest, key)
    elif kind == "destination":
        parse_destination(rest)
    elif key != WORKLOAD_KEY:
        content_type(key)
        raise ValueError(f"expected {WORKLOAD_KEY!r}, got {key[:100]!r}")


def _canonical(ip: str, key: str) -> str:
    try:
        same = str(ipaddress.ip_address(ip)) == ip
    except ValueError:
        same = False
    if not same:
        raise ValueError(f"expected an IP address in canonical form, got {key[:100]!r}")
    return ip


def content_type(key: str) -> type[Content]:
    """The type of a key's content. Raises ValueError for what is no key."""
    try:
        return _TYPES[key.partition("/")[0]]
    except KeyError:
        raise ValueError(f"expected address/, destination/, pod/ or workload, got {key[:100]!r}") from None


def encode_content(content: Content) -> bytes:
    """The body of a resource; equal contents give equal bytes."""
    return msgspec.msgpack.encode(content, order="deterministic")


def version_of(body: bytes) -> str:
    """The version of a content: a hash of its body."""
    return hashlib.blake2b(body, digest_size=12).hexdigest()


def decode_from_sidecar(frame: bytes) -> FromSidecar:
    """Raises ValueError for what a sidecar cannot say."""
    try:
        return _from_sidecar.decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise ValueError(f"expected a message of a sidecar: {exc}") from None


def decode_from_control(frame: bytes) -> FromControl:
    """Raises ValueError for what the control plane cannot say."""
    try:
        return _from_control.decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise ValueError(f"expected a message of the control plane: {exc}") from None


def read_content(resource: Resource, trust_domain: str) -> Content:
    """The content of a resource, decoded and checked as a whole.

    Raises ConfigError; its path begins with the key.
    """
    key = resource.key
    try:
        check_key(key)
        content = _decoders[key.partition("/")[0]].decode(resource.body)
    except msgspec.ValidationError as exc:
        text, _, path = str(exc).partition(" - at `")
        raise ConfigError(key + path.rstrip("`").removeprefix("$"), text) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(key, f"expected msgpack: {exc}") from None
    except ValueError as exc:
        raise ConfigError(key[:MAX_KEY_CHARS], str(exc)) from None
    for error in _check(key, content, trust_domain):
        raise error
    return content


def _check(key: str, content: Content, trust_domain: str) -> Iterator[ConfigError]:
    if isinstance(content, Destination):
        yield from check_destination(key, content, trust_domain)
        name = f"destination/{content.namespace}/{content.name}:{content.port}"
        if key != name and not key.startswith(f"{name}/"):
            yield ConfigError(key, f"expected the destination of this key, got {name}")
    elif isinstance(content, Pod):
        yield from check_pod(key, content, trust_domain)
        if key.partition("/")[2] not in content.addresses:
            yield ConfigError(f"{key}.addresses", "expected the address of this key among them")
    elif isinstance(content, WorkloadConfig):
        yield from check_own(key, content.workload, content.inbound)
        if content.trust_domain != trust_domain:
            yield ConfigError(f"{key}.trustDomain", f"expected {trust_domain}, got {content.trust_domain!r}")
        if len(content.bundle_pem) > MAX_BUNDLE_CHARS:
            yield ConfigError(f"{key}.bundlePem", f"expected at most {MAX_BUNDLE_CHARS} characters")
    else:
        for brought in brought_by(content):
            try:
                check_key(brought)
            except ValueError as exc:
                yield ConfigError(key, str(exc))
