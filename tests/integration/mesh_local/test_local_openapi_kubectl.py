"""The OpenAPI documents as the real kubectl reads them: `explain`, and whether the server can validate."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mesh_local.kinds.base import Kind, Subresource
from mesh_local.machinery import openapi
from mesh_local.machinery.patch import merge_patch, strategic_merge

KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent))
SCHEMA = {
    "type": "object",
    "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer", "description": "How big."}}}
    },
}
KINDS = [
    Kind(
        kind="Pod",
        plural="pods",
        singular="pod",
        short_names=("po",),
        definition="io.k8s.api.core.v1.Pod",
        subresources=(Subresource("status", "Pod", ("get", "patch", "update")),),
    ),
    Kind(
        kind="ConfigMap", plural="configmaps", singular="configmap", definition="io.k8s.api.core.v1.ConfigMap"
    ),
    Kind(
        kind="Deployment",
        plural="deployments",
        singular="deployment",
        group="apps",
        definition="io.k8s.api.apps.v1.Deployment",
        subresources=(
            Subresource("scale", "Scale", ("get", "patch", "update"), group="autoscaling", version="v1"),
        ),
    ),
    Kind(kind="Widget", plural="widgets", singular="widget", group="demo.example.com", openapi=SCHEMA),
]


def discovery(kinds: list[Kind], group: str, version: str) -> dict[str, object]:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": [
            {
                "name": k.plural,
                "singularName": k.singular,
                "namespaced": k.namespaced,
                "kind": k.kind,
                "verbs": list(k.verbs),
                "shortNames": list(k.short_names),
            }
            for k in kinds
            if (k.group, k.version) == (group, version)
        ],
    }


def manifest(*images: tuple[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": "default"},
        "spec": {"containers": [{"name": name, "image": image} for name, image in images]},
    }


def live_pod() -> dict[str, Any]:
    """What was applied, and a container that something else added."""
    applied = manifest(("a", "a:1"), ("b", "b:1"))
    pod = manifest(("a", "a:1"), ("b", "b:1"), ("sidecar", "s:1"))
    pod["metadata"] |= {
        "uid": "1",
        "resourceVersion": "1",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(applied)},
    }
    return pod


def widget(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "demo.example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "x", "namespace": "default"},
        "spec": spec,
    }


def live_widget() -> dict[str, Any]:
    live = widget(size=1, tags=["a"], color="red")
    applied = json.dumps(widget(size=1, tags=["a"]))
    live["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": applied}
    return live


class Handler(BaseHTTPRequestHandler):
    requests: list[tuple[str, str]]
    patches: list[Any]

    def log_message(self, format: str, *args: object) -> None: ...

    def answer(self, code: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.requests.append(("GET", self.path))
        path = urlsplit(self.path).path
        groups = {"apps": "v1", "demo.example.com": "v1"}
        if path == "/api":
            self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            listed = []
            for name, version in groups.items():
                entry = {"groupVersion": f"{name}/{version}", "version": version}
                listed.append({"name": name, "versions": [entry], "preferredVersion": entry})
            self.answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})
        elif path == "/api/v1":
            self.answer(200, discovery(KINDS, "", "v1"))
        elif path.startswith("/apis/") and path.count("/") == 3:
            _, _, group, version = path.split("/")
            self.answer(200, discovery(KINDS, group, version))
        elif path == "/openapi/v3":
            self.answer(200, openapi.index(KINDS))
        elif path == "/openapi/v3/api/v1":
            self.answer(200, openapi.document("", "v1", KINDS))
        elif path.startswith("/openapi/v3/apis/"):
            group, version = path.split("/")[-2:]
            self.answer(200, openapi.document(group, version, KINDS))
        elif path == "/api/v1/namespaces/default/pods/x":
            self.answer(200, live_pod())
        elif path == "/apis/demo.example.com/v1/namespaces/default/widgets/x":
            self.answer(200, live_widget())
        else:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def do_PATCH(self) -> None:
        self.requests.append((self.headers["Content-Type"], self.path))
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.patches.append(patch)
        if "/widgets/" in self.path:
            self.answer(200, merge_patch(live_widget(), patch))
        else:
            self.answer(200, strategic_merge("io.k8s.api.core.v1.Pod", live_pod(), patch))

    def do_POST(self) -> None:
        self.requests.append(("POST", self.path))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(201, body)


@dataclass(frozen=True)
class Server:
    """Where it listens, what it was asked, and the patches it got."""

    url: str
    requests: list[tuple[str, str]]
    patches: list[Any]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    class Own(Handler):
        requests: list[tuple[str, str]] = []  # noqa: RUF012
        patches: list[Any] = []  # noqa: RUF012

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{httpd.server_address[1]}", Own.requests, Own.patches)
        finally:
            httpd.shutdown()
            thread.join()


def kubectl(url: str, home: Path, *args: str, stdin: str = "") -> str:
    assert KUBECTL is not None
    done = subprocess.run(
        [KUBECTL, "--server", url, "--cache-dir", str(home / "cache"), *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        env={"HOME": str(home), "KUBECONFIG": str(home / "none")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_explain_walks_references_of_a_built_in_kind(server: Server, tmp_path: Path) -> None:
    shown = kubectl(server.url, tmp_path, "explain", "pod.spec.containers.resources")
    assert "KIND:       Pod" in shown
    assert "VERSION:    v1" in shown
    assert "FIELD: resources <ResourceRequirements>" in shown
    assert "limits\t<map[string]Quantity>" in shown


def test_explain_shows_a_required_field_and_a_group(server: Server, tmp_path: Path) -> None:
    shown = kubectl(server.url, tmp_path, "explain", "deployment.spec")
    assert "GROUP:      apps" in shown
    assert "selector\t<LabelSelector> -required-" in shown
    assert "replicas\t<integer>" in shown


def test_explain_knows_a_custom_resource(server: Server, tmp_path: Path) -> None:
    assert "How big." in kubectl(server.url, tmp_path, "explain", "widget.spec.size")
    assert "metadata\t<ObjectMeta>" in kubectl(server.url, tmp_path, "explain", "widget")


@pytest.mark.parametrize(("api_version", "kind"), [("v1", "ConfigMap"), ("demo.example.com/v1", "Widget")])
def test_kubectl_leaves_validation_to_the_server(
    server: Server, tmp_path: Path, api_version: str, kind: str
) -> None:
    body = json.dumps({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "zz": 1})
    kubectl(server.url, tmp_path, "create", "-f", "-", stdin=body)
    posts = [path for method, path in server.requests if method == "POST"]
    assert len(posts) == 1
    assert "fieldValidation=Strict" in posts[0]
    assert not any("/openapi/v2" in path for _, path in server.requests)


def test_kubectl_apply_makes_strategic_patches_by_the_document(server: Server, tmp_path: Path) -> None:
    changed = json.dumps(manifest(("n", "n:1"), ("a", "a:2")))
    shown = kubectl(server.url, tmp_path, "apply", "-f", "-", stdin=changed)
    assert shown == "pod/x configured\n"
    (patch,) = server.patches
    assert "application/strategic-merge-patch+json" in [method for method, _ in server.requests]
    assert patch["spec"]["$setElementOrder/containers"] == [{"name": "n"}, {"name": "a"}]
    assert {"$patch": "delete", "name": "b"} in patch["spec"]["containers"]
    merged = strategic_merge("io.k8s.api.core.v1.Pod", live_pod(), patch)
    assert [(c["name"], c["image"]) for c in merged["spec"]["containers"]] == [
        ("n", "n:1"),
        ("a", "a:2"),
        ("sidecar", "s:1"),
    ]


def test_kubectl_apply_makes_merge_patches_for_custom_resources(server: Server, tmp_path: Path) -> None:
    changed = json.dumps(widget(tags=["b"]))
    assert kubectl(server.url, tmp_path, "apply", "-f", "-", stdin=changed) == (
        "widget.demo.example.com/x configured\n"
    )
    (patch,) = server.patches
    assert "application/merge-patch+json" in [method for method, _ in server.requests]
    assert merge_patch(live_widget(), patch)["spec"] == {"tags": ["b"], "color": "red"}
