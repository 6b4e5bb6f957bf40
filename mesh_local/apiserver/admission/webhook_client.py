"""Calls one webhook over HTTPS."""

import base64
import binascii
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import trio

from mesh_local.apiserver import egress_tls
from mesh_local.apiserver.admission.webhook_match import Hook
from mesh_local.apiserver.admission.webhook_review import BadAnswer, decoded
from mesh_local.apiserver.egress import Address, EgressError, Request, Response, fetch, resolve_host
from mesh_local.apiserver.service_routes import ServiceResolver
from mesh_local.machinery.objects import Object
from mesh_local.network.types import Dialer

HEADERS = (
    (b"User-Agent", b"kube-apiserver-admission"),
    (b"Accept", b"application/json, */*"),
    (b"Content-Type", b"application/json"),
)


class CallError(Exception):
    """A webhook could not be called, or did not answer properly."""


@dataclass(frozen=True, slots=True)
class _Where:
    """The parsed clientConfig; `service` is namespace, name and port."""

    url: str
    host: str
    server_name: str
    target: str
    service: tuple[str, str, int] | None
    port: int


class WebhookClient:
    """Sends reviews to webhooks: to Services from the node, to URLs from the host."""

    def __init__(self, services: ServiceResolver, host: Dialer) -> None:
        self._services = services
        self._host = host

    async def call(self, hook: Hook, review: Object) -> Object:
        """The AdmissionReview that the webhook answers. Raises CallError."""
        config = hook.spec["clientConfig"]
        try:
            ca = base64.b64decode(config.get("caBundle") or "", validate=True).decode("latin-1")
            tls = egress_tls.verified(ca)
        except (egress_tls.BadCaBundle, binascii.Error) as e:
            raise CallError(f"could not get REST client: {e}") from None
        where = _parse(config, hook.timeout_s)
        try:
            response = await self._post(where, tls, msgspec.json.encode(review), hook.timeout_s)
        except EgressError as e:
            raise CallError(f'failed to call webhook: Post "{where.url}": {e}') from None
        if not 200 <= response.status <= 206:
            raise CallError(f"failed to call webhook: {_refusal(response)}")
        try:
            return decoded(response.body)
        except BadAnswer as e:
            raise CallError(f"failed to call webhook: {e}") from None

    async def _post(self, where: _Where, tls: ssl.SSLContext, body: bytes, timeout_s: int) -> Response:
        with trio.move_on_after(timeout_s):
            address = await self._address(where)
            target = where.target.encode()
            return await fetch(
                Request("POST", target, where.host, address, HEADERS, body, tls, where.server_name)
            )
        raise EgressError("context deadline exceeded")

    async def _address(self, where: _Where) -> Address:
        if where.service:
            return self._services.by_port_number(*where.service)
        return await resolve_host(where.server_name, where.port, self._host)


def _parse(config: Object, timeout_s: int) -> _Where:
    query = f"?timeout={timeout_s}s"
    service = config.get("service")
    if service:
        namespace, name, port = service["namespace"], service["name"], service.get("port") or 443
        server_name = f"{name}.{namespace}.svc"
        host = f"{server_name}:{port}"
        target = (service.get("path") or "/") + query
        return _Where(f"https://{host}{target}", host, server_name, target, (namespace, name, port), port)
    parts = urlsplit(config["url"])
    target = (parts.path or "/") + query
    url = f"https://{parts.netloc}{target}"
    return _Where(url, parts.netloc, parts.hostname or "", target, None, parts.port or 443)


_REFUSALS = {
    400: "the server rejected our request for an unknown reason",
    401: "the server has asked for the client to provide credentials",
    404: "the server could not find the requested resource",
    405: "the server does not allow this method on the requested resource",
    409: "the server reported a conflict",
    422: "the server rejected our request due to an error in our request",
    429: "the server has received too many requests and has asked us to try again later",
    503: "the server is currently unable to handle the request",
    504: (
        "the server was unable to return a response in the time allotted, "
        "but may still be processing the request"
    ),
}


def _refusal(response: Response) -> str:
    """What client-go says about an answer that is no success."""
    content_type = response.header(b"content-type")
    is_text = not content_type or content_type.startswith("text/")
    said = response.body.decode(errors="replace").strip() if is_text else "unknown"
    if response.status in _REFUSALS:
        return _REFUSALS[response.status]
    if response.status == 403:
        return said
    if response.status >= 500:
        shown = msgspec.json.encode(said).decode()
        return f"an error on the server ({shown}) has prevented the request from succeeding"
    return f"the server responded with the status code {response.status} but did not return more information"
