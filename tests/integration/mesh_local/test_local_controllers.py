"""The controllers together, on a real API server in process, with RBAC and a kubelet that writes status."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from mesh_local.client import WatchEvent
from mesh_local.controllers.decisions.revisions import REVISION
from mesh_local.controllers.namespaces import AGAIN_S
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import (
    annotations_of,
    condition,
    controller_of,
    dig,
    is_deleting,
    labels_of,
    meta,
    name_of,
    uid_of,
)
from tests.support.local_controllers import EXIT, ROOT_CA, UNREADY, Cluster, cluster, deployment

Scenario = Callable[[Cluster], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Run a scenario against a fresh cluster, in time that passes at once."""

    def run(scenario: Scenario, **options: object) -> None:
        async def main() -> None:
            async with cluster(tmp_path, **options) as c:
                await scenario(c)

        trio.run(main, clock=MockClock(autojump_threshold=0))

    return run


async def follow(c: Cluster, resource: str, take: Callable[[WatchEvent], None]) -> None:
    async with c.client.watch(resource, "t") as events:
        async for event in events:
            take(event)


async def _until_deleted(events: AsyncIterator[WatchEvent], name: str) -> AsyncIterator[WatchEvent]:
    async for event in events:
        if name_of(event.object) == name:
            yield event
            if event.type == "DELETED":
                return


async def rolled_out(c: Cluster, name: str = "web") -> dict:
    async def check():
        d = await c.get("deployments.apps", name)
        status = d.get("status") or {}
        wanted = d["spec"]["replicas"]
        counts = [status.get(k, 0) for k in ("replicas", "updatedReplicas", "availableReplicas")]
        current = status.get("observedGeneration") == meta(d)["generation"]
        return d if current and counts == [wanted] * 3 else None

    return await c.until(check, f"rollout of {name}")


async def gone(c: Cluster, resource: str, name: str, namespace: str = "t") -> None:
    async def check():
        return await c.get(resource, name, namespace) is None

    await c.until(check, f"{resource} {name} gone")


def test_rollout_creates_one_replica_set_and_its_pods(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment())
        d = await rolled_out(c)
        (rs,) = await c.list("replicasets.apps")
        hash_ = labels_of(rs)["pod-template-hash"]
        assert name_of(rs) == f"web-{hash_}"
        assert annotations_of(rs) == {
            "deployment.kubernetes.io/desired-replicas": "2",
            "deployment.kubernetes.io/max-replicas": "3",
            REVISION: "1",
        }
        assert rs["status"] == {
            "replicas": 2,
            "fullyLabeledReplicas": 2,
            "readyReplicas": 2,
            "availableReplicas": 2,
            "terminatingReplicas": 0,
            "observedGeneration": 1,
        }
        assert annotations_of(d)[REVISION] == "1"
        types = [(x["type"], x["status"], x["reason"]) for x in d["status"]["conditions"]]
        assert types == [
            ("Available", "True", "MinimumReplicasAvailable"),
            ("Progressing", "True", "NewReplicaSetAvailable"),
        ]
        message = condition(d, "Progressing")["message"]
        assert message == f'ReplicaSet "web-{hash_}" has successfully progressed.'
        for pod in await c.list("pods"):
            assert name_of(pod).startswith(f"web-{hash_}-")
            assert controller_of(pod)["uid"] == uid_of(rs)
            assert dig(pod, "spec", "nodeName") == "node1"
        await trio.sleep(1)
        assert await c.events("ScalingReplicaSet") == [f"Scaled up replica set web-{hash_} from 0 to 2"]
        assert len(await c.events("SuccessfulCreate")) == 2
        assert len(await c.events("Scheduled")) == 2

    run(scenario)


def test_update_keeps_availability_and_undo_revives_the_old_set(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment(replicas=4))
        await rolled_out(c)
        lowest = 4

        def take(event):
            nonlocal lowest
            lowest = min(lowest, dig(event.object, "status", "availableReplicas", default=4))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, c, "deployments.apps", take)
            await set_image(c, "x:2")
            await rolled_out(c)
            nursery.cancel_scope.cancel()
        assert lowest >= 3
        old, new = sorted(await c.list("replicasets.apps"), key=lambda s: annotations_of(s)[REVISION])
        assert (old["spec"]["replicas"], new["spec"]["replicas"]) == (0, 4)
        # What `kubectl rollout undo` does: it writes the old template back.
        await set_image(c, "x:1")
        d = await rolled_out(c)
        sets = {name_of(s): s for s in await c.list("replicasets.apps")}
        assert len(sets) == 2
        revived = sets[name_of(old)]
        assert annotations_of(revived)[REVISION] == "3"
        assert annotations_of(revived)["deployment.kubernetes.io/revision-history"] == "1"
        assert annotations_of(d)[REVISION] == "3"

    run(scenario)


