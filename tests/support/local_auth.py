"""Readers, clocks and objects for the tests of authentication, authorisation and webhooks."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_local.apiserver.auth.authenticator import ClusterAuthenticator
from mesh_local.apiserver.auth.tokens import TokenAuthority
from mesh_local.machinery.objects import Object

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RBAC = "rbac.authorization.k8s.io"


class FakeReader:
    """A `Reader` over a dict; `version` counts the writes."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.version = 0

    def put(self, resource: str, obj: Object) -> Object:
        metadata = obj["metadata"]
        self.version += 1
        stored = {**obj, "metadata": {**metadata, "resourceVersion": str(self.version)}}
        self.objects[resource, metadata.get("namespace", ""), metadata["name"]] = stored
        return stored

    def drop(self, resource: str, name: str, namespace: str = "") -> None:
        del self.objects[resource, namespace, name]
        self.version += 1

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None:
        return self.objects.get((resource, namespace, name))

    def list(self, resource: str, namespace: str = "") -> Sequence[Object]:
        found = [(k, o) for k, o in self.objects.items() if k[0] == resource and namespace in ("", k[1])]
        return [o for _, o in sorted(found, key=lambda entry: entry[0])]


class Clock:
    """The time, set by the test."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class DirectDialer:
    """A `Dialer` from the test's own network namespace."""

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        return await connected(host, port)


class LoopbackDialer:
    """A `Dialer` that reaches loopback whatever address is asked, as a node would reach a Pod."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        self.asked.append((host, port))
        return await connected("127.0.0.1", port)


async def connected(host: str, port: int) -> trio.SocketStream:
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def authenticator(reader: FakeReader, clock: Clock, **options: Any) -> ClusterAuthenticator:
    key = ec.generate_private_key(ec.SECP256R1())
    return ClusterAuthenticator(TokenAuthority(key, reader, clock, random.Random(7), **options))


def account(name: str = "bot", namespace: str = "t9", uid: str = "u-bot") -> Object:
    return {"metadata": {"name": name, "namespace": namespace, "uid": uid}}


def pod(name: str = "p", namespace: str = "t9", uid: str = "u-pod", **spec: Any) -> Object:
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "spec": {"serviceAccountName": "bot", "nodeName": "node1", **spec},
    }


def role(name: str, rules: list[Object], namespace: str = "t9") -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "rules": rules}


def cluster_role(name: str, rules: list[Object], **rest: Any) -> Object:
    return {"metadata": {"name": name, **rest.pop("metadata", {})}, "rules": rules, **rest}


def binding(name: str, kind: str, role_name: str, subjects: list[Object], namespace: str = "") -> Object:
    metadata: Object = {"name": name} | ({"namespace": namespace} if namespace else {})
    ref = {"apiGroup": RBAC, "kind": kind, "name": role_name}
    return {"metadata": metadata, "roleRef": ref, "subjects": subjects}


def rule(verbs: str, groups: str, resources: str, names: str = "") -> Object:
    """A rule from comma-separated lists."""
    found: Object = {
        "verbs": verbs.split(","),
        "apiGroups": groups.split(","),
        "resources": resources.split(","),
    }
    return found | ({"resourceNames": names.split(",")} if names else {})
