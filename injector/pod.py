"""The parts of a pod that are looked at, with their types. Pure.

From the API server a pod is always well formed; a manifest that somebody writes may be anything.
"""

from __future__ import annotations

import msgspec

from injector.decision import Object


class PodError(ValueError):
    """Something is not a pod; the message says where and what was expected."""


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    pass


class Security(_Part, frozen=True):
    run_as_user: int | None = None
    run_as_group: int | None = None


class Port(_Part, frozen=True):
    container_port: int
    name: str | None = None
    protocol: str | None = None


class Mount(_Part, frozen=True):
    name: str
    mount_path: str


class Env(_Part, frozen=True):
    name: str
    value: str | None = None


class Handler(_Part, frozen=True):
    """Of a check over the network."""

    port: int | str
    host: str | None = None


class Check(_Part, frozen=True):
    """A probe, or a lifecycle hook."""

    http_get: Handler | None = None
    tcp_socket: Handler | None = None
    grpc: Handler | None = None
    timeout_seconds: int | None = None


class Lifecycle(_Part, frozen=True):
    post_start: Check | None = None
    pre_stop: Check | None = None


class Container(_Part, frozen=True):
    name: str
    security_context: Security | None = None
    ports: tuple[Port, ...] | None = None
    env: tuple[Env, ...] | None = None
    volume_mounts: tuple[Mount, ...] | None = None
    readiness_probe: Check | None = None
    liveness_probe: Check | None = None
    startup_probe: Check | None = None
    lifecycle: Lifecycle | None = None


class Volume(_Part, frozen=True):
    name: str


class Os(_Part, frozen=True):
    name: str | None = None


class Spec(_Part, frozen=True):
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] | None = None
    volumes: tuple[Volume, ...] | None = None
    security_context: Security | None = None
    node_selector: dict[str, str] | None = None
    os: Os | None = None
    host_network: bool | None = None
    share_process_namespace: bool | None = None
    dns_policy: str | None = None
    termination_grace_period_seconds: int | None = None

    @property
    def all_containers(self) -> tuple[Container, ...]:
        """In the order of their start."""
        return (*(self.init_containers or ()), *self.containers)


class Metadata(_Part, frozen=True):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Pod(_Part, frozen=True):
    """A pod, or a template of pods."""

    spec: Spec
    metadata: Metadata | None = None

    @property
    def labels(self) -> dict[str, str]:
        return (self.metadata and self.metadata.labels) or {}

    @property
    def annotations(self) -> dict[str, str]:
        return (self.metadata and self.metadata.annotations) or {}


def read(pod: Object) -> Pod:
    """Look at a pod. Raises PodError."""
    try:
        return msgspec.convert(pod, Pod)
    except msgspec.ValidationError as exc:
        raise PodError(str(exc)) from None
