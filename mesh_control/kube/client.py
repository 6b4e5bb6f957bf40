"""Requests to the API server on trio: one pool of connections, JSON as bytes, failures as `KubeError`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import httpcore
import msgspec
import trio

from mesh_control.kube.access import Access, AccessError
from mesh_control.kube.errors import KubeError, from_response
from mesh_control.kube.resources import Resource
from mesh_control.kube.transport import Backend

Object = dict[str, Any]
PatchType = Literal["json", "merge", "strategic"]

MAX_BODY_BYTES = 128 * 1024 * 1024
"""Of an answer; a page of 500 objects is far below it."""
MAX_ERROR_BYTES = 1024 * 1024
DEADLINE_S = 30.0
CONNECT_S = 5.0
MAX_CONNECTIONS = 100
IDLE_S = 60.0
PAGE = 500

_PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_CHUNK_EVERY = 16

_decode = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode


class _Whole:
    """Bytes as a request body. An iterator: a generator must not be left unfinished."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, b""
        if not content:
            raise StopAsyncIteration
        return content


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer."""

    status: int
    content_type: str
    body: bytes


def _query(**given: str | int | None) -> dict[str, str]:
    return {key: str(value) for key, value in given.items() if value not in (None, "")}


class Client:
    """The API server as one user sees it; share it, and close it with `aclose` or `async with`.

    Every method raises KubeError; `code` 0 means that no answer came.
    """

    def __init__(
        self,
        access: Access,
        *,
        user_agent: str = "triomesh",
        deadline_s: float = DEADLINE_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.access = access
        self.deadline_s = deadline_s
        parts = urlsplit(access.server)
        self._prefix = parts.path.rstrip("/")
        self._origin = (parts.hostname or "", parts.port or 443)
        self._host = parts.netloc.rpartition("@")[2]
        self._agent = user_agent
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=access.context,
            max_connections=max_connections,
            max_keepalive_connections=10,
            keepalive_expiry=IDLE_S,
            network_backend=Backend(),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; requests under way fail."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            await self._pool.aclose()

    # Requests

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        *,
        accept: str = "application/json",
        deadline_s: float | None = None,
        limit: int = MAX_BODY_BYTES,
    ) -> Response:
        """Any request, read to its end: also what a proxied Service or Pod answers.

        Args:
            path: from the API server's root, already percent-encoded.
            deadline_s: for all of it; the client's own by default.
            limit: bytes of the answer's body, above which it fails.
        """
        deadline = self.deadline_s if deadline_s is None else deadline_s
        try:
            with trio.fail_after(deadline):
                async with self._open(method, path, query, body, content_type, accept) as (answer, chunks):
                    data = await _read(chunks, limit)
                    return Response(answer.status, _header(answer, b"content-type"), data)
        except trio.TooSlowError:
            raise KubeError(0, "Timeout", f"{method} {path}: no answer within {deadline:g} s") from None

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], *, deadline_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A GET whose body is read as it comes; `deadline_s` is for the answer to begin."""
        scope = trio.CancelScope(deadline=trio.current_time() + deadline_s)
        with scope:
            async with self._open("GET", path, query, None, "", "application/json") as (_, chunks):
                scope.deadline = math.inf
                yield chunks
                return
        raise KubeError(0, "Timeout", f"GET {path}: no answer within {deadline_s:g} s")

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str,
        accept: str,
    ) -> AsyncIterator[tuple[httpcore.Response, AsyncIterator[bytes]]]:
        """The answer's head, and its body as it comes.

        A 401 is asked again once, with the token read anew: it may have been rotated.
        """
        target = self._prefix + path + ("?" + urlencode(query, quote_via=quote) if query else "")
        for fresh in (False, True):
            headers = [("host", self._host), ("user-agent", self._agent), ("accept", accept)]
            if body is not None:
                headers += [("content-type", content_type), ("content-length", str(len(body)))]
            try:
                if authorization := await trio.to_thread.run_sync(self.access.authorization, fresh):
                    headers.append(("authorization", authorization))
                url = httpcore.URL(scheme="https", host=self._origin[0], port=self._origin[1], target=target)
                async with (
                    self._pool.stream(
                        method,
                        url,
                        headers=headers,
                        content=_Whole(body or b""),
                        extensions=self._extensions(),
                    ) as answer,
                    _body(answer) as chunks,
                ):
                    if answer.status == 401 and not fresh and authorization:
                        await _read(chunks, MAX_ERROR_BYTES)
                        continue
                    if answer.status > 299:
                        data = await _read(chunks, MAX_ERROR_BYTES)
                        raise from_response(answer.status, data, _header(answer, b"retry-after"))
                    yield answer, chunks
                    return
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as exc:
                where = f"{method} {self.access.server}{path}"
                raise KubeError(0, "Unreachable", f"{where}: {exc or type(exc).__name__}") from None
            except AccessError as exc:
                raise KubeError(0, "Unreachable", str(exc)) from None

    def _extensions(self) -> Object:
        extensions: Object = {"timeout": {"connect": CONNECT_S, "pool": self.deadline_s}}
        if self.access.server_name:
            extensions["sni_hostname"] = self.access.server_name
        return extensions

    async def _object(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Object:
        sent = None if body is None else _encode(body)
        response = await self.request(method, path, query, sent, content_type)
        try:
            return _decode.decode(response.body)
        except msgspec.MsgspecError as exc:
            raise KubeError(0, "Unreachable", f"{method} {path}: expected an object in JSON: {exc}") from None

    # Objects

    async def get(
        self, resource: Resource, name: str, namespace: str = "", *, subresource: str = ""
    ) -> Object:
        """One object."""
        return await self._object("GET", resource.path(namespace, name, subresource))

    async def list_page(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        limit: int = PAGE,
        token: str = "",
    ) -> bytes:
        """One page of a list as it came; `metadata.continue` in it is the `token` of the next page."""
        query = _query(labelSelector=labels, fieldSelector=fields, limit=limit, **{"continue": token})
        return (await self.request("GET", resource.path(namespace), query)).body

    async def list(
        self, resource: Resource, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """All objects, page by page; for short lists that nobody watches."""
        found: list[Object] = []
        token = ""
        while True:
            page = await self.list_page(resource, namespace, labels=labels, fields=fields, token=token)
            decoded = _decode.decode(page)
            found += decoded.get("items") or []
            token = decoded.get("metadata", {}).get("continue") or ""
            if not token:
                return found

    async def create(
        self,
        resource: Resource,
        obj: Object,
        namespace: str = "",
        *,
        name: str = "",
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Create `obj`; with a subresource (`token`, `eviction`) `name` is its parent's."""
        path = resource.path(namespace, name, subresource)
        sent = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        return await self._object("POST", path, _query(dryRun="All" if dry_run else ""), sent)

    async def update(self, resource: Resource, obj: Object, *, subresource: str = "") -> Object:
        """Replace an object; its resourceVersion, if it has one, must still be the present one."""
        metadata = obj["metadata"]
        path = resource.path(metadata.get("namespace", ""), metadata["name"], subresource)
        return await self._object(
            "PUT", path, None, {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        )

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str,
        patch: object,
        *,
        type: PatchType = "merge",
        subresource: str = "",
    ) -> Object:
        """Change an object (RFC 6902, RFC 7386, or Kubernetes' strategic merge); also its `status`."""
        path = resource.path(namespace, name, subresource)
        return await self._object("PATCH", path, None, patch, _PATCHES[type])

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: Literal["", "Background", "Foreground", "Orphan"] = "",
    ) -> Object:
        """Delete one object, only if it still has this uid and version where they are given."""
        preconditions = _query(uid=uid, resourceVersion=resource_version)
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if preconditions:
            options["preconditions"] = preconditions
        if propagation:
            options["propagationPolicy"] = propagation
        return await self._object("DELETE", resource.path(namespace, name), None, options)


def _header(answer: httpcore.Response, name: bytes) -> str:
    return next((v.decode("latin-1") for k, v in answer.headers if k.lower() == name), "")


async def _read(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise KubeError(0, "TooLarge", f"expected an answer of at most {limit} bytes")
    return bytes(data)


@asynccontextmanager
async def _body(answer: httpcore.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of a body, which may be left unread: then the connection is closed."""
    chunks = _chunks(answer)
    try:
        yield chunks
    finally:
        if not getattr(answer.stream, "_closed", True):
            # httpcore's generators must come to their end; on a closed connection they do at once.
            await answer.aclose()
            try:
                async for _ in chunks:
                    pass
            except (httpcore.NetworkError, httpcore.ProtocolError):
                pass


async def _chunks(answer: httpcore.Response) -> AsyncIterator[bytes]:
    """The body as it comes; others get their turn also when it comes fast."""
    count = 0
    async for chunk in answer.aiter_stream():
        yield chunk
        count += 1
        if count % _CHUNK_EVERY == 0:
            await trio.lowlevel.checkpoint()
