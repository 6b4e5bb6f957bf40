"""The sidecar's settings: the only module that reads the environment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from certs.identity import IdentityError, SpiffeId, check_trust_domain
from mesh_api.application import METRICS_VARIABLE, PROBES_VARIABLE
from mesh_api.limits import DEFAULTS, VARIABLE_PREFIX, LimitError, Limits, described

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
ADMIN_PORT = 15000
METRICS_PORT = 15020
HEALTH_PORT = 15021
TOKEN_FILE = "/run/secrets/triomesh/token"
BUNDLE_FILE = "/run/triomesh/bundle/bundle.pem"


_protocol = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}(?:/[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64})?").fullmatch


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and what was expected."""


class HostPort(NamedTuple):
    """A name or an IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What one sidecar process is told at its start. Ports may be 0 in tests."""

    config_file: str = ""
    """Where the configuration comes from: this file, or ..."""
    control: HostPort | None = None
    """... the control plane."""
    ca_socket: str = ""
    """Who signs: the CA on this Unix socket, or ..."""
    ca: HostPort | None = None
    """... the control plane's."""
    control_identity: str = ""
    """SPIFFE id that the control plane must prove."""
    pod_name: str = ""
    pod_namespace: str = ""
    token_file: str = ""
    bundle_file: str = ""
    """Trust bundle in a mounted file; may be missing."""
    bundle_pem: str = ""
    """Trust bundle of the time of injection."""
    trust_domain: str = "cluster.local"
    pod_ips: frozenset[str] = frozenset()
    """The pod's addresses; without them the sidecar asks the kernel."""
    pod_ip: str = ""
    """The first of them, which the kubelet uses."""
    app_checks: str = ""
    app_metrics: str = ""
    """What the injector says about the application, see `mesh_api.application`."""
    outbound_hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    inbound_hosts: tuple[str, ...] = ("0.0.0.0", "::")
    admin_hosts: tuple[str, ...] = ("127.0.0.1", "::1")
    public_hosts: tuple[str, ...] = ("0.0.0.0", "::")
    """Where health and metrics listen."""
    outbound_port: int = OUTBOUND_PORT
    inbound_port: int = INBOUND_PORT
    admin_port: int = ADMIN_PORT
    metrics_port: int = METRICS_PORT
    health_port: int = HEALTH_PORT
    uid: int = 1337
    """The user that the rules let pass; any other is refused at the start. -1 skips the check."""
    drain_s: float = 30.0
    """How long SIGTERM waits for connections to end."""
    limits: Limits = DEFAULTS
    cgroup_directory: str = ""
    """Of this process's control group; empty: it is looked up."""
    handshake_workers: int = 2
    upgrades: frozenset[bytes] = frozenset((b"websocket",))
    """Protocols that a connection of HTTP/1.1 may switch to, in lower case."""
    http2_engine: str = "auto"
    """`wire.http2.engines`: auto, nghttp2 or hyper."""
    log_level: str = "info"

    @property
    def own_ports(self) -> frozenset[int]:
        """Ports that no redirected connection may ask for."""
        return frozenset(
            (self.outbound_port, self.inbound_port, self.admin_port, self.metrics_port, self.health_port)
        )


def from_environment(env: Mapping[str, str]) -> Settings:
    """Read TRIOMESH_* settings. Raises SettingsError."""
    config_file = _either(env, "TRIOMESH_CONFIG_FILE", "TRIOMESH_CONTROL_ADDRESS")
    ca_socket = _either(env, "TRIOMESH_CA_SOCKET", "TRIOMESH_CA_ADDRESS")
    trust_domain = _trust_domain(env.get("TRIOMESH_TRUST_DOMAIN", "cluster.local"))
    control = None if config_file else _host_port(env, "TRIOMESH_CONTROL_ADDRESS")
    ca = None if ca_socket else _host_port(env, "TRIOMESH_CA_ADDRESS")
    level = env.get("TRIOMESH_LOG_LEVEL", "info")
    if level not in {"debug", "info", "warning", "error"}:
        raise SettingsError(f"TRIOMESH_LOG_LEVEL: expected debug, info, warning or error, got {level!r}")
    engine = env.get("TRIOMESH_HTTP2_ENGINE", "auto")
    if engine not in {"auto", "nghttp2", "hyper"}:
        raise SettingsError(f"TRIOMESH_HTTP2_ENGINE: expected auto, nghttp2 or hyper, got {engine!r}")
    return Settings(
        config_file=config_file,
        control=control,
        ca_socket=ca_socket,
        ca=ca,
        control_identity=_control_identity(env, trust_domain) if control or ca else "",
        pod_name=_needed(env, "TRIOMESH_POD_NAME", "the pod's name") if control else "",
        pod_namespace=_needed(env, "TRIOMESH_POD_NAMESPACE", "the pod's namespace") if control else "",
        token_file=env.get("TRIOMESH_TOKEN_FILE", TOKEN_FILE),
        bundle_file=env.get("TRIOMESH_BUNDLE_FILE", BUNDLE_FILE),
        bundle_pem=env.get("TRIOMESH_TRUST_BUNDLE", ""),
        trust_domain=trust_domain,
        pod_ips=_addresses("TRIOMESH_POD_IPS", env.get("TRIOMESH_POD_IPS", "")),
        pod_ip=env.get("TRIOMESH_POD_IPS", "").partition(",")[0].strip(),
        app_checks=env.get(PROBES_VARIABLE, ""),
        app_metrics=env.get(METRICS_VARIABLE, ""),
        drain_s=_number("TRIOMESH_DRAIN_SECONDS", env.get("TRIOMESH_DRAIN_SECONDS", "30"), 0, 86_400),
        limits=_limits(env),
        cgroup_directory=env.get("TRIOMESH_CGROUP_DIRECTORY", ""),
        handshake_workers=int(
            _number("TRIOMESH_HANDSHAKE_WORKERS", env.get("TRIOMESH_HANDSHAKE_WORKERS", "2"), 1, 64)
        ),
        upgrades=_upgrades(env.get("TRIOMESH_UPGRADES", "websocket")),
        http2_engine=engine,
        log_level=level,
    )


