"""What a user may choose about an installation, and where it is read from (a file, then `--set`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal

import msgspec

from injector.netinit import plan
from injector.values import Capture, Probes
from injector.values import Resources as SidecarResources
from manifests.names import SYSTEM_NAMESPACE
from mesh_api.limits import DEFAULTS, Limits
from mesh_api.version import VERSION

LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Namespace = Annotated[str, msgspec.Meta(pattern=LABEL)]
TrustDomain = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Quantity = Annotated[str, msgspec.Meta(pattern=r"^([0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi)?)?$", max_length=20)]
Cidr = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f:.]{2,39}/[0-9]{1,3}$")]


class ValuesError(ValueError):
    """A value that cannot be used; the text names its path and what was expected there."""


class _Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    pass


class Image(_Base, frozen=True):
    """The one image of control plane, sidecar and network init."""

    repository: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._:/-]{0,254}$")] = "triomesh"
    tag: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")] = VERSION
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[
        Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")], ...
    ] = ()
    """Names of Secrets in the control plane's namespace."""

    @property
    def reference(self) -> str:
        return f"{self.repository}:{self.tag}"


class Amounts(_Base, frozen=True):
    """CPU and memory; '' leaves one out."""

    cpu: Quantity = ""
    memory: Quantity = ""

    def as_dict(self) -> dict[str, str]:
        return {k: v for k, v in (("cpu", self.cpu), ("memory", self.memory)) if v}


class Resources(_Base, frozen=True):
    """Of the control plane's container. No CPU limit by default: throttling would delay every sidecar."""

    requests: Amounts = Amounts(cpu="100m", memory="128Mi")
    limits: Amounts = Amounts(memory="1Gi")


class Webhook(_Base, frozen=True):
    """Of the injector."""

    failure_policy: Literal["Fail", "Ignore"] = "Fail"
    """`Ignore` starts pods without a sidecar while the control plane is away."""


class Ca(_Base, frozen=True):
    """Of the CA's endpoint."""

    check_peer_address: bool = True
    """A token is taken only from an address of its pod. `false` where the cluster masquerades pods' addresses
    on the way to a Service."""
    leaf_lifetime_seconds: Annotated[int, msgspec.Meta(ge=10, le=604_800)] = 86_400
    """Of workload certificates; sidecars renew at half of it, and a rotation's steps are this far apart."""


class NetworkPolicyValues(_Base, frozen=True):
    """Who reaches the control plane's pods."""

    admin_from: tuple[Cidr, ...] = ("0.0.0.0/0", "::/0")
    """CIDRs of the API server, for the admin port."""


class Sidecar(_Base, frozen=True):
    """What pods get where their annotations say nothing else."""

    resources: SidecarResources = SidecarResources()
    capture: Capture = Capture()
    probes: Probes = Probes()
    limits: Limits = DEFAULTS
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 30
    rewrite_probes: bool = True
    merge_metrics: bool = True


class Values(_Base, frozen=True):
    """An installation."""

    namespace: Namespace = SYSTEM_NAMESPACE
    image: Image = Image()
    replicas: Annotated[int, msgspec.Meta(ge=1, le=20)] = 2
    trust_domain: TrustDomain = "cluster.local"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    resources: Resources = Resources()
    webhook: Webhook = Webhook()
    ca: Ca = Ca()
    topology: Literal["combined", "separate"] = "combined"
    """One Deployment of the whole control plane, or one each of discovery, CA and injector."""
    cluster_networks: Annotated[tuple[Cidr, ...], msgspec.Meta(max_length=64)] = ()
    """CIDRs of pods and Services that the cluster does not say (docs/operations.md): a connection there waits
    until it is known whose address it is."""
    network_policy: NetworkPolicyValues = NetworkPolicyValues()
    sidecar: Sidecar = Sidecar()


def parse(tree: Mapping[str, Any]) -> Values:
    """Values from plain data.

    Raises:
        ValuesError: an unknown field or a wrong value, with its path.
    """
    try:
        values = msgspec.convert(tree, Values, strict=False)
        values.sidecar.capture.options()
    except plan.OptionError as exc:
        raise ValuesError(f"values.sidecar.capture: {exc}") from None
    except msgspec.ValidationError as exc:
        text, _, path = str(exc).partition(" - at `")
        where = "values" + path.rstrip("`").removeprefix("$")
        raise ValuesError(f"{where}: {text[0].lower()}{text[1:]}") from None
    for cidr in values.cluster_networks:
        try:
            ip_network(cidr)
        except ValueError as exc:
            raise ValuesError(
                f"values.clusterNetworks: expected networks such as 10.0.0.0/8: {exc}"
            ) from None
    return values


def override(tree: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`tree` with assignments `a.b=value` on top; a value `[a,b]` is a list.

    Raises:
        ValuesError: what is no assignment, or goes through what is no mapping.
    """
    result: dict[str, Any] = msgspec.convert(tree, dict[str, Any])
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.split(".")
        if not equals or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", key) for key in keys):
            raise ValuesError(f"--set {assignment}: expected path.to.field=value")
        result = _assigned(result, keys, _value(text), assignment)
    return result


def _assigned(tree: Mapping[str, Any], keys: list[str], value: Any, assignment: str) -> dict[str, Any]:
    head, rest = keys[0], keys[1:]
    if not rest:
        return {**tree, head: value}
    below = tree.get(head, {})
    if not isinstance(below, Mapping):
        raise ValuesError(f"--set {assignment}: {head} has a value, expected a mapping")
    return {**tree, head: _assigned(below, rest, value, assignment)}


def _value(text: str) -> Any:
    """A list, or text: `parse` makes of it what the field is."""
    if text.startswith("[") and text.endswith("]"):
        return [part.strip() for part in text[1:-1].split(",") if part.strip()]
    return text


def to_plain(values: Values) -> dict[str, Any]:
    """Only what differs from the defaults, as `parse` reads it."""
    plain: dict[str, Any] = msgspec.to_builtins(values)
    return plain
