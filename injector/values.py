"""What an installation tells the injector: image, addresses, defaults. Pure, and immutable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from injector.netinit import plan
from mesh_api.limits import DEFAULTS, Limits

Count = Annotated[int, msgspec.Meta(ge=1, le=86_400)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
LogLevel = Literal["debug", "info", "warning", "error"]


class ValuesError(ValueError):
    """A value that cannot be used; the message names it."""


class _Part(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True
):
    pass


class Resources(_Part, frozen=True):
    """Kubernetes quantities; the empty text asks for none.

    No limit of CPU: throttling a proxy adds latency to every request.
    """

    cpu_request: str = "50m"
    cpu_limit: str = ""
    memory_request: str = "64Mi"
    memory_limit: str = "512Mi"


class Capture(_Part, frozen=True):
    """Defaults of netinit's options, in its own notation."""

    include_inbound_ports: str = plan.ALL
    exclude_inbound_ports: str = ""
    include_outbound_ports: str = ""
    exclude_outbound_ports: str = ""
    include_cidrs: str = plan.ALL
    exclude_cidrs: str = ""
    exclude_interfaces: str = ""
    drop_invalid: bool = True

    def options(self) -> plan.Options:
        """What netinit would make of it. Raises plan.OptionError."""
        return plan.Options(
            include_inbound_ports=plan.parse_ports_or_all(
                self.include_inbound_ports, "include_inbound_ports"
            ),
            exclude_inbound_ports=plan.parse_ports(self.exclude_inbound_ports, "exclude_inbound_ports"),
            include_outbound_ports=plan.parse_ports(self.include_outbound_ports, "include_outbound_ports"),
            exclude_outbound_ports=plan.parse_ports(self.exclude_outbound_ports, "exclude_outbound_ports"),
            include_cidrs=plan.parse_cidrs_or_all(self.include_cidrs, "include_cidrs"),
            exclude_cidrs=plan.parse_cidrs(self.exclude_cidrs, "exclude_cidrs"),
            exclude_interfaces=plan.parse_names(self.exclude_interfaces, "exclude_interfaces"),
            drop_invalid=self.drop_invalid,
        )


class Probes(_Part, frozen=True):
    """How the kubelet asks the sidecar.

    The start may last long: a control plane that is away for minutes must not put pods into back-off.
    """

    startup_seconds: Count = 600
    period_seconds: Count = 10
    timeout_seconds: Count = 3
    failures: Count = 3


class Values(_Part, frozen=True):
    """Everything that a patch depends on besides the pod and its namespace."""

    version: Text
    image: Text
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    proxy_command: tuple[str, ...] = ("/opt/triomesh/bin/triomesh-proxy",)
    netinit_command: tuple[str, ...] = ("/opt/triomesh/bin/triomesh-netinit", "apply")
    trust_domain: Text = "cluster.local"
    trust_bundle: str = ""
    """PEM, as of now; the mounted ConfigMap brings newer ones."""
    bundle_config_map: Text = "triomesh-ca-bundle"
    control_address: Text = "triomesh-control.triomesh-system.svc:15010"
    ca_address: Text = "triomesh-control.triomesh-system.svc:15012"
    control_identity_path: Text = "ns/triomesh-system/sa/triomesh-control"
    """The control plane's SPIFFE id without its trust domain."""
    token_audience: Text = "triomesh-ca"
    token_seconds: Annotated[int, msgspec.Meta(ge=600, le=86_400)] = 3600
    resources: Resources = Resources()
    capture: Capture = Capture()
    probes: Probes = Probes()
    limits: Limits = DEFAULTS
    log_level: LogLevel = "info"
    drain_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 30
    rewrite_probes: bool = True
    merge_metrics: bool = True
    excluded_namespaces: tuple[str, ...] = ("kube-system", "kube-node-lease", "triomesh-system")

    @property
    def control_identity(self) -> str:
        """The only peer that sidecars send their token to."""
        return f"spiffe://{self.trust_domain}/{self.control_identity_path}"


def from_mapping(given: Mapping[str, Any]) -> Values:
    """Values out of JSON or YAML, strict. Raises ValuesError."""
    try:
        values = msgspec.convert(given, Values)
        values.capture.options()
    except msgspec.ValidationError as exc:
        raise ValuesError(f"injector values: {exc}") from None
    except plan.OptionError as exc:
        raise ValuesError(f"injector values: capture: {exc}") from None
    return values
