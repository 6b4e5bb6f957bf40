"""Policies at admission: the API server asks our webhook, refuses what it refuses, and then fails closed."""

import json
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from injector import webhook
from injector.review import ReviewError
from manifests.crds.mesh_policy import mesh_policy
from manifests.crds.traffic_policy import traffic_policy
from manifests.values import Values
from manifests.webhooks import validator
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import VALIDATING_WEBHOOKS, Resource
from mesh_control.serve.validate import CONFIGURATION, PATH, TRAFFIC_POLICIES, Proof, Validator
from mesh_local.apiserver.admission.webhook_client import WebhookClient
from mesh_local.apiserver.admission.webhooks import ValidatingWebhooks, WebhookCaller
from mesh_local.apiserver.service_routes import ServiceResolver
from tests.support.control_api import ControlApi, run_api, until
from tests.support.inject import values
from tests.support.local_auth import DirectDialer, LoopbackDialer
from tests.support.local_webhook import Authority
from tests.support.policy_docs import examples

MESH_POLICIES = Resource("triomesh.dev", "v1alpha1", "meshpolicies", "MeshPolicy")
CRDS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
WEIGHTLESS = {"target": {"service": "web"}, "routes": [{"to": [{"weight": 0}]}]}
GOOD = {"target": {"service": "web"}}


def review(obj: Mapping[str, Any], kind: str = "TrafficPolicy", **more: Any) -> bytes:
    request = {
        "uid": "u-1",
        "kind": {"group": "triomesh.dev", "version": "v1alpha1", "kind": kind},
        "operation": "CREATE",
        "namespace": "shop",
        "name": "web",
        "object": obj,
        **more,
    }
    whole = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    return json.dumps(whole).encode()


def test_a_refusal_names_the_field() -> None:
    found = Validator()
    answer = json.loads(found.answer(review({"metadata": {"name": "web"}, "spec": WEIGHTLESS})))
    assert answer["apiVersion"] == "admission.k8s.io/v1"
    response = answer["response"]
    path, expected = "spec.routes[0].to", "expected weights with a sum above 0, got 0"
    assert response == {
        "uid": "u-1",
        "allowed": False,
        "status": {
            "code": 422,
            "reason": "Invalid",
            "message": f"{path}: {expected}",
            "details": {
                "group": "triomesh.dev",
                "kind": "TrafficPolicy",
                "name": "web",
                "causes": [{"reason": "FieldValueInvalid", "message": expected, "field": path}],
            },
        },
    }
    good = json.loads(found.answer(review({"metadata": {"name": "web"}, "spec": GOOD}, operation="UPDATE")))
    assert good["response"] == {"uid": "u-1", "allowed": True}
    assert found.decisions == {("TrafficPolicy", "denied"): 1, ("TrafficPolicy", "allowed"): 1}


def test_what_is_going_away_is_let_go() -> None:
    gone = {"metadata": {"name": "web", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": WEIGHTLESS}
    assert json.loads(Validator().answer(review(gone, operation="UPDATE")))["response"]["allowed"]


def test_an_access_policy_is_not_supported_yet() -> None:
    response = json.loads(Validator().answer(review({"spec": {}}, "AccessPolicy")))["response"]
    assert response["status"]["message"] == "kind: AccessPolicy is not supported yet"


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"\xff",
        b"[" * 5000,
        review({}, operation="DELETE"),
        review({}).replace(b"AdmissionReview", b"Other"),
    ],
)
def test_what_is_no_review(body: bytes) -> None:
    with pytest.raises(ReviewError):
        Validator().answer(body)


class Hook:
    """The injector's part of the server, which is not asked here."""

    def values(self) -> Any:
        return values()

    async def namespace(self, name: str) -> Any:
        raise webhook.NamespaceUnavailable(name)

    def decided(self, decided: Any) -> None:
        raise AssertionError(decided)

    def failed(self, what: str) -> None:
        raise AssertionError(what)

    async def event(self, decided: Any) -> None:
        raise AssertionError(decided)


async def configured(client: Client, authority: Authority, port: int) -> None:
    """CRDs, and the validator's configuration as it is installed, by address instead of by Service."""
    for crd in (traffic_policy({}), mesh_policy({})):
        await client.create(CRDS, crd)
    configuration = validator(Values())
    configuration["webhooks"][0]["clientConfig"] = {
        "url": f"https://localhost:{port}{PATH}",
        "caBundle": authority.bundle,
    }
    await client.create(VALIDATING_WEBHOOKS, configuration)
    for resource in (TRAFFIC_POLICIES, MESH_POLICIES):
        with trio.fail_after(8):
            while not await served(client, resource):
                await trio.sleep(0.05)


async def served(client: Client, resource: Resource) -> bool:
    try:
        await client.list(resource)
    except KubeError as exc:
        if exc.not_found:
            return False
        raise
    return True


def ask_webhooks(api: ControlApi) -> None:
    """Have the API server call validating webhooks, as a cluster does."""
    store, core = api.local.store, api.local.api.core
    client = WebhookClient(ServiceResolver(store, LoopbackDialer(), random.Random(3)), DirectDialer())
    core.plugins = [
        ValidatingWebhooks(WebhookCaller(store, client, lambda: core.registry.kinds, random.Random(5)))
    ]


async def policy_of(client: Client) -> str:
    found = await client.get(VALIDATING_WEBHOOKS, CONFIGURATION)
    return str(found["webhooks"][0]["failurePolicy"])