def _either(env: Mapping[str, str], path: str, address: str) -> str:
    """The path, or empty where the address is set: exactly one of them must be."""
    if env.get(path) and env.get(address):
        raise SettingsError(f"{path}: expected it or {address}, both are set")
    if not env.get(path) and not env.get(address):
        raise SettingsError(f"{path}: expected a path, or {address} instead; neither is set")
    return env.get(path, "")


def _needed(env: Mapping[str, str], name: str, what: str) -> str:
    value = env.get(name, "")
    if not value or len(value) > 253:
        raise SettingsError(
            f"{name}: expected {what}, " + (f"got {value[:60]!r}" if value else "it is not set")
        )
    return value


def _host_port(env: Mapping[str, str], name: str) -> HostPort:
    text = env.get(name, "")
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host[:1] == "[" else host
    good = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535
    bracketed = (":" in host) == text.startswith("[")
    if not good or not host or not bracketed or any(char.isspace() or char == "/" for char in host):
        raise SettingsError(f"{name}: expected HOST:PORT (an IPv6 address in brackets), got {text[:100]!r}")
    return HostPort(host, int(port))


def _control_identity(env: Mapping[str, str], trust_domain: str) -> str:
    name = "TRIOMESH_CONTROL_IDENTITY"
    text = _needed(env, name, "the control plane's SPIFFE id") if len(env.get(name, "")) < 254 else env[name]
    try:
        identity = SpiffeId.parse(text)
    except IdentityError as exc:
        raise SettingsError(f"{name}: {exc}") from None
    if identity.trust_domain != trust_domain:
        raise SettingsError(f"{name}: expected an id of {trust_domain}, got {text!r}")
    return text


def _trust_domain(text: str) -> str:
    try:
        return check_trust_domain(text)
    except IdentityError as exc:
        raise SettingsError(f"TRIOMESH_TRUST_DOMAIN: {exc}") from None


def _upgrades(text: str) -> frozenset[bytes]:
    """Protocols of RFC 9110, 7.8, separated by commas; none is allowed, h2c is not: HTTP/2 is no upgrade."""
    protocols = {part.strip().lower() for part in text.split(",")} - {""}
    for protocol in protocols:
        if _protocol(protocol) is None or protocol == "h2c":
            raise SettingsError(
                "TRIOMESH_UPGRADES: expected protocols for Upgrade (websocket) separated by commas, not h2c,"
                f" got {protocol[:60]!r}"
            )
    return frozenset(protocol.encode() for protocol in protocols)


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise SettingsError(f"{name}: expected a number from {low:g} to {high:g}, got {text!r}")
    return value


def _limits(env: Mapping[str, str]) -> Limits:
    known = {limit.variable: limit for limit in described().values()}
    given: dict[str, Any] = {}
    for name in sorted(env):
        if not name.startswith(VARIABLE_PREFIX):
            continue
        if name not in known:
            raise SettingsError(f"{name}: expected one of {', '.join(known)}")
        try:
            given[known[name].field] = known[name].read(env[name])
        except LimitError as exc:
            raise SettingsError(f"{name}: {exc}") from None
    return Limits(**given)


def _addresses(name: str, text: str) -> frozenset[str]:
    addresses = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            address = ipaddress.ip_address(part)
        except ValueError:
            raise SettingsError(f"{name}: expected IP addresses separated by commas, got {part!r}") from None
        if address.is_loopback or address.is_unspecified:
            # It would open every loopback-only port of the pod to the network.
            raise SettingsError(f"{name}: expected addresses of the pod's interfaces, got {part!r}")
        addresses.add(str(address))
    return frozenset(addresses)
