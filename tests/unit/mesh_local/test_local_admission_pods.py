"""Admission of Pods: the namespace's life, service accounts, priority, tolerations."""

import random
from typing import Any

import pytest
import trio

from mesh_local.apiserver.admission.lifecycle import NamespaceLifecycle
from mesh_local.apiserver.admission.pod_defaults import DefaultTolerations, Priority
from mesh_local.apiserver.admission.service_account import MOUNT_PATH, ServiceAccounts
from mesh_local.apiserver.types import Admission, AdmissionPlugin
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object
from tests.support.local_admission import Objects, create, delete, update


def pod(**spec: Any) -> Object:
    return {
        "metadata": {"name": "p", "namespace": "t"},
        "spec": {"containers": [{"name": "c", "image": "x"}], **spec},
    }


def mutate(plugin: AdmissionPlugin, request: Admission) -> Object:
    trio.run(plugin.mutate, request)
    assert request.object is not None
    return request.object


def refusal(plugin: AdmissionPlugin, request: Admission) -> ApiError:
    with pytest.raises(ApiError) as refused:
        trio.run(plugin.mutate, request)
    return refused.value


def config_map(namespace: str) -> Object:
    return {"metadata": {"name": "late", "namespace": namespace}}


def test_nothing_is_made_in_a_missing_namespace() -> None:
    error = refusal(NamespaceLifecycle(Objects()), create("configmaps", config_map("nope")))
    assert (error.code, error.message) == (404, 'namespaces "nope" not found')


def test_nothing_is_made_in_a_terminating_namespace_but_updates_pass() -> None:
    objects = Objects()
    objects.namespace("t7", phase="Terminating")
    plugin = NamespaceLifecycle(objects)
    error = refusal(plugin, create("configmaps", config_map("t7")))
    assert (error.code, error.message) == (
        403,
        'configmaps "late" is forbidden: unable to create new content in namespace t7 '
        "because it is being terminated",
    )
    assert error.status["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    mutate(plugin, update("configmaps", config_map("t7"), config_map("t7")))


def test_immortal_namespaces() -> None:
    plugin = NamespaceLifecycle(Objects())
    error = refusal(plugin, delete("namespaces", "kube-system"))
    assert (error.code, error.message) == (
        403,
        'namespaces "kube-system" is forbidden: this namespace may not be deleted',
    )
    trio.run(plugin.mutate, delete("namespaces", "mine"))


def accounts(**fields: Any) -> ServiceAccounts:
    objects = Objects()
    objects.add("serviceaccounts", {"metadata": {"name": "default", "namespace": "t"}, **fields})
    return ServiceAccounts(objects, random.Random(1))


def test_a_pod_runs_as_default_and_gets_its_token_in_every_container() -> None:
    request = create("pods", pod(initContainers=[{"name": "i", "image": "x"}]))
    spec = mutate(accounts(), request)["spec"]
    assert spec["serviceAccountName"] == spec["serviceAccount"] == "default"
    [volume] = spec["volumes"]
    assert volume["name"].startswith("kube-api-access-")
    assert volume["projected"] == {
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {
                "downwardAPI": {
                    "items": [
                        {
                            "path": "namespace",
                            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                        }
                    ]
                }
            },
        ],
        "defaultMode": 420,
    }
    mount = {"name": volume["name"], "readOnly": True, "mountPath": MOUNT_PATH}
    assert [c["volumeMounts"] for c in (*spec["initContainers"], *spec["containers"])] == [[mount], [mount]]


def test_running_twice_mounts_once() -> None:
    request, plugin = create("pods", pod()), accounts()
    mutate(plugin, request)
    spec = mutate(plugin, request)["spec"]
    assert len(spec["volumes"]) == len(spec["containers"][0]["volumeMounts"]) == 1


@pytest.mark.parametrize(
    ("on_pod", "on_account", "mounted"),
    [(None, False, False), (False, None, False), (True, False, True), (None, None, True)],
)
def test_the_pod_decides_before_the_account(
    on_pod: bool | None, on_account: bool | None, mounted: bool
) -> None:
    spec = {} if on_pod is None else {"automountServiceAccountToken": on_pod}
    fields = {} if on_account is None else {"automountServiceAccountToken": on_account}
    result = mutate(accounts(**fields), create("pods", pod(**spec)))
    assert ("volumes" in result["spec"]) is mounted


def test_a_container_with_a_mount_of_its_own_there_is_left_alone() -> None:
    own = {"name": "mine", "mountPath": MOUNT_PATH}
    container = {"name": "c", "image": "x", "volumeMounts": [own]}
    spec = mutate(accounts(), create("pods", pod(containers=[container])))["spec"]
    assert spec["containers"][0]["volumeMounts"] == [own]
    assert "volumes" not in spec


def test_a_missing_account_is_forbidden() -> None:
    error = refusal(accounts(), create("pods", pod(serviceAccountName="absent")))
    assert (error.code, error.message) == (
        403,
        'pods "p" is forbidden: error looking up service account t/absent: serviceaccount "absent" not found',
    )


def test_a_refusal_shows_the_prefix_of_a_name_that_is_not_chosen_yet() -> None:
    obj = pod(serviceAccountName="absent")
    obj["metadata"] = {"generateName": "web-", "namespace": "t"}
    assert refusal(accounts(), create("pods", obj)).message.startswith('pods "web-" is forbidden: ')


def test_pull_secrets_come_from_the_account() -> None:
    spec = mutate(accounts(imagePullSecrets=[{"name": "s"}]), create("pods", pod()))["spec"]
    assert spec["imagePullSecrets"] == [{"name": "s"}]


def test_priority() -> None:
    spec = mutate(Priority(), create("pods", pod()))["spec"]
    assert (spec["priority"], spec["preemptionPolicy"]) == (0, "PreemptLowerPriority")
    high = mutate(Priority(), create("pods", pod(priorityClassName="system-node-critical")))["spec"]
    assert high["priority"] == 2_000_001_000
    error = refusal(Priority(), create("pods", pod(priorityClassName="mine")))
    assert error.message == 'pods "p" is forbidden: no PriorityClass with name mine was found'
    assert refusal(Priority(), create("pods", pod(priority=5))).code == 403
    kept = mutate(Priority(), update("pods", pod(), pod(priority=7, preemptionPolicy="Never")))["spec"]
    assert (kept["priority"], kept["preemptionPolicy"]) == (7, "Never")


def test_every_pod_tolerates_a_bad_node_for_five_minutes() -> None:
    own = {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 1}
    spec = mutate(DefaultTolerations(), create("pods", pod(tolerations=[own])))["spec"]
    assert spec["tolerations"] == [
        own,
        {
            "key": "node.kubernetes.io/unreachable",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 300,
        },
    ]
    everything = {"operator": "Exists"}
    spec = mutate(DefaultTolerations(), create("pods", pod(tolerations=[everything])))["spec"]
    assert spec["tolerations"] == [everything]
