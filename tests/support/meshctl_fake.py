"""A cluster as plain objects, for checks and commands that only read."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from meshctl.errors import KubeError
from meshctl.kube import Answer, Resource

Object = dict[str, Any]
CLUSTER_KINDS = {
    "Namespace",
    "Node",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
}


class FakeKube:
    """Answers from `objects`; requests by path from `pages`, else 404."""

    host = "https://fake:6443"

    def __init__(self, *objects: Object) -> None:
        self.objects = list(objects)
        self.pages: dict[tuple[str, str], Callable[[Any], Answer]] = {}
        self.missing_kinds: set[str] = set()
        self.denied: set[tuple[str, str]] = set()
        self.put("GET", "/version", {"major": "1", "minor": "36", "gitVersion": "v1.36.0"})

    def put(self, method: str, path: str, body: Any, status: int = 200, **headers: str) -> None:
        answer = Answer(status, headers, json.dumps(body).encode())
        self.pages[method, path] = lambda _: answer

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_s: float = 30,
    ) -> Answer:
        page = self.pages.get((method, path))
        if page is None:
            return Answer(404, {}, json.dumps({"kind": "Status", "message": "not here"}).encode())
        return page(body)

    def token_of(self, namespace: str, account: str, audience: str) -> str:
        if ("create", "token") in self.denied:
            raise KubeError(f'serviceaccounts "{account}" is forbidden', 403, "Forbidden")
        return f"{namespace}/{account} for {audience}"

    def request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        answer = self.send(method, path, query, body)
        found = json.loads(answer.body)
        if answer.status >= 300:
            raise KubeError(found["message"], answer.status)
        return found

    def resource(self, api_version: str, kind: str) -> Resource | None:
        if kind in self.missing_kinds:
            return None
        return Resource(api_version, kind, f"{kind.lower()}s", kind not in CLUSTER_KINDS)

    def allowed(self, verb: str, resource: Resource, namespace: str | None, name: str = "") -> bool:
        return (verb, resource.plural) not in self.denied

    def find(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        found = (o for o in self.items(api_version, kind, namespace) if o["metadata"]["name"] == name)
        return next(found, None)

    def items(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        if ("list", kind) in self.denied:
            raise KubeError(f'{kind} is forbidden: User "fake" cannot list', 403, "Forbidden")
        key, _, value = labels.partition("=")
        return [
            obj
            for obj in self.objects
            if obj["kind"] == kind
            and (namespace is None or obj["metadata"].get("namespace") == namespace)
            and (not key or (obj["metadata"].get("labels") or {}).get(key) == value)
        ]


def namespace(name: str, *, injected: bool = True) -> Object:
    labels = {"triomesh.dev/injection": "enabled"} if injected else {}
    return {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pod(name: str, space: str = "shop", *, sidecar: bool = False, **metadata: Any) -> Object:
    containers = [{"name": "app"}, *([{"name": "triomesh-proxy"}] if sidecar else [])]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, **metadata},
        "spec": {"containers": containers},
        "status": {"phase": "Running"},
    }
