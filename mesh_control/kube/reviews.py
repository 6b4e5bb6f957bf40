"""Asking the API server whose token this is (TokenReview)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh_control.kube.client import Client
from mesh_control.kube.resources import TOKEN_REVIEWS

_EXTRA = "authentication.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class Reviewed:
    """The answer: `username` is '' where the token is not valid, and `error` may say why."""

    username: str = ""
    audiences: tuple[str, ...] = ()
    pod_name: str = ""
    pod_uid: str = ""
    error: str = ""


def _first(extra: Mapping[str, Any], key: str) -> str:
    values = extra.get(_EXTRA + key) or [""]
    return str(values[0])


async def review_token(client: Client, token: str, audience: str) -> Reviewed:
    """Have a token reviewed for one audience. Raises KubeError where there is no answer."""
    body = {"spec": {"token": token, "audiences": [audience]}}
    status = (await client.create(TOKEN_REVIEWS, body)).get("status") or {}
    if status.get("authenticated") is not True:
        return Reviewed(error=str(status.get("error") or ""))
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    return Reviewed(
        username=str(user.get("username") or ""),
        audiences=tuple(str(one) for one in status.get("audiences") or ()),
        pod_name=_first(extra, "pod-name"),
        pod_uid=_first(extra, "pod-uid"),
    )
