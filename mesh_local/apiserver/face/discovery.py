"""What the server can do: groups, versions, resources, OpenAPI documents and the version of the server.

Aggregated discovery is KEP-3352 (apidiscovery.k8s.io/v2).
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mesh_local.apiserver.face import formats
from mesh_local.apiserver.face.messages import Answer, Request, data_answer
from mesh_local.apiserver.registry import Registry
from mesh_local.kinds.base import Kind, Subresource
from mesh_local.machinery import openapi, openapi_v2
from mesh_local.machinery.objects import Object

VERSION: Object = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.0+triomesh",
    "gitCommit": "",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux",
}
_V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
# kubectl resolves a name that two groups have to the first of them.
_ORDER = (
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
)


class Discovery:
    """Answers the plain paths that describe the API; documents are made once per change of the kinds."""

    def __init__(self, registry: Registry, address: str) -> None:
        self._registry = registry
        self._address = address
        self._made: dict[str, tuple[bytes, str]] = {}
        self._generation = registry.generation

    def answer(self, request: Request) -> Answer | None:
        """The document at this path; None where there is none.

        Raises:
            ApiError: 406.
        """
        if self._generation != self._registry.generation:
            self._made.clear()
            self._generation = self._registry.generation
        path = "/" + request.path.strip("/")
        if path in ("/api", "/apis") and (aggregated := self._aggregated(request, path)):
            return aggregated
        if path == "/openapi/v2":
            return self._openapi_v2(request)
        if path.startswith("/openapi/v3"):
            return self._openapi(request, path)
        make = self._document(path)
        if make is None:
            return None
        form = formats.choose(request.header("accept"))
        return data_answer(200, make(), media=form.media)

    def _document(self, path: str) -> Callable[[], Object] | None:
        registry = self._registry
        match path.split("/")[1:]:
            case ["version"]:
                return lambda: VERSION
            case [""]:
                return lambda: {"paths": self._paths()}
            case ["api"]:
                return self._legacy_versions
            case ["apis"]:
                return lambda: {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [_group(name, registry.groups()[name]) for name in self._group_names()],
                }
            case ["apis", group] if group in registry.groups():
                return lambda: {
                    "kind": "APIGroup",
                    "apiVersion": "v1",
                    **_group(group, registry.groups()[group]),
                }
            case ["api", version] if registry.has_version("", version):
                return lambda: self._resources("", version)
            case ["apis", group, version] if group and registry.has_version(group, version):
                return lambda: self._resources(group, version)
        return None

    def _legacy_versions(self) -> Object:
        return {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self._address}],
        }

    def _group_names(self) -> list[str]:
        groups = self._registry.groups()
        return [g for g in _ORDER if g in groups] + sorted(g for g in groups if g not in _ORDER)

    def _members(self, group: str, version: str) -> list[Kind]:
        found = [k for k in self._registry.kinds if (k.group, k.version) == (group, version)]
        return sorted(found, key=lambda k: k.plural)

    def _resources(self, group: str, version: str) -> Object:
        resources = []
        for kind in self._members(group, version):
            resources.append(_resource(kind))
            resources += [_subresource(kind, sub) for sub in kind.subresources]
        head: Object = {"kind": "APIResourceList"}
        if group:
            head["apiVersion"] = "v1"
        name = f"{group}/{version}" if group else version
        return {**head, "groupVersion": name, "resources": resources}

    def _aggregated(self, request: Request, path: str) -> Answer | None:
        """The aggregated document where the client prefers it to the legacy one."""
        for form in formats.accepted(request.header("accept")):
            if form.as_ == "APIGroupDiscoveryList":
                if (form.group, form.version) != ("apidiscovery.k8s.io", "v2"):
                    continue
                body, etag = self._cached(path, lambda: self._aggregate(path))
                headers = (("Etag", etag), ("Vary", "Accept"))
                if etag in request.header("if-none-match"):
                    return Answer(304, headers=headers, cache="public")
                return Answer(200, body, _V2, headers, "public")
            if form.media in (formats.JSON, "*/*"):
                return None
        return None

    def _aggregate(self, path: str) -> Object:
        groups = self._registry.groups()
        if path == "/api":
            items: list[Object] = [{"metadata": {}, "versions": [self._aggregated_version("", "v1")]}]
        else:
            items = [
                {
                    "metadata": {"name": name},
                    "versions": [self._aggregated_version(name, version) for version in groups[name]],
                }
                for name in self._group_names()
            ]
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": items,
        }

    def _aggregated_version(self, group: str, version: str) -> Object:
        resources = [_aggregated_resource(kind) for kind in self._members(group, version)]
        return {"version": version, "resources": resources, "freshness": "Current"}

    def _openapi_v2(self, request: Request) -> Answer:
        """The document of every kind, in JSON or in protobuf; made when a client first asks for it."""
        media = openapi_v2.media_type([f.media for f in formats.accepted(request.header("accept"))])
        if not media:
            return Answer(406)
        if media not in self._made:
            body = openapi_v2.document_bytes(self._registry.kinds, media)
            self._made[media] = body, _etag(body)
        body, etag = self._made[media]
        headers = (("Etag", etag), ("Vary", "Accept"))
        if etag in request.header("if-none-match"):
            return Answer(304, headers=headers)
        return Answer(200, body, media, headers)

    def _openapi(self, request: Request, path: str) -> Answer | None:
        if path == "/openapi/v3":
            body, etag = self._cached(path, lambda: openapi.index(self._registry.kinds))
            if etag in request.header("if-none-match"):
                return Answer(304, headers=(("Etag", etag),))
            return Answer(200, body, formats.JSON, (("Etag", etag), ("Vary", "Accept")))
        group, version = self._group_version(path.removeprefix("/openapi/v3/"))
        if not self._registry.has_version(group, version):
            return None
        body, etag = self._cached(path, lambda: openapi.document(group, version, self._registry.kinds))
        headers = (("Etag", etag), ("Vary", "Accept"))
        if etag in request.header("if-none-match"):
            return Answer(304, headers=headers)
        cache = "public, immutable" if request.query.get("hash") else "no-cache, private"
        return Answer(200, body, formats.JSON, headers, cache)

    def _group_version(self, path: str) -> tuple[str, str]:
        match path.split("/"):
            case ["api", version]:
                return "", version
            case ["apis", group, version] if group:
                return group, version
        return "", ""

    def _cached(self, path: str, make: Callable[[], Any]) -> tuple[bytes, str]:
        """The document at a path with its ETag; there are as many as group versions."""
        if path not in self._made:
            body = msgspec.json.encode(make()) + b"\n"
            self._made[path] = body, _etag(body)
        return self._made[path]

    def _paths(self) -> Sequence[str]:
        """The index: what a client may ask for."""
        found = {"/api", "/apis", "/healthz", "/livez", "/readyz", "/openapi/v2", "/openapi/v3", "/version"}
        for kind in self._registry.kinds:
            path = f"/{openapi.group_path(kind.group, kind.version)}"
            found |= {path, f"/openapi/v3{path}"}
            if kind.group:
                found.add(f"/apis/{kind.group}")
        return sorted(found)


def _etag(body: bytes) -> str:
    return f'"{hashlib.sha512(body).hexdigest().upper()}"'


def _group(name: str, versions: Sequence[str]) -> Object:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _resource(kind: Kind) -> Object:
    found: Object = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        found["shortNames"] = list(kind.short_names)
    if kind.categories:
        found["categories"] = list(kind.categories)
    if "list" in kind.verbs:
        digest = hashlib.sha256(f"{kind.group}/{kind.version}/{kind.kind}".encode()).digest()
        found["storageVersionHash"] = base64.b64encode(digest[:8]).decode()
    return found


def _subresource(kind: Kind, subresource: Subresource) -> Object:
    found: Object = {
        "name": f"{kind.plural}/{subresource.name}",
        "singularName": "",
        "namespaced": kind.namespaced,
    }
    if subresource.group:
        found |= {"group": subresource.group, "version": subresource.version}
    return found | {"kind": subresource.kind, "verbs": list(subresource.verbs)}


def _aggregated_resource(kind: Kind) -> Object:
    found: Object = {
        "resource": kind.plural,
        "responseKind": _response_kind(kind.kind),
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        found["shortNames"] = list(kind.short_names)
    if kind.categories:
        found["categories"] = list(kind.categories)
    if kind.subresources:
        found["subresources"] = [
            {
                "subresource": sub.name,
                "responseKind": _response_kind(sub.kind, sub.group, sub.version),
                "verbs": list(sub.verbs),
            }
            for sub in kind.subresources
        ]
    return found


def _response_kind(kind: str, group: str = "", version: str = "") -> Object:
    return {"group": group, "version": version if group else "", "kind": kind}
