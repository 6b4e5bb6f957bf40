"""One check of a container: HTTP, TCP, gRPC health or a command. Also what lifecycle hooks do."""

import errno
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11
import trio

from mesh_local.kubelet.runtime import CommandFailed, Container, Runtime
from mesh_local.machinery.objects import Object, dig
from mesh_local.network.types import Dialer

USER_AGENT = "kube-probe/1.36"
BODY_BYTES = 10 * 1024
MAX_REDIRECTS = 10
_HEALTH_PATH = "/grpc.health.v1.Health/Check"
# grpc.health.v1.HealthCheckResponse.ServingStatus
_SERVING = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


class CheckFailed(Exception):
    """The container is not well; the text is for the event."""


@dataclass(frozen=True, slots=True)
class Target:
    """The container that is checked.

    Args:
        ip: the pod's address.
        spec: the container, for the names of its ports.
    """

    ip: str
    spec: Object
    container: Container
    runtime: Runtime
    dialer: Dialer


async def check(handler: Object, target: Target, timeout_s: float) -> None:
    """Run a probe's handler once.

    Raises:
        CheckFailed: it failed, or took longer than `timeout_s`.
    """
    with trio.move_on_after(timeout_s) as scope:
        await run_handler(handler, target, timeout_s)
    if scope.cancelled_caught:
        raise CheckFailed(_timed_out(handler, target, timeout_s))


def _timed_out(handler: Object, target: Target, timeout_s: float) -> str:
    if "exec" in handler:
        command = " ".join(handler["exec"].get("command") or ())
        return f'command timed out: "{command}" timed out after {timeout_s:g}s'
    if "httpGet" in handler:
        url = _url(handler["httpGet"], target)
        return f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
    if "tcpSocket" in handler:
        host, port = _address(handler["tcpSocket"], target)
        return f"dial tcp {_joined(host, port)}: i/o timeout"
    address = _joined(*_address(handler["grpc"], target))
    return f'timeout: failed to connect service "{address}" within {timeout_s:g}s: context deadline exceeded'


async def run_handler(handler: Object, target: Target, timeout_s: float) -> None:
    """Do what a probe or a hook says. Raises CheckFailed."""
    if "exec" in handler:
        await _exec(handler["exec"].get("command") or [], target)
    elif "httpGet" in handler:
        await _http_get(handler["httpGet"], target)
    elif "tcpSocket" in handler:
        host, port = _address(handler["tcpSocket"], target)
        await (await _dial(target, host, port)).aclose()
    elif "grpc" in handler:
        await _grpc(handler["grpc"], target)
    elif "sleep" in handler:
        await trio.sleep(float(handler["sleep"]["seconds"]))
    else:
        raise CheckFailed(f"missing handler; expected one of exec, httpGet, tcpSocket, grpc ({timeout_s:g}s)")


async def _exec(command: Sequence[str], target: Target) -> None:
    try:
        code, output = await target.runtime.exec_sync(target.container, command)
    except CommandFailed as exc:
        raise CheckFailed(str(exc)) from exc
    if code != 0:
        raise CheckFailed(output or f"command exited with code {code}")


def port_of(value: object, spec: Object) -> int:
    """A port number, or that of the container's port with this name. Raises CheckFailed."""
    for port in spec.get("ports") or ():
        if port.get("name") == value:
            return int(port["containerPort"])
    try:
        number = int(str(value))
    except ValueError:
        raise CheckFailed(f'couldn\'t find port: "{value}" in pod') from None
    if not 0 < number < 65536:
        raise CheckFailed(f"invalid port number: {number}")
    return number


def _address(action: Object, target: Target) -> tuple[str, int]:
    return str(action.get("host") or target.ip), port_of(action["port"], target.spec)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _dial(target: Target, host: str, port: int) -> trio.SocketStream:
    try:
        return await target.dialer.dial(host, port)
    except OSError as exc:
        text = os.strerror(exc.errno) if exc.errno else str(exc)
        # Go's wording of the usual one.
        reason = "connection refused" if exc.errno == errno.ECONNREFUSED else text[:1].lower() + text[1:]
        raise CheckFailed(f"dial tcp {_joined(host, port)}: connect: {reason}") from exc


def _url(action: Object, target: Target) -> str:
    host, port = _address(action, target)
    path = str(action.get("path") or "/")
    return f"{str(action.get('scheme') or 'HTTP').lower()}://{_joined(host, port)}/{path.lstrip('/')}"


