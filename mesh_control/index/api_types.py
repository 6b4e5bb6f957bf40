"""The parts of Kubernetes objects that are read, as the API sends them. `wire` makes records of them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mesh_control.index.objects import Phase

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class Wire(msgspec.Struct, rename="camel"):
    pass


class BareMeta(Wire):
    name: Name
    namespace: str = ""
    creation_timestamp: str | None = None
    generation: int = 0


class Bare(Wire):
    """An object of which nothing but the name is looked at."""

    metadata: BareMeta


class Owner(Wire):
    kind: str
    name: str
    controller: bool | None = None


class Meta(Wire):
    name: Name
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    owner_references: list[Owner] | None = None


class Named(Wire):
    metadata: Meta


class NodeSpec(Wire):
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class NodeAddress(Wire):
    type: str
    address: str


class NodeStatus(Wire):
    addresses: list[NodeAddress] | None = None


class ApiNode(Wire):
    metadata: Meta
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ServiceCidrSpec(Wire):
    cidrs: list[str] | None = None


class ApiServiceCidr(Wire):
    metadata: Meta
    spec: ServiceCidrSpec | None = None


class Env(Wire):
    name: str
    value: str | None = None


class Container(Wire):
    name: str


class InitContainer(Wire):
    name: str
    restart_policy: str | None = None
    env: list[Env] | None = None


class PodSpec(Wire):
    containers: list[Container]
    init_containers: list[InitContainer] | None = None
    node_name: str | None = None
    service_account_name: str | None = None
    host_network: bool | None = None


class PodIp(Wire):
    ip: str = ""


class PodStatus(Wire):
    phase: Phase | None = None
    pod_ip: str | None = msgspec.field(name="podIP", default=None)
    pod_ips: list[PodIp] | None = msgspec.field(name="podIPs", default=None)


class ApiPod(Wire):
    metadata: Meta
    spec: PodSpec
    status: PodStatus | None = None


class ApiServicePort(Wire):
    port: Port
    name: str | None = None
    protocol: str | None = None
    app_protocol: str | None = None


class ClientIp(Wire):
    timeout_seconds: int | None = None


class AffinityConfig(Wire):
    client_ip: ClientIp | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(Wire):
    type: str | None = None
    ports: list[ApiServicePort] | None = None
    selector: dict[str, str] | None = None
    cluster_ip: str | None = msgspec.field(name="clusterIP", default=None)
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    external_ips: list[str] | None = msgspec.field(name="externalIPs", default=None)
    ip_families: list[str] | None = None
    publish_not_ready_addresses: bool | None = None
    internal_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None


class Ingress(Wire):
    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancer(Wire):
    ingress: list[Ingress] | None = None


class ServiceStatus(Wire):
    load_balancer: LoadBalancer | None = None


class ApiService(Wire):
    metadata: Meta
    spec: ServiceSpec
    status: ServiceStatus | None = None


class SlicePort(Wire):
    name: str | None = None
    port: Port | None = None
    protocol: str | None = None


class Conditions(Wire):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Target(Wire):
    kind: str | None = None
    name: str | None = None
    namespace: str | None = None


class Hint(Wire):
    name: str


class Hints(Wire):
    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class ApiSliceEndpoint(Wire):
    addresses: list[str]
    conditions: Conditions | None = None
    target_ref: Target | None = None
    node_name: str | None = None
    hints: Hints | None = None


class ApiEndpointSlice(Wire):
    metadata: Meta
    address_type: str
    endpoints: list[ApiSliceEndpoint] | None = None
    ports: list[SlicePort] | None = None
