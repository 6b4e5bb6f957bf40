"""The control plane's settings: the only module of it that reads the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from certs.identity import IdentityError, SpiffeId, check_trust_domain
from injector.values import Values, ValuesError, from_mapping

DISCOVERY_PORT = 15010
CA_PORT = 15012
HTTP_PORT = 15014
WEBHOOK_PORT = 15017
NAME = "triomesh-control"
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
    """Ranges of pods and Services, where Nodes do not name them: an unknown address there is held."""
    log_level: str = "info"

    @property
    def identity(self) -> SpiffeId:
        """Who the control plane is, exactly."""
        return SpiffeId(self.trust_domain, self.namespace, NAME)

    @property
    def webhook_names(self) -> tuple[str, ...]:
        """DNS names under which the API server calls the webhook."""
        return (f"{NAME}.{self.namespace}.svc", f"{NAME}.{self.namespace}.svc.cluster.local")


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
    networks = tuple(filter(None, env.get("TRIOMESH_CLUSTER_NETWORKS", "").split(",")))
    return Settings(
        namespace=env["TRIOMESH_POD_NAMESPACE"],
        pod_name=env["TRIOMESH_POD_NAME"],
        trust_domain=domain,
        injector=_injector(env.get("TRIOMESH_INJECTOR_VALUES", "")),
        cluster_networks=networks,
        log_level=level,
    )


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
