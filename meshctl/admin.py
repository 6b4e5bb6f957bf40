"""The control plane's admin port, through the API server (`services/proxy`)."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from manifests.names import CONTROL
from mesh_api.admin import ADMIN_PREFIX, MAX_ADMIN_BYTES, AdminError
from mesh_api.sidecar import Message
from meshctl.errors import KubeError
from meshctl.kube import Reader

T = TypeVar("T", bound=Message)


class AdminUnavailable(KubeError):
    """The control plane did not answer, or refused; the text says why."""


def ask(
    kube: Reader,
    namespace: str,
    page: str,
    kind: type[T],
    *,
    method: str = "GET",
    query: Mapping[str, str] | None = None,
) -> T:
    """Ask a page of the admin port.

    Raises:
        AdminUnavailable: there is no such answer.
    """
    path = f"/api/v1/namespaces/{namespace}/services/{CONTROL}:admin/proxy{ADMIN_PREFIX}{page}"
    answer = kube.send(method, path, query)
    if len(answer.body) > MAX_ADMIN_BYTES:
        raise AdminUnavailable(f"{page}: expected at most {MAX_ADMIN_BYTES} bytes, got {len(answer.body)}")
    try:
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=kind)
        raise AdminUnavailable(_refusal(answer.body), answer.status)
    except msgspec.DecodeError as exc:
        raise AdminUnavailable(
            f"the control plane answered {page} with HTTP {answer.status} and what this meshctl cannot "
            f"read: {exc}",
            answer.status,
        ) from None


def _refusal(body: bytes) -> str:
    """The control plane's own words, or the API server's about it."""
    try:
        return msgspec.json.decode(body, type=AdminError).error
    except msgspec.ValidationError:
        message = msgspec.json.decode(body, type=dict[str, object]).get("message")
        return f"the API server says: {message}"
