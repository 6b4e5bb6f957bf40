"""The sidecar's settings: the only module that reads the environment."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from certs.identity import IdentityError, check_trust_domain

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
ADMIN_PORT = 15000
METRICS_PORT = 15020
HEALTH_PORT = 15021


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and what was expected."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one sidecar process is told at its start. Ports may be 0 in tests."""

    config_file: str = ""
    ca_socket: str = ""
    trust_domain: str = "cluster.local"
    pod_ips: frozenset[str] = frozenset()
    """The pod's addresses; without them the sidecar asks the kernel."""
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
    max_connections: int = 16384
    handshake_workers: int = 2
    log_level: str = "info"

    @property
    def own_ports(self) -> frozenset[int]:
        """Ports that no redirected connection may ask for."""
        return frozenset(
            (self.outbound_port, self.inbound_port, self.admin_port, self.metrics_port, self.health_port)
        )


def from_environment(env: Mapping[str, str]) -> Settings:
    """Read TRIOMESH_* settings. Raises SettingsError."""
    for name in ("TRIOMESH_CONFIG_FILE", "TRIOMESH_CA_SOCKET"):
        if not env.get(name):
            raise SettingsError(f"{name}: expected a path, it is not set")
    level = env.get("TRIOMESH_LOG_LEVEL", "info")
    if level not in {"debug", "info", "warning", "error"}:
        raise SettingsError(f"TRIOMESH_LOG_LEVEL: expected debug, info, warning or error, got {level!r}")
    return Settings(
        config_file=env["TRIOMESH_CONFIG_FILE"],
        ca_socket=env["TRIOMESH_CA_SOCKET"],
        trust_domain=_trust_domain(env.get("TRIOMESH_TRUST_DOMAIN", "cluster.local")),
        pod_ips=_addresses("TRIOMESH_POD_IPS", env.get("TRIOMESH_POD_IPS", "")),
        drain_s=_number("TRIOMESH_DRAIN_SECONDS", env.get("TRIOMESH_DRAIN_SECONDS", "30"), 0, 86_400),
        max_connections=int(
            _number("TRIOMESH_MAX_CONNECTIONS", env.get("TRIOMESH_MAX_CONNECTIONS", "16384"), 1, 1_000_000)
        ),
        handshake_workers=int(
            _number("TRIOMESH_HANDSHAKE_WORKERS", env.get("TRIOMESH_HANDSHAKE_WORKERS", "2"), 1, 64)
        ),
        log_level=level,
    )


def _trust_domain(text: str) -> str:
    try:
        return check_trust_domain(text)
    except IdentityError as exc:
        raise SettingsError(f"TRIOMESH_TRUST_DOMAIN: {exc}") from None


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise SettingsError(f"{name}: expected a number from {low:g} to {high:g}, got {text!r}")
    return value


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