async def set_image(c: Cluster, image: str) -> None:
    template = {"spec": {"containers": [{"name": "c", "image": image}]}}
    await c.client.patch("deployments.apps", "web", "t", {"spec": {"template": template}}, type="strategic")


def test_scale_up_and_down(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment())
        await rolled_out(c)
        for wanted in (5, 1, 0):
            await c.client.patch("deployments.apps", "web", "t", {"spec": {"replicas": wanted}})
            await rolled_out(c)

            async def check(wanted=wanted):
                return len(await c.list("pods")) == wanted

            await c.until(check, f"{wanted} pods")
        (rs,) = await c.list("replicasets.apps")
        await trio.sleep(1)
        messages = await c.events("ScalingReplicaSet")
        assert f"Scaled down replica set {name_of(rs)} from 5 to 1" in messages

    run(scenario)


def test_recreate_ends_old_pods_before_new_ones_start(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment(strategy={"type": "Recreate"}))
        await rolled_out(c)
        mixed = []
        present: dict[str, str] = {}

        def take(event):
            if event.type == "DELETED":
                present.pop(name_of(event.object), None)
            else:
                present[name_of(event.object)] = event.object["spec"]["containers"][0]["image"]
            if len(set(present.values())) > 1:
                mixed.append(dict(present))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, c, "pods", take)
            await set_image(c, "x:2")
            await rolled_out(c)
            nursery.cancel_scope.cancel()
        assert not mixed

    run(scenario)


def test_paused_deployment_does_not_roll_but_scales(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment())
        await rolled_out(c)
        await c.client.patch("deployments.apps", "web", "t", {"spec": {"paused": True}})
        await set_image(c, "x:2")
        await c.client.patch("deployments.apps", "web", "t", {"spec": {"replicas": 3}})

        async def scaled():
            return len(await c.list("pods")) == 3

        await c.until(scaled, "3 pods")
        assert len(await c.list("replicasets.apps")) == 1
        d = await c.get("deployments.apps", "web")
        assert condition(d, "Progressing")["reason"] == "DeploymentPaused"
        await c.client.patch("deployments.apps", "web", "t", {"spec": {"paused": None}})
        await rolled_out(c)
        assert len(await c.list("replicasets.apps")) == 2

    run(scenario)


def test_stuck_rollout_passes_its_deadline(run):
    async def scenario(c):
        d = deployment(progressDeadlineSeconds=20)
        d["spec"]["template"]["metadata"]["annotations"] = {UNREADY: ""}
        await c.client.create("deployments.apps", d)

        async def late():
            found = await c.get("deployments.apps", "web")
            return (condition(found, "Progressing") or {}).get("reason") == "ProgressDeadlineExceeded"

        await c.until(late, "the deadline")

    run(scenario)


def test_replica_set_adopts_matching_pods_and_releases_others(run):
    async def scenario(c):
        pod = {"metadata": {"name": "lone", "labels": {"app": "web"}}, "spec": {"containers": []}}
        pod["spec"]["containers"] = [{"name": "c", "image": "x"}]
        await c.client.create("pods", pod, "t")
        d = deployment()["spec"]
        rs = {
            "metadata": {"name": "rs"},
            "spec": {k: d[k] for k in ("replicas", "selector", "template")},
        }
        made = await c.client.create("replicasets.apps", rs, "t")

        async def two():
            found = await c.list("pods")
            owned = [p for p in found if (controller_of(p) or {}).get("uid") == uid_of(made)]
            return found if len(owned) == 2 else None

        found = await c.until(two, "two pods")
        assert "lone" in {name_of(p) for p in found}
        await c.client.patch("pods", "lone", "t", {"metadata": {"labels": {"app": "other"}}})

        async def released():
            found = await c.list("pods")
            lone = next(p for p in found if name_of(p) == "lone")
            return controller_of(lone) is None and len(found) == 3

        await c.until(released, "the pod released and replaced")

    run(scenario)