def with_webhook(
    directory: Path, test: Callable[[ControlApi, Client, trio.CancelScope], Awaitable[None]]
) -> None:
    """Run `test` with a cluster whose validator is ours; the scope is the server's."""

    async def main(api: ControlApi) -> None:
        (directory / "webhook").mkdir()
        authority = Authority(directory / "webhook")
        context: ssl.SSLContext = authority.tls("localhost")
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery, api.admin() as client:

            async def serve(*, task_status: trio.TaskStatus[int]) -> None:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                port = listeners[0].socket.getsockname()[1]
                with scope:
                    task_status.started(port)
                    await webhook.serve(
                        listeners,
                        lambda: context,
                        Hook(),
                        trio.Event(),
                        others={PATH: Validator().answer},
                    )

            ask_webhooks(api)
            await configured(client, authority, await nursery.start(serve))
            await api.namespace("shop")
            await test(api, client, scope)
            nursery.cancel_scope.cancel()

    run_api(directory, main)


def test_the_api_server_refuses_and_other_policies_go_on(tmp_path: Path) -> None:
    async def test(api: ControlApi, client: Client, scope: trio.CancelScope) -> None:
        await client.create(TRAFFIC_POLICIES, {"metadata": {"name": "web"}, "spec": GOOD}, "shop")
        with pytest.raises(KubeError) as caught:
            await client.create(TRAFFIC_POLICIES, {"metadata": {"name": "bad"}, "spec": WEIGHTLESS}, "shop")
        assert caught.value.code == 422
        assert caught.value.message == (
            'admission webhook "policy.validator.triomesh.dev" denied the request: '
            "spec.routes[0].to: expected weights with a sum above 0, got 0"
        )
        bad: dict[str, Any] = {"metadata": {"name": "bad"}, "spec": {"target": {"service": "reviews.other"}}}
        with pytest.raises(KubeError, match=r"reviews\.other.*a policy belongs in its Service's namespace"):
            await client.create(TRAFFIC_POLICIES, bad, "shop")
        refs = [{"kind": "Job", "name": "a"}]
        bad["spec"] = {"targetRefs": refs, "defaults": {"timeouts": {"request": "1s"}}}
        with pytest.raises(KubeError, match="expected none beside targetRefs"):
            await client.create(MESH_POLICIES, bad, "shop")
        with pytest.raises(KubeError, match="sum above 0"):
            await client.patch(TRAFFIC_POLICIES, "web", "shop", {"spec": WEIGHTLESS})
        found = await client.list(TRAFFIC_POLICIES)
        assert [each["spec"] for each in found] == [GOOD]

    with_webhook(tmp_path, test)


def test_every_example_of_the_reference_is_taken(tmp_path: Path) -> None:
    async def test(api: ControlApi, client: Client, scope: trio.CancelScope) -> None:
        await api.namespace("bookshop")
        given = examples()
        for example in given:
            resource = {"TrafficPolicy": TRAFFIC_POLICIES, "MeshPolicy": MESH_POLICIES}[example["kind"]]
            made = await client.create(resource, example, example["metadata"]["namespace"])
            assert pruned(example["spec"], made["spec"]) == example["spec"]  # nothing was dropped
        assert len(await client.list(TRAFFIC_POLICIES)) + len(await client.list(MESH_POLICIES)) == len(given)

    with_webhook(tmp_path, test)


def pruned(wanted: Any, found: Any) -> Any:
    """`found` without the defaults that the schema adds to what was sent."""
    if isinstance(wanted, dict):
        return {key: pruned(wanted[key], value) for key, value in found.items() if key in wanted}
    if isinstance(wanted, list):
        return [pruned(*pair) for pair in zip(wanted, found, strict=True)]
    return found


def test_it_fails_closed_once_it_was_seen_to_refuse(tmp_path: Path) -> None:
    notes: list[str] = []

    async def test(api: ControlApi, client: Client, scope: trio.CancelScope) -> None:
        assert await policy_of(client) == "Ignore"
        proof = Proof(
            client,
            "triomesh-system",
            random.Random(1),
            lambda name, fields: notes.append(name),
            retry_s=0.05,
            check_s=0.05,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proof.run)
            await until(lambda: proof.proved)
            assert await policy_of(client) == "Fail"
            # installed anew
            await client.patch(
                VALIDATING_WEBHOOKS,
                CONFIGURATION,
                "",
                [{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}],
                type="json",
            )
            await until(lambda: notes.count("validator.proved") == 2)
            assert await policy_of(client) == "Fail"
            nursery.cancel_scope.cancel()
        assert await client.list(TRAFFIC_POLICIES) == []  # the probe is a dry run
        scope.cancel()
        with pytest.raises(KubeError, match="failed calling webhook"):
            await client.create(TRAFFIC_POLICIES, {"metadata": {"name": "web"}, "spec": GOOD}, "shop")

    with_webhook(tmp_path, test)


def test_a_webhook_that_is_not_reached_stays_open(tmp_path: Path) -> None:
    notes: list[str] = []

    async def test(api: ControlApi, client: Client, scope: trio.CancelScope) -> None:
        scope.cancel()

        def note(name: str, fields: Mapping[str, object]) -> None:
            notes.append(f"{name}: {fields.get('error')}")

        proof = Proof(client, "triomesh-system", random.Random(1), note, retry_s=0.05, check_s=0.05)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proof.run)
            await until(lambda: bool(notes))
            nursery.cancel_scope.cancel()
        assert notes == [
            "validator.failed: a bad policy was not refused: the API server does not reach the webhook yet"
        ]
        assert not proof.proved
        assert await policy_of(client) == "Ignore"

    with_webhook(tmp_path, test)
