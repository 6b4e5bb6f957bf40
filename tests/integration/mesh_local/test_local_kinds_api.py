"""The built-in kinds and admission plugins inside the whole write path of the API server."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mesh_local.apiserver.admission.chain import ChainOptions, builtin_plugins
from mesh_local.apiserver.types import AdmissionPlugin
from mesh_local.client import Client
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, copy, meta
from tests.support.local_api import LocalApi, local_api
from tests.support.local_http import served


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Client]:
    """A client of a server with the built-in plugins, and a namespace `t` with its default account."""
    plugins: list[AdmissionPlugin] = []
    async with local_api(directory, plugins=plugins) as server:
        plugins += _chain(server)
        await server.client.create("namespaces", {"metadata": {"name": "t"}})
        await server.client.create("serviceaccounts", {"metadata": {"name": "default"}}, "t")
        yield server.client


def _chain(server: LocalApi) -> list[AdmissionPlugin]:
    return builtin_plugins(server.store, ChainOptions(random.Random(1)))


async def refusal(client: Client, resource: str, name: str, patch: object, namespace: str = "t") -> ApiError:
    with pytest.raises(ApiError) as refused:
        await client.patch(resource, name, namespace, patch, type="strategic")
    return refused.value


def pod() -> Object:
    return {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}


def test_a_pod_is_complete_when_it_is_created(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as client:
            created = await client.create("pods", pod(), "t")
            spec = created["spec"]
            assert meta(created)["generation"] == 1
            assert spec["serviceAccountName"] == "default"
            assert spec["priority"] == 0
            assert len(spec["tolerations"]) == 2
            assert spec["containers"][0]["volumeMounts"][0]["name"] == spec["volumes"][0]["name"]
            assert created["status"] == {"phase": "Pending", "qosClass": "BestEffort"}

    trio.run(main)


def test_a_pod_keeps_its_spec_and_takes_labels_and_status(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as client:
            await client.create("pods", pod(), "t")
            command = {"spec": {"containers": [{"name": "c", "command": ["x"]}]}}
            error = await refusal(client, "pods", "p", command)
            assert (error.code, error.status["details"]["causes"][0]["field"]) == (422, "spec")
            labelled = await client.patch("pods", "p", "t", {"metadata": {"labels": {"a": "b"}}})
            assert meta(labelled)["generation"] == 1
            ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
            changed = await client.patch("pods", "p", "t", ready, type="strategic", subresource="status")
            assert changed["status"]["phase"] == "Pending"
            assert meta(changed)["labels"] == {"a": "b"}

    trio.run(main)


def test_the_address_of_a_service_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as client:
            service: Object = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
            created = await client.create("services", service, "t")
            address = created["spec"]["clusterIP"]
            error = await refusal(client, "services", "web", {"spec": {"clusterIP": "10.96.1.2"}})
            assert error.message == (
                'Service "web" is invalid: spec.clusterIPs[0]: Invalid value: ["10.96.1.2"]: '
                "may not change once set"
            )
            bare = copy(created)
            del bare["spec"]["clusterIP"], bare["spec"]["clusterIPs"]
            kept = await client.update("services", bare)
            assert kept["spec"]["clusterIP"] == address
            assert meta(kept)["resourceVersion"] == meta(created)["resourceVersion"]
            opened = await client.patch("services", "web", "t", {"spec": {"type": "NodePort"}})
            assert opened["spec"]["ports"][0]["nodePort"] >= 30000
            closed = await client.patch("services", "web", "t", {"spec": {"type": "ClusterIP"}})
            assert "nodePort" not in closed["spec"]["ports"][0]

    trio.run(main)


def test_the_selector_of_a_deployment_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as client:
            template = {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "x:1"}]},
            }
            spec = {"selector": {"matchLabels": {"app": "web"}}, "template": template}
            created = await client.create(
                "deployments.apps", {"metadata": {"name": "web"}, "spec": spec}, "t"
            )
            assert created["status"] == {}
            labels = {"app": "other"}
            patch = {
                "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}
            }
            error = await refusal(client, "deployments.apps", "web", patch)
            assert error.message == (
                'Deployment.apps "web" is invalid: spec.selector: '
                'Invalid value: {"matchLabels":{"app":"other"}}: field is immutable'
            )

    trio.run(main)


def test_an_event_of_either_version_is_seen_in_both(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as client:
            event: Object = {
                "metadata": {"name": "e"},
                "eventTime": "2026-01-01T00:00:00.000000Z",
                "reportingController": "example.com/c",
                "reportingInstance": "i",
                "action": "Act",
                "reason": "R",
                "regarding": {"kind": "Pod", "name": "p", "namespace": "t"},
                "note": "n",
                "type": "Normal",
            }
            await client.create("events.events.k8s.io", event, "t")
            core = await client.get("events", "e", "t")
            assert (core["apiVersion"], core["message"], core["involvedObject"]["name"]) == ("v1", "n", "p")
            listed = await client.list("events.events.k8s.io", "t", fields="regarding.name=p")
            assert [i["note"] for i in listed.items] == ["n"]
            assert (await client.list("events", "t", fields="involvedObject.name=q")).items == []
            del event["eventTime"]
            with pytest.raises(ApiError) as caught:
                await client.create("events.events.k8s.io", event, "t")
            assert caught.value.message == 'Event "e" is invalid: eventTime: Required value'

    trio.run(main)


def test_namespaces_are_guarded(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as client:
            with pytest.raises(ApiError, match='namespaces "nope" not found'):
                await client.create("configmaps", {"metadata": {"name": "c"}}, "nope")
            labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "bogus"}}}
            error = await refusal(client, "namespaces", "t", labels, "")
            assert (error.code, error.message) == (
                422,
                'Namespace "t" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: '
                'Invalid value: "bogus": must be one of privileged, baseline, restricted',
            )
            await client.create("namespaces", {"metadata": {"name": "kube-public"}})
            with pytest.raises(ApiError, match="this namespace may not be deleted"):
                await client.delete("namespaces", "kube-public")

    trio.run(main)


def test_a_job_selects_by_the_uid_that_the_server_gave(tmp_path: Path) -> None:
    async def main() -> None:
        async with cluster(tmp_path) as client:
            template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x:1"}]}}
            job = await client.create(
                "jobs.batch", {"metadata": {"name": "j"}, "spec": {"template": template}}, "t"
            )
            uid = meta(job)["uid"]
            assert job["spec"]["selector"]["matchLabels"] == {"batch.kubernetes.io/controller-uid": uid}
            assert meta(job)["labels"]["job-name"] == "j"

    trio.run(main)


MANIFEST = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: t}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: t}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "x:1", ports: [{containerPort: 8080}]}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: j, namespace: t}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "x:1"}]}}}
"""


def test_kubectl_applies_twice_and_prints_what_there_is(tmp_path: Path) -> None:
    async def main() -> None:
        plugins: list[AdmissionPlugin] = []
        async with local_api(tmp_path, plugins=plugins) as local:
            plugins += _chain(local)
            await local.client.create("namespaces", {"metadata": {"name": "t"}})
            async with served(local, tmp_path) as server:
                await server.kubectl("apply", "-f", "-", stdin=MANIFEST)
                again = await server.kubectl("apply", "-f", "-", stdin=MANIFEST)
                assert again.splitlines() == [
                    "service/web unchanged",
                    "deployment.apps/web unchanged",
                    "job.batch/j unchanged",
                ]
                shown = await server.kubectl("-n", "t", "get", "all", "-o", "wide")
                rows = [
                    line.split() for line in shown.splitlines() if line.startswith(("service/", "deploy"))
                ]
                assert [(r[0], r[1]) for r in rows] == [
                    ("service/web", "ClusterIP"),
                    ("deployment.apps/web", "0/1"),
                ]
                assert rows[1][-3:] == ["c", "x:1", "app=web"]

    trio.run(main)
