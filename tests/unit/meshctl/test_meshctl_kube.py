"""The API as commands see it: paging, refusals, writes that meet another's, waits."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from kubernetes import client

from manifests import names
from manifests.render import render
from manifests.values import Values
from meshctl import apply as cluster
from meshctl.errors import KubeError, MeshctlError
from meshctl.kube import Answer, Kube
from meshctl.merge import annotated
from meshctl.wait import poll, progress
from tests.support.meshctl_fake import FakeKube

Object = dict[str, Any]
CORE = {"resources": [{"name": "configmaps", "kind": "ConfigMap", "namespaced": True}]}


class Scripted(Kube):
    """Gives out prepared answers, and keeps what it was asked."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        super().__init__(client.ApiClient(client.Configuration()), "https://fake")
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Any]] = []

    def send(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Answer:
        self.asked.append((method, path, body or dict(query or {})))
        status, found = self.answers.pop(0)
        return Answer(status, {}, found if isinstance(found, bytes) else json.dumps(found).encode())


def config(version: str, **data: str) -> Object:
    metadata = {"name": "c", "namespace": "n"}
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    live = annotated(obj)
    return {**live, "metadata": {**live["metadata"], "resourceVersion": version}}


def wanted(**data: str) -> Object:
    metadata = {"name": "c", "namespace": "n"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def test_lists_are_read_page_by_page() -> None:
    pages = [
        (200, CORE),
        (200, {"metadata": {"continue": "x"}, "items": [{"metadata": {"name": "a"}}]}),
        (200, {"metadata": {}, "items": [{"metadata": {"name": "b"}}]}),
    ]
    kube = Scripted(*pages)
    found = kube.items("v1", "ConfigMap", "n", labels="a=b")
    assert [(each["kind"], each["metadata"]["name"]) for each in found] == [
        ("ConfigMap", "a"),
        ("ConfigMap", "b"),
    ]
    assert kube.asked[2] == (
        "GET",
        "/api/v1/namespaces/n/configmaps",
        {"limit": "500", "labelSelector": "a=b", "continue": "x"},
    )


def test_a_kind_that_is_not_there() -> None:
    missing = (404, {"kind": "Status", "message": "no", "reason": "NotFound"})
    kube = Scripted(missing, missing, missing)
    assert kube.resource("policy/v1", "PodDisruptionBudget") is None
    assert kube.items("policy/v1", "PodDisruptionBudget") == []
    with pytest.raises(KubeError, match=r"https://fake has no PodDisruptionBudget \(policy/v1\)"):
        kube.needed("policy/v1", "PodDisruptionBudget")


def test_an_answer_that_is_no_status() -> None:
    kube = Scripted((502, b"<html>bad gateway</html>"))
    with pytest.raises(KubeError, match="GET /version: HTTP 502 <html>bad gateway"):
        kube.request("GET", "/version")


def test_a_write_that_meets_anothers_is_tried_again_from_what_is_there() -> None:
    conflict = (409, {"kind": "Status", "message": "changed", "reason": "Conflict"})
    kube = Scripted(
        (200, CORE),
        (200, config("1", a="old")),
        conflict,
        (200, config("2", a="old", theirs="x")),
        (200, config("3", a="new")),
    )
    assert cluster.apply(kube, wanted(a="new")) == "configured"
    method, _, body = kube.asked[-1]
    assert method == "PUT"
    assert body["metadata"]["resourceVersion"] == "2"


def test_others_that_never_let_go() -> None:
    conflict = (409, {"kind": "Status", "message": "changed", "reason": "Conflict"})
    kube = Scripted((200, CORE), *[(200, config("1", a="old")), conflict] * 5)
    with pytest.raises(KubeError, match="configmap/c: others keep changing it; 5 tries"):
        cluster.apply(kube, wanted(a="new"))


def test_a_refusal_names_the_object() -> None:
    kube = Scripted((200, CORE), (404, {"message": ""}), (403, {"kind": "Status", "message": "quota"}))
    with pytest.raises(KubeError, match="configmap/c: quota"):
        cluster.apply(kube, wanted())


def test_a_missing_kind_that_the_mesh_needs() -> None:
    kube = FakeKube()
    kube.missing_kinds = {"NetworkPolicy"}
    said: list[str] = []
    assert len(cluster.supported(kube, render(Values()), said.append)) == len(render(Values())) - 1  # type: ignore[arg-type]
    assert said[0].startswith("networkpolicy.networking.k8s.io/triomesh-control skipped: the server has no")
    kube.missing_kinds = {"MutatingWebhookConfiguration"}
    with pytest.raises(MeshctlError, match=r"has no MutatingWebhookConfiguration .*, which the mesh needs"):
        cluster.supported(kube, render(Values()), said.append)  # type: ignore[arg-type]


def test_polling_ends() -> None:
    assert len(list(poll(0))) == 1


def deployment(generation: int = 1, name: str = names.CONTROL, **status: int) -> Object:
    metadata = {"name": name, "namespace": "n", "generation": generation, "labels": names.labels()}
    return {"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 2}, "status": status}


def hook(bundle: str) -> Object:
    entry = {"clientConfig": {"caBundle": bundle}}
    return {"kind": "MutatingWebhookConfiguration", "metadata": {"name": names.INJECTOR}, "webhooks": [entry]}


READY = {"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2}


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([], "there is no deployment triomesh-control in n"),
        ([deployment(2, **READY)], "triomesh-control: the new version has not been seen by the controller"),
        (
            [deployment(**{**READY, "availableReplicas": 1})],
            "triomesh-control: 1 of 2 replicas ready, 2 of this version",
        ),
        (
            [deployment(**{**READY, "replicas": 3})],
            "triomesh-control: 1 replicas of an older version still end",
        ),
        (
            [deployment(**READY), hook("")],
            "triomesh-injector: the control plane has not written its CA bundle",
        ),
        ([deployment(**READY), hook("LS0t")], ""),
        (
            [deployment(**READY), deployment(name=names.CA, **{**READY, "availableReplicas": 0})],
            "triomesh-ca: 0 of 2 replicas ready, 2 of this version",
        ),
    ],
)
def test_what_is_still_missing(objects: list[Object], said: str) -> None:
    assert progress(FakeKube(*objects), "n") == said  # type: ignore[arg-type]
