"""Pod Security by namespace labels: refusals, warnings, and the labels themselves."""

from typing import Any

import pytest
import trio

from mesh_local.apiserver.admission.pod_security import PodSecurity
from mesh_local.apiserver.types import Admission
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, copy
from tests.support.local_admission import Objects, create, update

ENFORCE = "pod-security.kubernetes.io/enforce"
NET = {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}
VIOLATION = (
    'non-default capabilities (container "init" must not include "NET_ADMIN", "NET_RAW" '
    "in securityContext.capabilities.add)"
)


def spec(context: Object | None = None) -> Object:
    return {
        "initContainers": [{"name": "init", "image": "x", "securityContext": context or NET}],
        "containers": [{"name": "app", "image": "x"}],
    }


def pod(namespace: str = "t", **more: Any) -> Object:
    return {"metadata": {"name": "net", "namespace": namespace}, "spec": {**spec(), **more}}


def deployment() -> Object:
    return {
        "metadata": {"name": "d", "namespace": "t"},
        "spec": {"template": {"metadata": {}, "spec": spec()}},
    }


def namespace(**labels: str) -> Object:
    return {
        "metadata": {
            "name": "t",
            "labels": {f"pod-security.kubernetes.io/{k.replace('_', '-')}": v for k, v in labels.items()},
        }
    }


def plugin(**labels: str) -> PodSecurity:
    objects = Objects()
    objects.add("namespaces", namespace(**labels))
    return PodSecurity(objects)


def warned(checked: PodSecurity, request: Admission) -> list[str]:
    trio.run(checked.validate, request)
    return request.warnings


def refusal(checked: PodSecurity, request: Admission) -> ApiError:
    with pytest.raises(ApiError) as refused:
        trio.run(checked.validate, request)
    return refused.value


def test_enforce_refuses_pods() -> None:
    error = refusal(plugin(enforce="baseline"), create("pods", pod()))
    assert (error.code, error.message) == (
        403,
        f'pods "net" is forbidden: violates PodSecurity "baseline:latest": {VIOLATION}',
    )
    assert error.status["details"] == {"name": "net", "kind": "pods"}


def test_the_version_is_named() -> None:
    error = refusal(plugin(enforce="baseline", enforce_version="v1.25"), create("pods", pod()))
    assert 'violates PodSecurity "baseline:v1.25": ' in error.message


def test_enforce_only_warns_of_templates() -> None:
    text = f'would violate PodSecurity "baseline:latest": {VIOLATION}'
    assert warned(plugin(enforce="baseline"), create("deployments.apps", deployment())) == [text]
    assert (
        warned(plugin(enforce="baseline", warn="privileged"), create("deployments.apps", deployment())) == []
    )


def test_warn_lets_pods_pass() -> None:
    [text] = warned(plugin(warn="restricted"), create("pods", pod()))
    assert text.startswith(
        'would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false ('
    )
    assert warned(plugin(), create("pods", pod())) == []


def test_an_update_that_changes_nothing_of_interest_passes() -> None:
    checked, old = plugin(enforce="baseline"), create("pods", pod()).object
    assert old is not None
    labelled = copy(old)
    labelled["metadata"]["labels"] = {"a": "1"}
    assert warned(checked, update("pods", labelled, old)) == []
    changed = copy(old)
    changed["spec"]["containers"][0]["image"] = "y"
    assert refusal(checked, update("pods", changed, old)).code == 403


def test_a_bad_level_is_refused() -> None:
    error = refusal(plugin(), update("namespaces", namespace(enforce="bogus"), namespace()))
    assert (error.code, error.message) == (
        422,
        f'Namespace "t" is invalid: metadata.labels[{ENFORCE}]: Invalid value: "bogus": '
        "must be one of privileged, baseline, restricted",
    )


def test_a_bad_level_that_is_stored_counts_as_restricted() -> None:
    error = refusal(plugin(enforce="bogus"), create("pods", pod()))
    assert 'violates PodSecurity "restricted:latest": ' in error.message


def test_a_stricter_namespace_names_the_pods_that_violate_it() -> None:
    objects = Objects()
    objects.add("namespaces", namespace())
    for name in ("a", "b"):
        objects.add("pods", {**pod(), "metadata": {"name": name, "namespace": "t"}})
    request = update("namespaces", namespace(enforce="baseline"), namespace())
    assert warned(PodSecurity(objects), request) == [
        'existing pods in namespace "t" violate the new PodSecurity enforce level "baseline:latest"',
        "a (and 1 other pod): non-default capabilities",
    ]
    looser = update("namespaces", namespace(enforce="baseline"), namespace(enforce="restricted"))
    assert warned(PodSecurity(objects), looser) == []
