"""Secrets that replicas share: made once however many start, changed only from what was read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mesh_control.kube.client import Client, Object
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import SECRETS


class SecretError(ValueError):
    """A Secret whose data is not base64."""


@dataclass(frozen=True)
class Secret:
    """A Secret's data and the version that it was read at."""

    namespace: str
    name: str
    data: Mapping[str, bytes] = field(repr=False)
    version: str


def from_object(obj: Object) -> Secret:
    """What a Secret holds. Raises SecretError."""
    metadata = obj["metadata"]
    try:
        data = {
            str(key): base64.b64decode(value, validate=True) for key, value in (obj.get("data") or {}).items()
        }
    except (binascii.Error, ValueError, TypeError):
        raise SecretError(
            f"Secret {metadata.get('namespace')}/{metadata.get('name')}: expected data in base64"
        ) from None
    return Secret(
        metadata.get("namespace", ""),
        metadata["name"],
        data,
        metadata.get("resourceVersion", ""),
    )


async def read(client: Client, namespace: str, name: str) -> Secret:
    """Raises KubeError or SecretError."""
    return from_object(await client.get(SECRETS, name, namespace))


async def create_once(
    client: Client,
    namespace: str,
    name: str,
    make: Callable[[], Mapping[str, bytes]],
    labels: Mapping[str, str],
) -> Secret:
    """The Secret, made if it is not there; of several that make it one wins, and all return that one.

    Raises KubeError or SecretError.
    """
    try:
        return await read(client, namespace, name)
    except KubeError as exc:
        if not exc.not_found:
            raise
    body = {
        "metadata": {"name": name, "labels": dict(labels)},
        "type": "Opaque",
        "data": {key: base64.b64encode(value).decode() for key, value in make().items()},
    }
    try:
        created = await client.create(SECRETS, body, namespace)
    except KubeError as exc:
        if not exc.already_exists:
            raise
        return await read(client, namespace, name)
    return from_object(created)


async def update(client: Client, old: Secret, data: Mapping[str, bytes]) -> Secret:
    """Replace the data of a Secret that nobody has changed since `old` was read; the rest of it stays.

    Raises KubeError, with `conflict` where somebody has.
    """
    changed: dict[str, str | None] = dict.fromkeys(old.data)
    changed |= {key: base64.b64encode(value).decode() for key, value in data.items()}
    patch = {"metadata": {"resourceVersion": old.version}, "data": changed}
    return from_object(await client.patch(SECRETS, old.name, old.namespace, patch))