def test_replica_set_takes_a_pod_that_comes_later_and_gives_up_one_too_many(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment())
        await rolled_out(c)
        (rs,) = await c.list("replicasets.apps")
        pod = {"metadata": {"name": "lone", "labels": labels_of(rs)}, "spec": {}}
        pod["spec"]["containers"] = [{"name": "c", "image": "x"}]
        await c.client.create("pods", pod, "t")

        async def two():
            return len(await c.list("pods")) == 2

        await c.until(two, "two pods again")
        await trio.sleep(1)
        # The youngest goes: it has no node, or is not ready yet.
        assert await c.events("SuccessfulDelete") == ["Deleted pod: lone"]

    run(scenario)


def test_refused_pods_show_in_conditions_and_one_counted_event(run):
    async def scenario(c):
        d = deployment(replicas=1)
        d["spec"]["template"]["spec"]["priorityClassName"] = "absent"
        refuse_pods(c, "no pods today")
        await c.client.create("deployments.apps", d)

        async def failed():
            found = await c.get("deployments.apps", "web")
            return condition(found, "ReplicaFailure")

        found = await c.until(failed, "ReplicaFailure")
        assert (found["reason"], found["message"]) == ("FailedCreate", "no pods today")
        await trio.sleep(2)
        (event,) = [e for e in await c.list("events") if e["reason"] == "FailedCreate"]
        assert event["message"] == "Error creating: no pods today"
        assert event["count"] > 3
        assert event["source"] == {"component": "replicaset-controller"}

    run(scenario)


def refuse_pods(c: Cluster, message: str) -> None:
    class Refuse:
        async def mutate(self, request):
            if request.kind.resource == "pods" and request.operation == "CREATE":
                raise ApiError({"status": "Failure", "code": 403, "reason": "Forbidden", "message": message})

        async def validate(self, request): ...

    core = c.api.api.core
    core.plugins = (*core.plugins, Refuse())


@pytest.mark.parametrize("policy", ["Background", "Foreground", "Orphan"])
def test_deletion_of_an_owner(run, policy):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment())
        await rolled_out(c)
        order = []

        def take(event):
            if event.type == "DELETED":
                order.append(event.object["kind"])

        async with trio.open_nursery() as nursery:
            for resource in ("deployments.apps", "replicasets.apps", "pods"):
                nursery.start_soon(follow, c, resource, take)
            await trio.testing.wait_all_tasks_blocked()
            await c.client.delete("deployments.apps", "web", "t", propagation=policy)
            await gone(c, "deployments.apps", "web")
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        sets, pods = await c.list("replicasets.apps"), await c.list("pods")
        if policy == "Orphan":
            assert [controller_of(s) for s in sets] == [None]
            assert len(pods) == 2
            assert order == ["Deployment"]
            return
        assert (sets, pods) == ([], [])
        expected = ["Deployment", "ReplicaSet", "Pod", "Pod"]
        assert order == (expected if policy == "Background" else expected[::-1])

    run(scenario)


def test_one_of_two_owners_does_not_take_its_dependent_along(run):
    async def scenario(c):
        owners = [await c.client.create("configmaps", {"metadata": {"name": n}}, "t") for n in ("a", "b")]
        refs = [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": name_of(o), "uid": uid_of(o)} for o in owners
        ]
        child = {"metadata": {"name": "child", "ownerReferences": refs}}
        await c.client.create("configmaps", child, "t")
        await c.client.delete("configmaps", "a", "t")

        async def one():
            found = await c.get("configmaps", "child")
            return [r["name"] for r in meta(found)["ownerReferences"]] == ["b"]

        await c.until(one, "one owner left")
        await c.client.delete("configmaps", "b", "t")
        await gone(c, "configmaps", "child")

    run(scenario)


def test_owner_of_another_uid_is_no_owner(run):
    async def scenario(c):
        await c.client.create("configmaps", {"metadata": {"name": "a"}}, "t")
        ref = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "not-that-one"}
        child = {"metadata": {"name": "child", "ownerReferences": [ref]}}
        await c.client.create("configmaps", child, "t")
        await gone(c, "configmaps", "child")

    run(scenario)


