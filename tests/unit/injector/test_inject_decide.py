"""Annotations, values and reviews: what is read, and what is said where it cannot be."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from injector import review
from injector.annotations import ANNOTATIONS, AnnotationError, effective
from injector.decision import INJECTION, Inject, Namespace, Reason, Refuse, Skip
from injector.netinit.__main__ import main as netinit
from injector.patch import decide, remove
from injector.pod import PodError
from injector.values import Capture, ValuesError, from_mapping
from mesh_api.limits import VARIABLE_PREFIX
from mesh_api.names import PREFIX
from tests.support.inject import ENABLED, VALUES, values

POD: dict[str, Any] = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "x"}]}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("exclude-outbound-ports", "80,,90", "expected ports such as 80,8000-8010: empty item in '80,,90'"),
        ("exclude-inbound-ports", "70000", "70000 is not a port (1 to 65535)"),
        ("exclude-inbound-ports", "90-80", "90-80 runs backwards"),
        ("opaque-ports", "1-5000", "5000 ports are more than 4096"),
        ("include-inbound-ports", "80,*", "'*' cannot be an item of a list"),
        ("include-inbound-ports", "15006", "15006 is a port of the sidecar itself"),
        ("include-cidrs", "10.0.0.1/8", "expected *, none, or networks such as"),
        ("exclude-cidrs", "fe80::%eth0/64", "has a zone"),
        ("exclude-interfaces", "lo", "lo is needed by the sidecar"),
        ("proxy-cpu-request", "lots", "expected a quantity such as 100m or 128Mi: 'lots' is not"),
        ("proxy-memory-limit", "0", "'0' is not a quantity above zero"),
        ("proxy-limits", "headBytes=1", "headBytes: expected a whole number from 1024 to 1048576"),
        ("proxy-limits", "heads=4096", "'heads=4096' is no limit; these exist: connections, "),
        ("proxy-log-level", "trace", "expected one of debug, info, warning, error: 'trace' is none of them"),
        ("drain-seconds", "1h", "'1h' is not a number of seconds"),
        ("proxy-image", "a b", "'a b' is not the name of an image"),
        ("rewrite-probes", "no", "'no' is neither true nor false"),
        ("inject", "maybe", "'maybe' is neither true nor false"),
    ],
)
def test_annotation_that_cannot_be_used(name: str, text: str, message: str) -> None:
    with pytest.raises(AnnotationError) as refused:
        effective({PREFIX + name: text}, values())
    assert str(refused.value).startswith(f"annotation {PREFIX}{name}: ")
    assert message in str(refused.value)


def test_every_annotation_and_reason_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "injection.md").read_text()
    for key, annotation in ANNOTATIONS.items():
        assert key == PREFIX + annotation.name
        assert f"| `{annotation.name}` | {annotation.form} | {annotation.about} |" in page
    for reason in set(Reason) - {Reason.INJECTED, Reason.INVALID_ANNOTATION, Reason.INVALID_POD}:
        assert f"`{reason}`" in page


def test_an_annotation_replaces_a_default_and_may_contradict_another() -> None:
    defaults = values(capture={"excludeOutboundPorts": "3306"})
    changed, warnings = effective({PREFIX + "exclude-outbound-ports": "5432"}, defaults)
    assert changed.capture.exclude_outbound_ports == "5432"
    assert warnings == ()
    with pytest.raises(
        AnnotationError, match="include-outbound-ports: 3306 is also in exclude_outbound_ports"
    ):
        effective({PREFIX + "include-outbound-ports": "3306"}, defaults)


def test_limits_of_the_installation_and_of_the_pod_reach_the_sidecar() -> None:
    defaults = values(limits={"headBytes": 131072, "streams": 50})
    pod = {**POD, "metadata": {"annotations": {PREFIX + "proxy-limits": "streams=10, headSeconds=2.5"}}}
    decision = decide(pod, ENABLED, defaults)
    assert isinstance(decision, Inject)
    environment = decision.pod["spec"]["initContainers"][1]["env"]
    told = {one["name"]: one["value"] for one in environment if one["name"].startswith(VARIABLE_PREFIX)}
    assert told == {
        "TRIOMESH_LIMIT_HEAD_BYTES": "131072",
        "TRIOMESH_LIMIT_STREAMS": "10",
        "TRIOMESH_LIMIT_HEAD_SECONDS": "2.5",
    }


def test_netinit_takes_every_variable_that_the_injector_writes() -> None:
    known = {str(option.envvar) for option in netinit.params if getattr(option, "envvar", None)}
    assert {"TRIOMESH_" + name.upper() for name in Capture.__struct_fields__} <= known


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": "x"}, "missing required field `version`"),
        ({**VALUES, "imagge": "x"}, "unknown field `imagge`"),
        ({**VALUES, "logLevel": "loud"}, "$.logLevel"),
        ({**VALUES, "tokenSeconds": 5}, "$.tokenSeconds"),
        ({**VALUES, "capture": {"excludeCidrs": "x"}}, "capture: exclude_cidrs"),
    ],
)
def test_values_that_cannot_be_used(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValuesError) as refused:
        from_mapping(given)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"spec": None},
        {"spec": {"containers": None}},
        {"spec": {"containers": [{"image": "x"}]}},
        {"spec": {"containers": [{"name": "x", "livenessProbe": {"httpGet": {"path": "/"}}}]}},
        {"spec": {"containers": [{"name": "x", "lifecycle": "x"}]}},
        {"spec": {"containers": [], "volumes": [{}]}},
        {"metadata": {"annotations": {"a": 1}}, "spec": {"containers": []}},
    ],
)
def test_what_is_no_pod_is_refused(pod: dict[str, Any]) -> None:
    decision = decide(pod, ENABLED, values())
    assert isinstance(decision, Refuse)
    assert decision.reason is Reason.INVALID_POD
    assert "`$" in decision.message or "`spec`" in decision.message


def test_what_the_injector_left_must_be_readable() -> None:
    injected = decide(POD, ENABLED, values())
    assert isinstance(injected, Inject)
    for variable in injected.pod["spec"]["initContainers"][1]["env"]:
        if variable["name"] == "TRIOMESH_APP_METRICS":
            variable["value"] = '{"target": 5}'
    decision = decide(injected.pod, ENABLED, values())
    assert isinstance(decision, Refuse)
    assert "variable TRIOMESH_APP_METRICS of triomesh-proxy" in decision.message
    with pytest.raises(PodError, match="TRIOMESH_APP_METRICS"):
        remove(injected.pod)


def test_only_the_injector_gives_the_sidecar_variables_of_ours() -> None:
    first = decide(POD, ENABLED, values())
    assert isinstance(first, Inject)
    others = [{"name": "TRIOMESH_HTTP2_ENGINE", "value": "hyper"}, {"name": "ELSE", "value": "x"}]
    first.pod["spec"]["initContainers"][1]["env"] += others
    second = decide(first.pod, ENABLED, values())
    assert isinstance(second, Inject)
    names = [variable["name"] for variable in second.pod["spec"]["initContainers"][1]["env"]]
    assert "TRIOMESH_HTTP2_ENGINE" not in names
    assert "ELSE" in names


def test_removing_from_what_was_not_injected_changes_nothing() -> None:
    assert remove(POD) is POD


def test_dollars_of_the_user_reach_the_sidecar_as_they_are() -> None:
    probe = {"httpGet": {"path": "/$(HOME)$$x", "port": 80}}
    pod = {"spec": {"containers": [{"name": "web", "image": "x", "livenessProbe": probe}]}}
    decision = decide(pod, ENABLED, values())
    assert isinstance(decision, Inject)
    text = {v["name"]: v.get("value") for v in decision.pod["spec"]["initContainers"][1]["env"]}
    assert '"/$$(HOME)$$$$x"' in text["TRIOMESH_PROBES"]


def reviewed(**request: Any) -> dict[str, Any]:
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "x"},
            "object": POD,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **request,
        },
    }


def answered(namespace: Namespace = ENABLED, **request: Any) -> tuple[dict[str, Any], review.Decided]:
    asked = review.parse(json.dumps(reviewed(**request)).encode())
    body, decided = review.answer(asked, namespace, values())
    told = json.loads(body)
    assert (told["kind"], told["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
    assert told["response"]["uid"] == "u-1"
    response: dict[str, Any] = told["response"]
    return response, decided


def test_review_of_a_pod_that_is_injected() -> None:
    pod = {**POD, "spec": {**POD["spec"], "shareProcessNamespace": True}}
    response, decided = answered(object=pod)
    assert response["allowed"] is True
    assert response["patchType"] == "JSONPatch"
    injected = decide(pod, ENABLED, values())
    assert isinstance(injected, Inject)
    assert json.loads(base64.b64decode(response["patch"])) == injected.patch
    assert response["warnings"][0].startswith("shareProcessNamespace")
    assert response["auditAnnotations"] == {"decision": "Injected"}
    assert (decided.result, decided.reason, decided.namespace) == ("injected", Reason.INJECTED, "shop")
    assert (decided.involved.kind, decided.involved.name) == ("Pod", "web")


def test_review_with_nothing_to_do_has_no_patch() -> None:
    injected = decide(POD, ENABLED, values())
    assert isinstance(injected, Inject)
    response, decided = answered(object=injected.pod)
    assert (decided.result, decided.newsworthy) == ("unchanged", False)
    assert response == {"uid": "u-1", "allowed": True, "auditAnnotations": {"decision": "Injected"}}


def test_review_of_a_pod_that_is_skipped_tells_of_its_owner() -> None:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "u-9", "controller": True}
    meta = {
        "generateName": "web-1-",
        "ownerReferences": [{**owner, "controller": False, "name": "no"}, owner],
    }
    pod = {"metadata": meta, "spec": {**POD["spec"], "hostNetwork": True}}
    response, decided = answered(object=pod, dryRun=True)
    assert response == {"uid": "u-1", "allowed": True, "auditAnnotations": {"decision": "HostNetwork"}}
    assert (decided.result, decided.reason, decided.newsworthy) == ("skipped", Reason.HOST_NETWORK, False)
    assert decided.involved == review.Involved("apps/v1", "ReplicaSet", "web-1", "u-9")


def test_review_of_a_pod_that_is_refused() -> None:
    meta = {"name": "web", "annotations": {PREFIX + "exclude-outbound-ports": "x" * 5000}}
    response, decided = answered(object={**POD, "metadata": meta})
    assert response["allowed"] is False
    assert response["status"]["code"] == 400
    message = response["status"]["message"]
    assert message.startswith(f"InvalidAnnotation: annotation {PREFIX}exclude-outbound-ports: expected ports")
    assert len(message) <= review.MAX_TEXT
    assert decided.result == "refused"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b"[" * 100_000,
        json.dumps({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}).encode(),
        json.dumps({**reviewed(), "apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        json.dumps({**reviewed(), "kind": "Pod"}).encode(),
        json.dumps(reviewed(operation="UPDATE")).encode(),
        json.dumps(reviewed(uid="")).encode(),
        json.dumps(reviewed(namespace="")).encode(),
        json.dumps(reviewed(object=None)).encode(),
        json.dumps(reviewed(subResource="exec")).encode(),
        json.dumps(reviewed(kind={"group": "", "version": "v1", "kind": "Secret"})).encode(),
        json.dumps(reviewed(object={"metadata": {"name": 5}})).encode(),
    ],
)
def test_bytes_that_are_no_review(body: bytes) -> None:
    with pytest.raises(review.ReviewError) as refused:
        review.parse(body)
    assert len(str(refused.value)) < 300


def test_the_reasons_have_names_that_a_kubernetes_event_takes() -> None:
    for reason in Reason:
        assert reason.value.isalnum()
        assert reason.value[0].isupper()


def test_skips_do_not_touch_the_pod() -> None:
    before = msgspec.json.encode(POD)
    assert isinstance(decide(POD, Namespace("shop", {INJECTION: "disabled"}), values()), Skip)
    assert msgspec.json.encode(POD) == before
