"""The control plane's admin port, through the API server (`services/proxy`); see `mesh_api.admin`."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from manifests.names import CONTROL, SYSTEM_NAMESPACE
from mesh_api.admin import (
    ADMIN_AUDIENCE,
    ADMIN_PREFIX,
    MAX_ADMIN_BYTES,
    NO_PAGE,
    OPERATOR,
    TOKEN_HEADER,
    VIEWER,
    AdminError,
)
from mesh_api.traffic import Message
from meshctl import apply as cluster
from meshctl.errors import KubeError, MeshctlError
from meshctl.kube import READ_S, Kube, Reader

T = TypeVar("T", bound=Message)


class AdminUnavailable(KubeError):
    """The control plane did not answer, or refused; the text says why."""


def home(kube: Kube) -> str:
    """The control plane's namespace. Who may only ask its admin pages need not be able to look for it.

    Raises:
        MeshctlError: the mesh is not installed.
    """
    try:
        there = cluster.existing(kube)
    except KubeError as exc:
        if exc.status != 403:
            raise
        return SYSTEM_NAMESPACE
    if there is None:
        raise MeshctlError(f"the mesh is not installed in the cluster at {kube.host}")
    return there.namespace


def ask(
    kube: Reader,
    namespace: str,
    page: str,
    kind: type[T],
    *,
    method: str = "GET",
    query: Mapping[str, str] | None = None,
    read_s: float = READ_S,
) -> T:
    """Ask a page of the admin port; `read_s` is how long the answer may take.

    Raises:
        AdminUnavailable: there is no such answer.
    """
    path = f"/api/v1/namespaces/{namespace}/services/https:{CONTROL}:admin/proxy{ADMIN_PREFIX}{page}"
    token = _token(kube, namespace, VIEWER if method == "GET" else OPERATOR)
    answer = kube.send(method, path, query, headers={TOKEN_HEADER: token}, read_s=read_s)
    if len(answer.body) > MAX_ADMIN_BYTES:
        raise AdminUnavailable(f"{page}: expected at most {MAX_ADMIN_BYTES} bytes, got {len(answer.body)}")
    try:
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=kind)
        raise AdminUnavailable(_refusal(answer.body, namespace, answer.status), answer.status)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise AdminUnavailable(
            f"the control plane answered {page} with HTTP {answer.status} and what this meshctl cannot "
            f"read: {exc}",
            answer.status,
        ) from None


def _token(kube: Reader, namespace: str, account: str) -> str:
    try:
        return kube.token_of(namespace, account, ADMIN_AUDIENCE)
    except KubeError as exc:
        hint = {
            403: f"; ClusterRole {account}, bound in {namespace}, allows it",
            404: "; the mesh that is installed is older than this meshctl: see `meshctl upgrade`",
        }
        raise AdminUnavailable(f"{exc}{hint.get(exc.status, '')}", exc.status) from None


def _refusal(body: bytes, namespace: str, status: int) -> str:
    """The control plane's own words, or the API server's about it."""
    try:
        error = msgspec.json.decode(body, type=AdminError).error
        return f"{error}: the control plane is older than this meshctl" if error == NO_PAGE else error
    except msgspec.ValidationError:
        message = str(msgspec.json.decode(body, type=dict[str, object]).get("message"))
    if status == 403:
        return f"{message}; ClusterRole {VIEWER} or {OPERATOR}, bound in {namespace}, allows it"
    if status == 503:
        return f"the control plane does not answer; the API server says: {message}"
    return f"the API server says: {message}"