def test_owner_of_an_unknown_kind_keeps_its_dependents(run):
    async def scenario(c):
        ref = {"apiVersion": "x.example/v1", "kind": "Widget", "name": "a", "uid": "1"}
        child = {"metadata": {"name": "child", "ownerReferences": [ref]}}
        await c.client.create("configmaps", child, "t")
        await trio.sleep(30)
        assert await c.get("configmaps", "child") is not None

    run(scenario)


async def serve_widgets(c: Cluster) -> None:
    """Define a custom kind."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    crd = {
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    await c.client.create("customresourcedefinitions.apiextensions.k8s.io", crd)


def test_custom_resources_own_and_are_owned(run):
    async def scenario(c):
        await serve_widgets(c)
        widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}
        made = await c.client.create("widgets.example.com", widget, "t")
        ref = {"apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": uid_of(made)}
        child = {"metadata": {"name": "child", "ownerReferences": [ref]}}
        config = await c.client.create("configmaps", child, "t")
        ref = {"apiVersion": "v1", "kind": "ConfigMap", "name": "child", "uid": uid_of(config)}
        widget["metadata"] = {"name": "grandchild", "ownerReferences": [ref]}
        await c.client.create("widgets.example.com", widget, "t")
        await trio.sleep(2)
        assert await c.get("configmaps", "child")
        await c.client.delete("widgets.example.com", "w", "t", propagation="Background")
        await gone(c, "configmaps", "child")
        await gone(c, "widgets.example.com", "grandchild")

    run(scenario)


def test_namespace_takes_its_custom_resources_along(run):
    async def scenario(c):
        await serve_widgets(c)
        widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}
        await c.client.create("widgets.example.com", widget, "t")
        async with c.client.watch("namespaces") as events:
            await c.client.delete("namespaces", "t")
            last = [e.object async for e in _until_deleted(events, "t")][-1]
        said = {found["type"]: found["status"] for found in last["status"]["conditions"]}
        assert len(said) == 5
        assert set(said.values()) == {"False"}
        await gone(c, "namespaces", "t", "")
        assert await c.list("widgets.example.com") == []

    run(scenario)


def test_namespace_goes_when_its_last_finalizer_does(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment())
        await rolled_out(c)
        held = {"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}
        await c.client.create("configmaps", held, "t")
        await c.client.delete("namespaces", "t", propagation="Background")

        async def reported():
            found = await c.get("namespaces", "t", "")
            return condition(found, "NamespaceFinalizersRemaining") if found else None

        async def waits():
            found = await reported()
            return found if found and found["status"] == "True" else None

        found = await c.until(waits, "the finalizer reported")
        assert found["message"] == (
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        )
        namespace = await c.get("namespaces", "t", "")
        content = condition(namespace, "NamespaceContentRemaining")["message"]
        assert content == "Some resources are remaining: configmaps. has 1 resource instances"
        assert [name_of(o) for o in await c.list("configmaps")] == ["held"]
        assert await c.list("pods") == []
        await c.client.patch("configmaps", "held", "t", {"metadata": {"finalizers": None}})
        # Seen by watching, long before the next look.
        with trio.fail_after(AGAIN_S / 5):
            await gone(c, "namespaces", "t", "")

    run(scenario)


def test_every_namespace_gets_its_account_and_root_certificate(run):
    async def scenario(c):
        await c.client.create("namespaces", {"metadata": {"name": "n"}})

        async def there():
            root = await c.get("configmaps", "kube-root-ca.crt", "n")
            return root and await c.get("serviceaccounts", "default", "n") and root

        root = await c.until(there, "account and certificate")
        assert root["data"] == {"ca.crt": ROOT_CA}
        await c.client.patch("configmaps", "kube-root-ca.crt", "n", {"data": {"ca.crt": "bad"}})
        await c.client.delete("serviceaccounts", "default", "n")

        async def restored():
            return (await there() or {}).get("data") == {"ca.crt": ROOT_CA}

        await c.until(restored, "both restored")

    run(scenario)


def job(name="j", exit_code=0, **spec):
    template = {
        "metadata": {"annotations": {EXIT: str(exit_code)}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "work", "image": "x"}]},
    }
    return {"metadata": {"name": name}, "spec": {"template": template, **spec}}


async def finished(c: Cluster, name: str, type_: str) -> dict:
    async def check():
        found = await c.get("jobs.batch", name)
        return found if (condition(found, type_) or {}).get("status") == "True" else None

    return await c.until(check, f"job {name} {type_}")


def test_job_succeeds(run):
    async def scenario(c):
        uncounted = []

        def take(event):
            if dig(event.object, "status", "uncountedTerminatedPods", "succeeded"):
                uncounted.append(event.object["status"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, c, "jobs.batch", take)
            await c.client.create("jobs.batch", job(backoffLimit=0), "t")
            found = await finished(c, "j", "Complete")
            nursery.cancel_scope.cancel()
        (pod,) = await c.list("pods")
        assert uncounted[0]["uncountedTerminatedPods"] == {"succeeded": [uid_of(pod)]}
        assert "succeeded" not in uncounted[0]
        status = found["status"]
        assert [x["type"] for x in status["conditions"]] == ["SuccessCriteriaMet", "Complete"]
        assert (status["succeeded"], status["ready"], status["terminating"]) == (1, 0, 0)
        assert "active" not in status
        assert status["uncountedTerminatedPods"] == {}
        assert status["completionTime"]
        assert "finalizers" not in meta(pod)
        assert labels_of(pod)["job-name"] == "j"
        await trio.sleep(1)
        assert await c.events("Completed") == ["Job completed"]

    run(scenario)


def test_job_runs_as_many_pods_at_once_as_parallelism_says(run):
    async def scenario(c):
        await c.client.create("jobs.batch", job(parallelism=2, completions=5), "t")
        most = 0

        async def done():
            nonlocal most
            found = await c.get("jobs.batch", "j")
            most = max(most, dig(found, "status", "active", default=0))
            return condition(found, "Complete")

        await c.until(done, "five completions")
        assert most == 2
        assert (await c.get("jobs.batch", "j"))["status"]["succeeded"] == 5
        assert len(await c.list("pods")) == 5

    run(scenario)


def test_indexed_job_completes_each_index_once(run):
    async def scenario(c):
        await c.client.create("jobs.batch", job(completionMode="Indexed", parallelism=2, completions=4), "t")
        found = await finished(c, "j", "Complete")
        assert (found["status"]["completedIndexes"], found["status"]["succeeded"]) == ("0-3", 4)
        assert found["status"]["uncountedTerminatedPods"] == {}
        pods = sorted(await c.list("pods"), key=lambda p: p["spec"]["hostname"])
        assert [p["spec"]["hostname"] for p in pods] == ["j-0", "j-1", "j-2", "j-3"]
        assert [labels_of(p)["batch.kubernetes.io/job-completion-index"] for p in pods] == list("0123")
        assert all(name_of(p).startswith(p["spec"]["hostname"] + "-") for p in pods)
        assert pods[0]["spec"]["containers"][0]["env"][0]["name"] == "JOB_COMPLETION_INDEX"
        assert not any(meta(p).get("finalizers") for p in pods)

    run(scenario)


def test_job_fails_after_its_backoff_limit(run):
    async def scenario(c):
        started = trio.current_time()
        await c.client.create("jobs.batch", job(exit_code=4, backoffLimit=1), "t")
        found = await finished(c, "j", "Failed")
        assert trio.current_time() - started > 10
        status = found["status"]
        assert [x["type"] for x in status["conditions"]] == ["FailureTarget", "Failed"]
        assert {x["reason"] for x in status["conditions"]} == {"BackoffLimitExceeded"}
        assert status["failed"] == 2
        await trio.sleep(1)
        assert await c.events("BackoffLimitExceeded") == ["Job has reached the specified backoff limit"]

    run(scenario)


def test_job_deadline_ends_its_pods(run):
    async def scenario(c):
        running = job(activeDeadlineSeconds=5)
        del running["spec"]["template"]["metadata"]
        await c.client.create("jobs.batch", running, "t")
        found = await finished(c, "j", "Failed")
        assert found["status"]["conditions"][-1]["reason"] == "DeadlineExceeded"

        async def empty():
            return not await c.list("pods")

        await c.until(empty, "no pods")

    run(scenario)


def test_pods_that_a_job_gives_up_are_no_failures(run):
    async def scenario(c):
        running = job(parallelism=3, completions=3, backoffLimit=0)
        del running["spec"]["template"]["metadata"]
        await c.client.create("jobs.batch", running, "t")

        def active(count):
            async def check():
                return dig(await c.get("jobs.batch", "j"), "status", "active") == count

            return check

        await c.until(active(3), "three pods")
        await c.client.patch("jobs.batch", "j", "t", {"spec": {"parallelism": 1}})
        await c.until(active(1), "one pod")
        await trio.sleep(60)
        status = (await c.get("jobs.batch", "j"))["status"]
        assert (status.get("failed"), status["active"], status.get("conditions")) == (None, 1, None)

    run(scenario)


def test_suspended_job_has_no_pods_and_resumes(run):
    async def scenario(c):
        await c.client.create("jobs.batch", job(suspend=True), "t")

        async def noted():
            return condition(await c.get("jobs.batch", "j"), "Suspended")

        await c.until(noted, "Suspended")
        assert await c.list("pods") == []
        await c.client.patch("jobs.batch", "j", "t", {"spec": {"suspend": False}})
        await finished(c, "j", "Complete")

    run(scenario)


def test_finished_job_is_deleted_with_its_pods_after_its_ttl(run):
    async def scenario(c):
        await c.client.create("jobs.batch", job(ttlSecondsAfterFinished=30), "t")
        await finished(c, "j", "Complete")
        await trio.sleep(20)
        assert await c.get("jobs.batch", "j") is not None
        await gone(c, "jobs.batch", "j")

        async def empty():
            return not await c.list("pods")

        await c.until(empty, "no pods")

    run(scenario)


def test_deleted_job_lets_its_running_pods_go(run):
    async def scenario(c):
        running = job()
        del running["spec"]["template"]["metadata"]
        await c.client.create("jobs.batch", running, "t")

        async def active():
            return await c.list("pods")

        await c.until(active, "a pod")
        await c.client.delete("jobs.batch", "j", "t", propagation="Background")

        async def empty():
            return not await c.list("pods")

        await c.until(empty, "no pods")

    run(scenario)


def service(name="web", **spec):
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    return {"metadata": {"name": name}, "spec": {"selector": {"app": "web"}, "ports": ports, **spec}}


async def slices_of(c: Cluster, name: str = "web") -> list:
    return list(await c.list("endpointslices.discovery.k8s.io", labels=f"kubernetes.io/service-name={name}"))


def test_slices_follow_readiness_and_termination(run):
    async def scenario(c):
        await c.client.create("services", service(), "t")

        async def empty():
            return await slices_of(c)

        (first,) = await c.until(empty, "an empty slice")
        assert (first["endpoints"], first["ports"]) == (None, None)
        assert meta(first)["generateName"] == "web-"
        await c.client.create("deployments.apps", deployment(replicas=1))

        def endpoint_with(**conditions):
            async def check():
                (found,) = await slices_of(c)
                (endpoint,) = found["endpoints"] or [{}]
                return found if endpoint.get("conditions") == conditions else None

            return check

        await c.until(endpoint_with(ready=False, serving=False, terminating=False), "not ready")
        ready = await c.until(endpoint_with(ready=True, serving=True, terminating=False), "ready")
        assert name_of(ready) == name_of(first)
        assert ready["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
        (pod,) = await c.list("pods")
        endpoint = ready["endpoints"][0]
        assert endpoint["targetRef"] == {
            "kind": "Pod",
            "namespace": "t",
            "name": name_of(pod),
            "uid": uid_of(pod),
        }
        assert (endpoint["addresses"], endpoint["nodeName"]) == ([pod["status"]["podIP"]], "node1")
        await c.client.patch("deployments.apps", "web", "t", {"spec": {"replicas": 0}})
        await c.until(endpoint_with(ready=False, serving=True, terminating=True), "terminating")

        async def left():
            (found,) = await slices_of(c)
            return found["endpoints"] is None and found["ports"] is None

        await c.until(left, "empty again")
        await c.client.delete("services", "web", "t")
        await gone(c, "endpointslices.discovery.k8s.io", name_of(first))
        await gone(c, "endpoints", "web")

    run(scenario)


def test_endpoints_leave_terminating_pods_out(run):
    async def scenario(c):
        await c.client.create("services", service(), "t")
        await c.client.create("deployments.apps", deployment())
        await rolled_out(c)

        async def both():
            found = await c.get("endpoints", "web")
            return found if len(dig(found, "subsets", 0, "addresses", default=[])) == 2 else None

        await c.until(both, "two addresses")
        pod = (await c.list("pods"))[0]
        await c.client.delete("pods", name_of(pod), "t")

        async def one():
            found = await c.get("endpoints", "web")
            addresses = dig(found, "subsets", 0, "addresses", default=[])
            return name_of(pod) not in [a["targetRef"]["name"] for a in addresses]

        await c.until(one, "one address")
        assert is_deleting(await c.get("pods", name_of(pod)))

    run(scenario)


def test_service_without_selector_is_left_alone(run):
    async def scenario(c):
        plain = service("plain")
        del plain["spec"]["selector"]
        await c.client.create("services", plain, "t")
        mine = {
            "metadata": {"name": "mine", "labels": {"kubernetes.io/service-name": "plain"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"]}],
        }
        await c.client.create("endpointslices.discovery.k8s.io", mine, "t")
        await trio.sleep(5)
        assert [name_of(s) for s in await slices_of(c, "plain")] == ["mine"]
        assert await c.get("endpoints", "plain") is None

    run(scenario)


def test_pod_that_fits_nowhere_says_why_and_is_bound_later(run):
    async def scenario(c):
        pod = {
            "metadata": {"name": "p"},
            "spec": {"nodeSelector": {"disk": "fast"}, "containers": [{"name": "c", "image": "x"}]},
        }
        await c.client.create("pods", pod, "t")

        async def refused():
            found = condition(await c.get("pods", "p"), "PodScheduled")
            return found if found and found["status"] == "False" else None

        found = await c.until(refused, "Unschedulable")
        message = (
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims "
            "to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for "
            "scheduling."
        )
        assert (found["reason"], found["message"]) == ("Unschedulable", message)
        await trio.sleep(1)
        assert await c.events("FailedScheduling") == [message]
        await c.client.patch("nodes", "node1", "", {"metadata": {"labels": {"disk": "fast"}}})

        async def bound():
            return dig(await c.get("pods", "p"), "spec", "nodeName")

        assert await c.until(bound, "bound") == "node1"
        await trio.sleep(1)
        (event,) = [e for e in await c.list("events") if e["reason"] == "Scheduled"]
        assert event["message"] == "Successfully assigned t/p to node1"
        assert (event["action"], event["reportingInstance"]) == ("Binding", "default-scheduler-vm")
        assert event["source"] == {}
        assert event["firstTimestamp"] is None

    run(scenario)


def test_pods_wait_for_room_on_the_node(run):
    async def scenario(c):
        for name in ("a", "b"):
            container = {"name": "c", "image": "x", "resources": {"requests": {"cpu": "3"}}}
            pod = {"metadata": {"name": name}, "spec": {"containers": [container]}}
            pod["spec"]["terminationGracePeriodSeconds"] = 1
            await c.client.create("pods", pod, "t")

        async def refused():
            return (condition(await c.get("pods", "b"), "PodScheduled") or {}).get("status") == "False"

        await c.until(refused, "b waits")
        found = condition(await c.get("pods", "b"), "PodScheduled")["message"]
        assert found.startswith("0/1 nodes are available: 1 Insufficient cpu.")
        await c.client.delete("pods", "a", "t")

        async def bound():
            return dig(await c.get("pods", "b"), "spec", "nodeName")

        await c.until(bound, "b bound")

    run(scenario)


def test_pods_of_a_lost_node_are_removed(run):
    async def scenario(c):
        await c.client.create("deployments.apps", deployment(replicas=1))
        await rolled_out(c)
        (pod,) = await c.list("pods")
        await c.client.delete("nodes", "node1")
        await trio.sleep(20)
        assert await c.get("pods", name_of(pod)) is not None
        await gone(c, "pods", name_of(pod))

    run(scenario)


def test_nothing_is_written_once_all_is_done(run):
    async def scenario(c):
        await c.client.create("services", service(), "t")
        await c.client.create("deployments.apps", deployment())
        await rolled_out(c)
        await trio.sleep(5)
        version = c.api.store.version
        await trio.sleep(60)
        assert c.api.store.version == version

    run(scenario)
