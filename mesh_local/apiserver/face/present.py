"""The forms in which objects, lists and events are answered: themselves, Table, PartialObjectMetadata."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mesh_local.apiserver.face.formats import Format
from mesh_local.apiserver.listing import Page
from mesh_local.client import WatchEvent
from mesh_local.kinds.base import Column, Kind
from mesh_local.machinery.objects import Object, meta

META = "meta.k8s.io/v1"
_NAME_ONLY = (Column("Name", format="name"),)


@dataclass(frozen=True, slots=True)
class Presenter:
    """Shapes the answers of one request.

    Args:
        include: the includeObject parameter of Tables: Metadata (also ''), Object or None.
    """

    kind: Kind
    form: Format
    include: str
    now: datetime

    def one(self, obj: Object) -> Object:
        if self.form.as_ == "Table":
            return self._table([obj], {"resourceVersion": meta(obj).get("resourceVersion", "")})
        if self.form.as_.startswith("PartialObjectMetadata"):
            return partial(obj)
        return obj

    def page(self, page: Page) -> Object:
        if self.form.as_ == "Table":
            return self._table(page.items, page.metadata)
        if self.form.as_.startswith("PartialObjectMetadata"):
            items: Any = [partial(obj) for obj in page.items] or None
            return {
                "kind": "PartialObjectMetadataList",
                "apiVersion": META,
                "metadata": page.metadata,
                "items": items,
            }
        kind = self.kind
        listed: Object = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version}
        if kind.definition:
            items = [{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in page.items]
            return {**listed, "metadata": page.metadata, "items": items}
        return {**listed, "metadata": {"continue": "", **page.metadata}, "items": page.items}

    def event(self, event: WatchEvent, *, first: bool) -> Object:
        """A watch event; only the first Table of a watch defines the columns."""
        obj = event.object
        if self.form.as_ == "Table":
            rows = [] if event.type == "BOOKMARK" else [obj]
            version = {k: v for k, v in meta(obj).items() if k in ("resourceVersion", "annotations")}
            if event.type != "BOOKMARK":
                version.pop("annotations", None)
            obj = self._table(rows, version)
            if not first:
                obj["columnDefinitions"] = None
        elif self.form.as_:
            obj = partial(obj)
        return {"type": event.type, "object": obj}

    def _table(self, objects: Iterable[Object], metadata: Object) -> Object:
        columns = self.kind.columns or _NAME_ONLY
        return {
            "kind": "Table",
            "apiVersion": META,
            "metadata": metadata,
            "columnDefinitions": [_definition(column) for column in columns],
            "rows": [{"cells": self._cells(obj), "object": self._included(obj)} for obj in objects],
        }

    def _cells(self, obj: Object) -> list[Any]:
        if not self.kind.columns:
            return [meta(obj).get("name", "")]
        return self.kind.row(obj, self.now)

    def _included(self, obj: Object) -> Object | None:
        if self.include == "None":
            return None
        return obj if self.include == "Object" else partial(obj)


def partial(obj: Object) -> Object:
    """Only the metadata of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": meta(obj)}


def _definition(column: Column) -> Object:
    return {
        "name": column.name,
        "type": column.type,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    }
