"""Requests for resources: decode, call the verb, present the answer."""

from collections.abc import Mapping
from typing import Any

from mesh_local.apiserver.api import Api, method_not_allowed
from mesh_local.apiserver.core import Target, Written
from mesh_local.apiserver.decode import Body
from mesh_local.apiserver.delete import answer, read_options
from mesh_local.apiserver.face import formats
from mesh_local.apiserver.face.formats import Format
from mesh_local.apiserver.face.messages import (
    Answer,
    Request,
    data_answer,
    warning_headers,
)
from mesh_local.apiserver.face.options import delete_options, list_options, write_options
from mesh_local.apiserver.face.present import Presenter
from mesh_local.apiserver.listing import ListOptions
from mesh_local.apiserver.patching import no_strategic
from mesh_local.apiserver.types import User
from mesh_local.client import PatchType
from mesh_local.machinery import errors, jsontext, protobuf, schema
from mesh_local.machinery.objects import Object

_PATCHES: Mapping[str, PatchType] = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
}


class Resources:
    """The answers to authorised requests that end at once; watches and logs are streams."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def serve(self, request: Request, user: User, verb: str, target: Target) -> Answer:
        """Raises ApiError."""
        form = formats.choose(request.header("accept"))
        match verb:
            case "get":
                obj = await self._api.get(target, request.query.get("resourceVersion", ""))
                return self._answer(request, form, target, 200, obj)
            case "list":
                page = await self._api.list(target, list_options(request.query))
                data = self.presenter(request, form, target).page(page)
                return data_answer(200, data, media=form.media, pretty=_pretty(request))
            case "create":
                return await self._create(request, form, user, target)
            case "update":
                body = await read_body(request, target.kind.kind)
                options = write_options(request.query, "UpdateOptions")
                return self._written(
                    request, form, target, await self._api.update(user, target, body, options)
                )
            case "patch":
                return await self._patch(request, form, user, target)
            case "delete":
                return await self._delete(request, form, user, target)
            case "deletecollection":
                return await self._delete_collection(request, form, user, target)
        raise method_not_allowed()

    def presenter(self, request: Request, form: Format, target: Target) -> Presenter:
        include = request.query.get("includeObject", "")
        return Presenter(target.kind, form, include, self._api.core.now())

    async def _create(self, request: Request, form: Format, user: User, target: Target) -> Answer:
        body = await read_body(request, target.kind.kind)
        options = write_options(request.query, "CreateOptions")
        written = await self._api.create(user, target, body, options, request.query)
        return self._written(request, form, target, written)

    async def _patch(self, request: Request, form: Format, user: User, target: Target) -> Answer:
        media = request.header("content-type").split(";")[0].strip().lower()
        if media == "application/apply-patch+yaml":
            raise errors.failure(
                415,
                "UnsupportedMediaType",
                "server-side apply (application/apply-patch+yaml) is not supported here: "
                "use client-side apply, or a merge, strategic merge or JSON patch",
            )
        type_ = _PATCHES.get(media)
        if type_ is None:
            raise errors.failure(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        if type_ == "strategic" and not target.kind.definition and target.subresource != "scale":
            raise no_strategic()
        options = write_options(request.query, "PatchOptions")
        body = Body(*parse_patch(await request.body()))
        return self._written(request, form, target, await self._api.patch(user, target, body, type_, options))

    async def _delete(self, request: Request, form: Format, user: User, target: Target) -> Answer:
        options = await self._delete_options(request)
        deleted = await self._api.delete(user, target, options)
        return self._answer(
            request, form, target, 200, answer(target, deleted), warning_headers(deleted.warnings)
        )

    async def _delete_collection(self, request: Request, form: Format, user: User, target: Target) -> Answer:
        selected = list_options(request.query)
        plain = ListOptions(labels=selected.labels, fields=selected.fields)
        options = await self._delete_options(request)
        page = await self._api.delete_collection(user, target, plain, options)
        data = self.presenter(request, form, target).page(page)
        return data_answer(200, data, media=form.media, pretty=_pretty(request))

    async def _delete_options(self, request: Request) -> Any:
        media = formats.body_format(request.header("content-type"))
        raw = await request.body()
        options = delete_options(request.query)
        if not raw:
            return options
        data, _ = _parse(raw, media, "DeleteOptions")
        return read_options(data, dry_run=options.dry_run)

    def _written(self, request: Request, form: Format, target: Target, written: Written) -> Answer:
        status = 201 if written.created else 200
        return self._answer(request, form, target, status, written.object, warning_headers(written.warnings))

    def _answer(
        self,
        request: Request,
        form: Format,
        target: Target,
        status: int,
        obj: Object,
        headers: list[tuple[str, str]] | None = None,
    ) -> Answer:
        if obj.get("kind") == target.kind.kind:
            obj = self.presenter(request, form, target).one(obj)
        return data_answer(status, obj, media=form.media, pretty=_pretty(request), headers=headers or ())


async def read_body(request: Request, kind: str) -> Body:
    """The body of a create or update. Raises ApiError 400, 413, 415."""
    media = formats.body_format(request.header("content-type"))
    return Body(*_parse(await request.body(), media, kind))


def _parse(raw: bytes, media: str, kind: str) -> tuple[Any, list[str]]:
    if media == formats.YAML:
        return schema.parse_yaml(raw, kind), []
    if media == formats.PROTOBUF:
        return protobuf.decode(raw), []
    return schema.parse_json(raw, kind)


def parse_patch(raw: bytes) -> tuple[Any, list[str]]:
    """The data of a patch. Raises ApiError 400."""
    try:
        return jsontext.parse_json(raw)
    except jsontext.TextError as error:
        raise errors.bad_request(f"error decoding patch: {error}") from None


def _pretty(request: Request) -> bool:
    return request.query.get("pretty", "").lower() in ("true", "1")