async def _http_get(action: Object, target: Target) -> None:
    """As the kubelet does: 200 to 399 is well; redirects to the same host are followed."""
    url = _url(action, target)
    for _ in range(MAX_REDIRECTS):
        try:
            status, location = await _request(url, action, target)
            following = urljoin(url, location) if location and 300 <= status < 400 else ""
            same_host = urlsplit(following).hostname == urlsplit(url).hostname
        except (h11.ProtocolError, trio.BrokenResourceError, ssl.SSLError, ValueError) as exc:
            # ValueError: what the probe or a redirect names is no URL.
            raise CheckFailed(f'Get "{url}": {exc or "EOF"}') from exc
        except CheckFailed as exc:
            raise CheckFailed(f'Get "{url}": {exc}') from exc
        if not (following and same_host):
            break
        url = following
    else:
        raise CheckFailed(f'Get "{url}": stopped after {MAX_REDIRECTS} redirects')
    if not 200 <= status < 400:
        raise CheckFailed(f"HTTP probe failed with statuscode: {status}")


async def _request(url: str, action: Object, target: Target) -> tuple[int, str]:
    """Status and Location of the answer."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    stream: trio.abc.Stream = await _dial(target, parts.hostname or target.ip, port)
    async with stream:
        if parts.scheme == "https":
            stream = trio.SSLStream(stream, _insecure(), server_hostname=None, https_compatible=True)
        given = [(h["name"], h.get("value") or "") for h in action.get("httpHeaders") or ()]
        names = {name.lower() for name, _ in given}
        usual = [
            ("Host", parts.netloc),
            ("User-Agent", USER_AGENT),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ]
        headers = given + [(name, value) for name, value in usual if name.lower() not in names]
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=64 * 1024)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = connection.send(h11.Request(method="GET", target=path, headers=headers)) or b""
        await stream.send_all(request + (connection.send(h11.EndOfMessage()) or b""))
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(64 * 1024)))
            elif isinstance(event, h11.Response):
                found = [value.decode("latin-1") for name, value in event.headers if name == b"location"]
                return event.status_code, found[0] if found else ""


def _insecure() -> ssl.SSLContext:
    """The kubelet does not verify the certificates of what it probes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _grpc(action: Object, target: Target) -> None:
    host, port = _address(action, target)
    service = str(action.get("service") or "").encode()
    message = b"\x0a" + bytes([len(service)]) + service if service else b""
    if len(service) > 127:
        raise CheckFailed("the name of the gRPC service is longer than 127 bytes")
    stream = await _dial(target, host, port)
    async with stream:
        try:
            data, headers = await _call(stream, _joined(host, port), message)
        except (h2.exceptions.ProtocolError, trio.BrokenResourceError) as exc:
            raise CheckFailed(f"error: health rpc probe failed: {exc}") from exc
    code = headers.get("grpc-status", "2")
    if code == "12":
        raise CheckFailed("error: this server does not implement the grpc health protocol")
    if code != "0":
        raise CheckFailed(f"error: health rpc probe failed: {headers.get('grpc-message', f'code {code}')}")
    # HealthCheckResponse: field 1, varint, absent for 0.
    status = data[6] if len(data) > 6 and data[5] == 0x08 else 0
    if status != 1:
        name = _SERVING[status] if status < len(_SERVING) else str(status)
        raise CheckFailed(f'service unhealthy (responded with "{name}")')


async def _call(stream: trio.SocketStream, authority: str, message: bytes) -> tuple[bytes, dict[str, str]]:
    """One unary call in plain text; the data and all headers and trailers of the answer."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", _HEALTH_PATH),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", USER_AGENT),
    ]
    connection.send_headers(1, fields)
    connection.send_data(1, b"\x00" + len(message).to_bytes(4, "big") + message, end_stream=True)
    await stream.send_all(connection.data_to_send())
    data = b""
    headers: dict[str, str] = {}
    while True:
        received = await stream.receive_some(64 * 1024)
        if not received:
            raise CheckFailed("error: health rpc probe failed: EOF")
        for event in connection.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                headers |= {str(k): str(v) for k, v in event.headers or ()}
            elif isinstance(event, h2.events.DataReceived):
                data = (data + (event.data or b""))[:BODY_BYTES]
            elif isinstance(event, h2.events.StreamEnded):
                return data, headers
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise CheckFailed("error: health rpc probe failed: the stream was reset")
        await stream.send_all(connection.data_to_send())


def timeout_of(probe: Object) -> float:
    return float(dig(probe, "timeoutSeconds", default=1))
