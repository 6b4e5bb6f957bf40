"""The Kubernetes API as commands see it: plain objects, bounded waits, errors in one line.

Configuration and authentication are the official client's; requests go by path, so that every kind, ours
included, is handled in the same way.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol
from urllib.parse import quote

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException

from meshctl.errors import KubeError

Object = dict[str, Any]
CONNECT_S, READ_S = 5, 30
FOLLOW_S = 24 * 3600
"""A log that says nothing for so long is no longer followed."""
TOKEN_S = 600
"""The shortest that the API server makes."""
_PAGE = 500


@dataclass(frozen=True)
class Resource:
    """Where objects of a kind are."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def group(self) -> str:
        return self.api_version.partition("/")[0] if "/" in self.api_version else ""

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        prefix = "apis" if self.group else "api"
        middle = f"/namespaces/{quote(namespace)}" if self.namespaced and namespace else ""
        end = f"/{quote(name)}" if name else ""
        return f"/{prefix}/{self.api_version}{middle}/{self.plural}{end}"


@dataclass(frozen=True)
class Answer:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Reader(Protocol):
    """The part of `Kube` that checks need."""

    host: str

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_s: float = READ_S,
    ) -> Answer: ...
    def token_of(self, namespace: str, account: str, audience: str) -> str: ...
    def request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any: ...
    def find(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None: ...
    def items(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]: ...
    def allowed(self, verb: str, resource: Resource, namespace: str | None, name: str = "") -> bool: ...
    def resource(self, api_version: str, kind: str) -> Resource | None: ...


@dataclass
class Kube:
    """A connection to one API server."""

    api: client.ApiClient
    host: str
    _resources: dict[str, dict[str, Resource]] = field(default_factory=dict)
    _tokens: dict[tuple[str, str, str], tuple[str, float]] = field(default_factory=dict)

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_s: float = READ_S,
    ) -> Answer:
        """Make a request and return whatever answer there is; `read_s` is how long it may say nothing.

        Raises:
            KubeError: there is no answer.
        """
        headers = {"Accept": "application/json", **(headers or {})}
        if body is not None:
            headers["Content-Type"] = "application/json"
        with self._reachable():
            call = self.api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = self.api.call_api(*call, _request_timeout=(CONNECT_S, read_s))
            return Answer(response.status, dict(response.headers), response.read() or b"")  # type: ignore[no-untyped-call]

    def request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        """Make a request and return the object of the answer.

        Raises:
            KubeError: there is no answer, or it is a refusal.
        """
        answer = self.send(method, path, query, body)
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if 200 <= answer.status < 300 and found is not None:
            return found
        if isinstance(found, dict) and found.get("kind") == "Status":
            message = str(found.get("message", "")) or f"HTTP {answer.status}"
            raise KubeError(message, answer.status, str(found.get("reason", "")))
        text = answer.body[:200].decode(errors="replace").strip()
        raise KubeError(f"{method} {path}: HTTP {answer.status} {text}", answer.status)

    def resource(self, api_version: str, kind: str) -> Resource | None:
        """Where a kind is served, or None where the server does not have it."""
        if api_version not in self._resources:
            prefix = "apis" if "/" in api_version else "api"
            try:
                listed = self.request("GET", f"/{prefix}/{api_version}")
            except KubeError as exc:
                if exc.status != 404:
                    raise
                return None
            self._resources[api_version] = {
                each["kind"]: Resource(api_version, each["kind"], each["name"], bool(each["namespaced"]))
                for each in listed.get("resources", [])
                if "/" not in each["name"]
            }
        return self._resources[api_version].get(kind)

    def needed(self, api_version: str, kind: str) -> Resource:
        """As `resource`, where the kind must be there."""
        found = self.resource(api_version, kind)
        if found is None:
            raise KubeError(f"{self.host} has no {kind} ({api_version})", 404)
        return found

    def find(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """One object, or None."""
        where = self.resource(api_version, kind)
        if where is None:
            return None
        try:
            found: Object = self.request("GET", where.path(namespace, name))
        except KubeError as exc:
            if exc.status == 404:
                return None
            raise
        return found

    def items(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """All objects of a kind, page by page; none where the server does not have the kind."""
        where = self.resource(api_version, kind)
        if where is None:
            return []
        query = {"limit": str(_PAGE)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        found: list[Object] = []
        while True:
            page = self.request("GET", where.path(namespace), query)
            found += [{"apiVersion": api_version, "kind": kind, **item} for item in page.get("items") or []]
            query["continue"] = page.get("metadata", {}).get("continue") or ""
            if not query["continue"]:
                return found

    def create(self, obj: Object) -> Object:
        where, namespace, _ = self._place(obj)
        made: Object = self.request("POST", where.path(namespace), body=obj)
        return made

    def replace(self, obj: Object) -> Object:
        """Replace an object as it was read: its resourceVersion refuses what has changed since."""
        where, namespace, name = self._place(obj)
        made: Object = self.request("PUT", where.path(namespace, name), body=obj)
        return made

    def delete(self, obj: Object) -> bool:
        """Delete an object with its dependants; False where it is not there."""
        where, namespace, name = self._place(obj)
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            self.request("DELETE", where.path(namespace, name), body=options)
        except KubeError as exc:
            if exc.status == 404:
                return False
            raise
        return True

    def allowed(self, verb: str, resource: Resource, namespace: str | None, name: str = "") -> bool:
        """Whether the caller may do this (SelfSubjectAccessReview)."""
        attributes = {"verb": verb, "group": resource.group, "resource": resource.plural}
        attributes["version"] = resource.api_version.rpartition("/")[2]
        if resource.namespaced and namespace:
            attributes["namespace"] = namespace
        if name:
            attributes["name"] = name
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        return bool(answer["status"]["allowed"])

    def log_lines(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        tail: int,
        follow: bool = False,
        previous: bool = False,
    ) -> Iterator[str]:
        """A container's log; with `follow` as long as it grows."""
        with self._reachable():
            # Undecoded, the client's answer is urllib3's own.
            response: Any = client.CoreV1Api(self.api).read_namespaced_pod_log(
                pod,
                namespace,
                container=container,
                tail_lines=tail,
                follow=follow,
                previous=previous,
                _preload_content=False,
                _request_timeout=(CONNECT_S, FOLLOW_S if follow else READ_S),
            )
            rest = b""
            for chunk in response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")

    def token_of(self, namespace: str, account: str, audience: str) -> str:
        """A short-lived token of a ServiceAccount for an audience (TokenRequest), kept while it is good."""
        wanted = namespace, account, audience
        token, until = self._tokens.get(wanted, ("", 0.0))
        if monotonic() >= until:
            body = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"audiences": [audience], "expirationSeconds": TOKEN_S},
            }
            where = Resource("v1", "ServiceAccount", "serviceaccounts", namespaced=True)
            made = self.request("POST", f"{where.path(namespace, account)}/token", body=body)
            token = str(made["status"]["token"])
            self._tokens[wanted] = token, monotonic() + TOKEN_S / 2
        return token

    def _place(self, obj: Object) -> tuple[Resource, str | None, str]:
        where = self.needed(obj["apiVersion"], obj["kind"])
        return where, obj["metadata"].get("namespace"), obj["metadata"]["name"]

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except ApiException as exc:
            raise KubeError(_status_message(exc), int(exc.status or 0)) from None
        except urllib3.exceptions.HTTPError as exc:
            raise KubeError(f"no answer from the API server at {self.host}: {_cause(exc)}") from None
        except ConfigException as exc:
            raise KubeError(f"cannot authenticate to {self.host}: {exc}") from None


def _status_message(exc: ApiException) -> str:
    try:
        return str(json.loads(exc.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {exc.status} {exc.reason}"


def _cause(exc: BaseException) -> str:
    """The innermost reason: urllib3 wraps it twice, and names its own objects."""
    reason = getattr(exc, "reason", None)
    if isinstance(reason, BaseException):
        return _cause(reason)
    if exc.__cause__ is not None:
        return _cause(exc.__cause__)
    text = str(exc).rpartition(": ")[2] if "object at 0x" in str(exc) else str(exc)
    return text or type(exc).__name__


def connect(kubeconfig: str | None, context: str | None) -> Kube:
    """Connect as kubectl does: --kubeconfig, KUBECONFIG, ~/.kube/config, then the pod's own account.

    Raises:
        KubeError: there is no usable configuration.
    """
    configuration = client.Configuration()
    in_pod = kubeconfig is None and "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ
    where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        if in_pod:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            # Named here: the client looks at the environment only once, when it is imported.
            config.load_kube_config(where, context, configuration, persist_config=False)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError, ValueError) as exc:
        raise KubeError(f"kubeconfig {where}: {exc}") from None
    configuration.retries = False
    return Kube(client.ApiClient(configuration), configuration.host)
