"""The control plane's settings: the only module of it that reads the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal, get_args

from certs.identity import IdentityError, SpiffeId, check_trust_domain
from injector.values import Values, ValuesError, from_mapping

DISCOVERY_PORT = 15010
CA_PORT = 15012
ADMIN_PORT = 15013
HTTP_PORT = 15014
WEBHOOK_PORT = 15017
NAME = "triomesh-control"
INJECTOR_SERVICE = "triomesh-injector"
"""The injector's Service where it is a Deployment of its own."""
RoleName = Literal["ca", "discovery", "injector"]
ROLES: tuple[RoleName, ...] = get_args(RoleName)
_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and what was expected."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one replica is told at its start."""

    namespace: str
    pod_name: str
    trust_domain: str
    injector: Values
    cluster_networks: tuple[str, ...] = ()
    """Ranges of pods and Services that the cluster does not say: an unknown address there is held."""
    log_level: str = "info"
    roles: tuple[RoleName, ...] = ROLES
    """What this process does; together with others it is one control plane."""
    check_peer_address: bool = True
    """Whether the CA takes a token only from an address of its pod."""
    leaf_lifetime_s: int = 86_400
    """Of the certificates that the CA signs for workloads."""

    @property
    def identity(self) -> SpiffeId:
        """Who the control plane is, exactly."""
        return SpiffeId(self.trust_domain, self.namespace, NAME)

    @property
    def lease(self) -> str:
        """The Lease of those who do the same; processes of other roles have one of their own."""
        return "-".join((NAME, *(self.roles if self.roles != ROLES else ())))

    @property
    def webhook_names(self) -> tuple[str, ...]:
        """DNS names under which the API server calls the webhook."""
        services = (f"{name}.{self.namespace}.svc" for name in (NAME, INJECTOR_SERVICE))
        return tuple(name + suffix for name in services for suffix in ("", ".cluster.local"))


def from_environment(env: Mapping[str, str]) -> Settings:
    """Read TRIOMESH_* settings. Raises SettingsError."""
    missing = [name for name in ("TRIOMESH_POD_NAME", "TRIOMESH_POD_NAMESPACE") if not env.get(name)]
    if missing:
        raise SettingsError(f"{' and '.join(missing)}: expected from the pod's fields; not set")
    level = env.get("TRIOMESH_LOG_LEVEL", "info")
    if level not in _LEVELS:
        raise SettingsError(f"TRIOMESH_LOG_LEVEL: expected one of {', '.join(_LEVELS)}, got {level!r}")
    try:
        domain = check_trust_domain(env.get("TRIOMESH_TRUST_DOMAIN", "cluster.local"))
    except IdentityError as exc:
        raise SettingsError(f"TRIOMESH_TRUST_DOMAIN: {exc}") from None
    return Settings(
        namespace=env["TRIOMESH_POD_NAMESPACE"],
        pod_name=env["TRIOMESH_POD_NAME"],
        trust_domain=domain,
        injector=_injector(env.get("TRIOMESH_INJECTOR_VALUES", "")),
        cluster_networks=_networks(env.get("TRIOMESH_CLUSTER_NETWORKS", "")),
        log_level=level,
        roles=_roles(env.get("TRIOMESH_ROLES", "")),
        check_peer_address=_flag(env, "TRIOMESH_CA_CHECK_PEER_ADDRESS"),
        leaf_lifetime_s=_seconds(env, "TRIOMESH_LEAF_LIFETIME_S", 86_400),
    )


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(part)) for part in _parts(text))
    except ValueError as exc:
        raise SettingsError(
            f"TRIOMESH_CLUSTER_NETWORKS: expected networks such as 10.0.0.0/8: {exc}"
        ) from None


def _roles(text: str) -> tuple[RoleName, ...]:
    wanted = _parts(text) or list(ROLES)
    if unknown := [name for name in wanted if name not in ROLES]:
        raise SettingsError(f"TRIOMESH_ROLES: expected some of {', '.join(ROLES)}, got {unknown[0]!r}")
    return tuple(role for role in ROLES if role in wanted)


def _parts(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name, "true")
    if text not in ("true", "false"):
        raise SettingsError(f"{name}: expected true or false, got {text!r}")
    return text == "true"


def _seconds(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 10 <= int(text) <= 604_800):
        raise SettingsError(f"{name}: expected seconds, 10 to 604800, got {text!r}")
    return int(text)


def _injector(text: str) -> Values:
    if not text:
        raise SettingsError("TRIOMESH_INJECTOR_VALUES: expected the injector's values as JSON; not set")
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("expected an object")
        return from_mapping(found)
    except (ValueError, ValuesError) as exc:
        raise SettingsError(f"TRIOMESH_INJECTOR_VALUES: {exc}") from None
