"""Long-running answers: watches and container logs."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import trio

from mesh_local.apiserver import logs
from mesh_local.apiserver.api import Api
from mesh_local.apiserver.core import Target
from mesh_local.apiserver.face import formats
from mesh_local.apiserver.face.messages import Answer, Receive, Request, Send, respond, start
from mesh_local.apiserver.face.options import list_options
from mesh_local.apiserver.face.present import Presenter
from mesh_local.apiserver.listing import ListOptions
from mesh_local.machinery import errors
from mesh_local.machinery.errors import ApiError

MIN_WATCH_S = 1800.0


async def until_gone(receive: Receive, body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` until it ends or the client goes away. Raises what `body` raises of ApiError."""
    failed: ApiError | None = None
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        try:
            await body()
        except ApiError as error:
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def watch(api: Api, request: Request, send: Send, target: Target) -> None:
    """Stream events, one JSON document a line. Raises ApiError before the response began."""
    form = formats.choose(request.header("accept"))
    options = _with_deadline(api, list_options(request.query), target)
    presenter = Presenter(target.kind, form, request.query.get("includeObject", ""), api.core.now())
    try:
        async with api.watch(target, options) as events:
            await start(send, 200, formats.JSON)
            first = True
            async for event in events:
                await _line(send, presenter.event(event, first=first))
                first = False
    except ApiError as error:
        if error.code != 410:
            raise
        await start(send, 200, formats.JSON)
        await _line(send, {"type": "ERROR", "object": error.status})
    await send({"type": "http.response.body", "body": b""})


def _with_deadline(api: Api, options: ListOptions, target: Target) -> ListOptions:
    """A watch without timeout lasts half an hour to an hour; one path of the old form names an object.

    The caller may watch that object only, whatever else the field selector says.
    """
    if options.timeout_s is None:
        options = replace(options, timeout_s=MIN_WATCH_S * (1 + api.core.rng.random()))
    if target.name:
        named = f"metadata.name={target.name}"
        options = replace(options, fields=f"{named},{options.fields}" if options.fields else named)
    return options


async def _line(send: Send, event: object) -> None:
    body = msgspec.json.encode(event) + b"\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def log(api: Api, request: Request, send: Send, target: Target) -> None:
    """Stream the log of a container. Raises ApiError before the response began."""
    options = logs.read_log_options(request.query, target.name)
    found = logs.locate(api.core, target, options)
    if found is None:
        await respond(send, Answer(204))
        return
    if api.core.log_source is None:
        raise errors.internal("this server has no source of container logs")
    pod, options = found
    async with api.core.log_source.open_log(pod, options) as chunks:
        await start(send, 200, "text/plain")
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
