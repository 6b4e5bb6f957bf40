"""The ASGI application: who calls, may they, what do they want, and the answer."""

import logging
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

import trio

from mesh_local.apiserver.api import Api, method_not_allowed, unknown_resource, verbs_of
from mesh_local.apiserver.core import Target
from mesh_local.apiserver.face import streams
from mesh_local.apiserver.face.caller import caller_of
from mesh_local.apiserver.face.discovery import Discovery
from mesh_local.apiserver.face.health import Checks, health
from mesh_local.apiserver.face.messages import (
    Answer,
    ClientGone,
    Message,
    Receive,
    Request,
    Scope,
    Send,
    data_answer,
    page_not_found,
    respond,
    warning_headers,
    with_headers,
)
from mesh_local.apiserver.face.paths import Route, route
from mesh_local.apiserver.face.resources import Resources
from mesh_local.apiserver.types import Authenticator, Call, HttpEndpoint, User
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors
from mesh_local.machinery.errors import ApiError

REQUEST_DEADLINE_S = 60.0
_ALWAYS: Checks = {"ping": lambda: True}
_ON_OBJECT = ("get", "update", "patch", "delete", "watch")
_ON_COLLECTION = ("list", "watch", "create", "deletecollection")
_ON_ALL = ("list", "watch")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class App:
    """Serves one API to any number of connections.

    Args:
        address: `host:port` under which clients reach the server, for legacy discovery.
        checks: what /healthz, /livez and /readyz ask, by name.
    """

    def __init__(
        self, api: Api, authenticator: Authenticator, address: str, checks: Checks = _ALWAYS
    ) -> None:
        self._api = api
        self._checks = checks
        self._authenticator = authenticator
        self._resources = Resources(api)
        self._discovery = Discovery(api.core.registry, address)
        self._http: dict[tuple[str, str], HttpEndpoint] = {}

    def register(self, resource: str, subresource: str, endpoint: HttpEndpoint) -> None:
        """Let `endpoint` answer every request to a subresource in HTTP (`services`, `proxy`)."""
        self._http[resource, subresource] = endpoint

    async def serve(self, scope: Scope, receive: Receive, send: Send, certificate: bytes | None) -> None:
        """Answer one request from a connection with this verified client certificate (DER)."""
        began = False

        async def noting(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        request = Request.of(scope, receive)
        try:
            await self._serve(request, scope, noting, certificate)
        except ClientGone:
            return
        except ApiError as error:
            failed = error
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            failed = errors.internal("see the log of the API server")
        else:
            return
        if began:
            raise ConnectionAbortedError("the response had begun")
        await _answer(request, send, data_answer(failed.code, failed.status, headers=failed.headers))

    async def _serve(self, request: Request, scope: Scope, send: Send, certificate: bytes | None) -> None:
        user = await _within_deadline(caller_of(self._api.core, self._authenticator, request, certificate))
        wanted = route(request.method, request.path, request.query)
        self._api.core.authorize_attributes(user, wanted.attributes)
        if wanted.attributes.path:
            await _answer(request, send, self._plain(request))
            return
        kind = self._kind(wanted)
        if kind is None:
            await _answer(request, send, self._no_kind(wanted))
            return
        if not kind.deprecation:
            await self._resource(request, scope, send, user, wanted, kind)
            return
        warning = warning_headers([kind.deprecation])
        try:
            await self._resource(request, scope, with_headers(send, warning), user, wanted, kind)
        except ApiError as error:
            raise ApiError(error.status, (*error.headers, *warning)) from None

    async def _resource(
        self, request: Request, scope: Scope, send: Send, user: User, wanted: Route, kind: Kind
    ) -> None:
        asked = wanted.attributes
        endpoint = self._http.get((kind.resource, asked.subresource))
        if endpoint is not None:
            call = Call(
                user,
                kind,
                asked.name,
                asked.namespace,
                asked.subresource,
                asked.verb,
                None,
                request.query,
            )
            await endpoint(scope, request.receive, send, call)
            return
        target = target_of(wanted, kind)
        if asked.verb == "watch":
            await streams.until_gone(request.receive, lambda: streams.watch(self._api, request, send, target))
        elif asked.subresource == "log":
            await streams.until_gone(request.receive, lambda: streams.log(self._api, request, send, target))
        else:
            answer = await _within_deadline(self._resources.serve(request, user, asked.verb, target))
            await _answer(request, send, answer)

    def _plain(self, request: Request) -> Answer:
        """A path that is no resource."""
        answer = health(request, self._checks) or self._discovery.answer(request)
        if answer is None:
            return page_not_found()
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        return answer

    def _kind(self, wanted: Route) -> Kind | None:
        asked = wanted.attributes
        return self._api.core.registry.by_path(asked.group, asked.version, asked.resource)

    def _no_kind(self, wanted: Route) -> Answer:
        asked = wanted.attributes
        if self._api.core.registry.is_builtin(asked.group, asked.version):
            raise unknown_resource()
        return page_not_found()


async def _answer(request: Request, send: Send, answer: Answer) -> None:
    """Respond after the body of the request, also one that nobody has read: the connection can go on."""
    if not await request.receive.discard():
        answer = replace(answer, headers=(*answer.headers, ("Connection", "close")))
    await respond(send, answer)


async def _within_deadline(work: Awaitable[T]) -> T:
    """Raise the 504 of the real server where a request takes too long."""
    with trio.move_on_after(REQUEST_DEADLINE_S):
        return await work
    raise errors.failure(504, "Timeout", "Timeout: request did not complete within the allotted timeout", {})


def target_of(wanted: Route, kind: Kind) -> Target:
    """The target of a request.

    Raises:
        ApiError: 404 for a path that the kind does not have, 405 for a method.
    """
    asked = wanted.attributes
    namespace = asked.namespace if kind.namespaced else ""
    # A namespace counts as being in itself, and in no other: authorisation looked at that one.
    expected = wanted.name if kind.resource == "namespaces" else ""
    misplaced = not kind.namespaced and asked.namespace != expected
    if wanted.rest or misplaced or (kind.namespaced and not namespace and wanted.name):
        raise unknown_resource()
    allowed = verbs_of(kind, asked.subresource)
    if not asked.subresource:
        on_path = (
            _ON_OBJECT if wanted.name else _ON_COLLECTION if namespace or not kind.namespaced else _ON_ALL
        )
        allowed = [verb for verb in allowed if verb in on_path]
    if asked.verb not in allowed:
        raise method_not_allowed()
    return Target(kind, namespace, wanted.name, asked.subresource)
