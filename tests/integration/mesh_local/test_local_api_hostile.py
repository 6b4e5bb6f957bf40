"""Requests that nobody sends by mistake: what they must not reach, and that they are refused in order."""

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from mesh_local.apiserver.admission.chain import ChainOptions, builtin_plugins
from mesh_local.apiserver.admission.lifecycle import NamespaceStays
from mesh_local.apiserver.admission.webhooks import WebhookCaller
from mesh_local.apiserver.logs import read_log_options
from mesh_local.apiserver.types import Admission, Attributes, Decision, User
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, copy
from tests.support.local_api import LocalApi, local_api
from tests.support.local_auth import FakeReader
from tests.support.local_http import Browser

SLICES = "endpointslices.discovery.k8s.io"
CRDS = "customresourcedefinitions.apiextensions.k8s.io"
LIMIT_S = 10
Test = Callable[[LocalApi], Awaitable[None]]


def run(directory: Path, test: Test) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            async with local_api(directory) as local:
                await test(local)

    trio.run(main)


def shadow(name: str) -> Object:
    """A definition with the name of a built-in resource."""
    plural, _, group = name.partition(".")
    names = {"plural": plural, "singular": plural[:-1], "kind": "Shadow", "listKind": "ShadowList"}
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "metadata": {"name": name, "annotations": {"api-approved.kubernetes.io": "unapproved"}},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def test_a_definition_with_the_name_of_a_built_in_resource_does_nothing(tmp_path: Path) -> None:
    async def test(local: LocalApi) -> None:
        body = {"metadata": {"name": "web"}, "addressType": "IPv4", "endpoints": [], "ports": []}
        await local.client.create(SLICES, body, "default")
        async with local.client.watch(SLICES, "default") as events:
            assert (await anext(events)).type == "ADDED"
            made = await local.client.create(CRDS, shadow(SLICES))
            with pytest.raises(ApiError) as refused:  # not the free form of the definition
                await local.client.create(SLICES, {"metadata": {"name": "x"}, "anything": 1}, "default")
            assert refused.value.code in (400, 422)
            assert local.api.core.registry.by_path("discovery.k8s.io", "v1", "endpointslices") is not None
            await local.client.delete(CRDS, made["metadata"]["name"])
            assert await local.client.get(SLICES, "web", "default")
            await local.client.delete(SLICES, "web", "default")
            assert (await anext(events)).type == "DELETED"
        with pytest.raises(ApiError) as gone:
            await local.client.get(CRDS, SLICES)
        assert gone.value.code == 404

    run(tmp_path, test)


class _MovesNamespace:
    """A plugin as a webhook could be: it moves every object elsewhere."""

    async def mutate(self, request: Admission) -> None:
        if request.object is not None:
            request.object = copy(request.object)
            request.object["metadata"]["namespace"] = "kube-system"

    async def validate(self, request: Admission) -> None: ...


def test_admission_may_not_move_an_object_to_another_namespace(tmp_path: Path) -> None:
    async def test(local: LocalApi) -> None:
        local.api.core.plugins = (_MovesNamespace(),)
        for resource in ("configmaps", "namespaces"):
            namespace = "default" if resource == "configmaps" else ""
            with pytest.raises(ApiError) as refused:
                await local.client.create(resource, {"metadata": {"name": "a"}}, namespace)
            assert (refused.value.code, refused.value.message) == (
                400,
                "the namespace of the provided object does not match the namespace sent on the request",
            )
        assert not local.store.list("configmaps")

    run(tmp_path, test)


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        (f"resourceVersion={LONG}", 400, "value out of range"),
        (f"watch=1&resourceVersion={LONG}", 500, "value out of range"),
        (f"resourceVersion={2**64}", 400, "value out of range"),
        (f"resourceVersion={2**64 - 1}", 504, "Too large resource version"),
        (f"limit={LONG}", 400, "value out of range"),
        (f"limit={2**63}", 400, "value out of range"),
        ("limit=1_0", 400, "invalid syntax"),
        ("limit=%201", 400, "invalid syntax"),
        ("limit=%D9%A1", 400, "invalid syntax"),
        (f"watch=1&timeoutSeconds={LONG}", 400, "value out of range"),
        ("limit=%2B1", 200, ""),
    ],
)
def test_numbers_in_queries(tmp_path: Path, query: str, code: int, text: str) -> None:
    async def test(local: LocalApi) -> None:
        found = await Browser(local.api)("GET", f"/api/v1/namespaces/default/configmaps?{query}")
        assert found.status == code
        assert text in found.json.get("message", "")

    run(tmp_path, test)


def test_a_continue_token_of_the_future(tmp_path: Path) -> None:
    async def test(local: LocalApi) -> None:
        browse = Browser(local.api)
        token = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6OTk5OTk5OTksInN0YXJ0IjoiYVx1MDAwMCJ9"
        found = await browse("GET", f"/api/v1/namespaces/default/configmaps?limit=1&continue={token}")
        assert found.status == 504

    run(tmp_path, test)


@pytest.mark.parametrize("grace", [2**63 - 1, 10**12])
def test_any_grace_is_taken(tmp_path: Path, grace: int) -> None:
    async def test(local: LocalApi) -> None:
        spec: Object = {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}
        for name, given, asked in (("a", 30, grace), ("b", grace, None)):
            pod = {"metadata": {"name": name}, "spec": {**spec, "terminationGracePeriodSeconds": given}}
            await local.client.create("pods", pod, "default")
            marked = await local.client.delete("pods", name, "default", grace_s=asked)
            assert marked["metadata"]["deletionGracePeriodSeconds"] == grace
            await local.client.delete("pods", name, "default", grace_s=0)
        assert not local.store.list("pods")

    run(tmp_path, test)


def test_extra_of_an_impersonated_user_is_unescaped(tmp_path: Path) -> None:
    asked: list[Attributes] = []

    class _Noting:
        def authorize(self, user: User, attributes: Attributes) -> Decision:
            asked.append(attributes)
            return Decision(True)

    async def main() -> None:
        async with local_api(tmp_path, authorizer=_Noting()) as local:
            headers = {"impersonate-user": "joe", "impersonate-extra-example.com%2fteam": "blue"}
            assert (await Browser(local.api)("GET", "/version", headers=headers)).status == 200
        extra = next(a for a in asked if a.resource == "userextras")
        assert (extra.subresource, extra.name) == ("example.com/team", "blue")

    trio.run(main)


@pytest.mark.parametrize(
    "selector", ["", "metadata.name!=other", "metadata.name=own", "metadata.name=secret"]
)
def test_a_watch_of_one_object_shows_no_other(tmp_path: Path, selector: str) -> None:
    class _OwnOnly:
        def authorize(self, user: User, attributes: Attributes) -> Decision:
            return Decision(attributes.verb == "create" or attributes.name == "own")

    async def main() -> None:
        async with local_api(tmp_path, authorizer=_OwnOnly()) as local:
            for name in ("own", "secret"):
                await local.client.create("secrets", {"metadata": {"name": name}}, "default")
            path = "/api/v1/watch/namespaces/default/secrets/own?timeoutSeconds=1"
            found = await Browser(local.api)("GET", f"{path}&fieldSelector={selector}")
            names = [event["object"]["metadata"]["name"] for event in found.events]
            assert names == ([] if selector == "metadata.name=secret" else ["own"])

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("kind", ["namespaces", "nodes"])
@pytest.mark.parametrize(
    ("method", "name"), [("GET", ""), ("GET", "/b"), ("DELETE", "/b"), ("DELETE", ""), ("GET", "/a")]
)
def test_rights_in_one_namespace_do_not_reach_past_it(
    tmp_path: Path, kind: str, method: str, name: str
) -> None:
    class _AllInA:
        def authorize(self, user: User, attributes: Attributes) -> Decision:
            return Decision(attributes.namespace == "a" or attributes.verb == "create")

    async def main() -> None:
        async with local_api(tmp_path, authorizer=_AllInA()) as local:
            for made in ("a", "b"):
                await local.client.create(kind, {"metadata": {"name": made}})
            found = await Browser(local.api)(method, f"/api/v1/namespaces/a/{kind}{name}")
            allowed = (kind, name) == ("namespaces", "/a")
            assert found.status == (200 if allowed else 404)
            assert len(local.store.list(kind)) == 2
            assert not any("deletionTimestamp" in o["metadata"] for o in local.store.list(kind))

    trio.run(main)


class _Meanwhile:
    """Does something while a request is validated, as the time that a webhook takes allows it."""

    def __init__(self, act: Callable[[], Awaitable[object]]) -> None:
        self._act: Callable[[], Awaitable[object]] | None = act

    async def mutate(self, request: Admission) -> None: ...

    async def validate(self, request: Admission) -> None:
        act, self._act = self._act, None
        if act is not None and request.operation == "CREATE":
            await act()


@pytest.mark.parametrize("held", [True, False], ids=["terminating", "gone"])
def test_nothing_is_left_in_a_namespace_that_went_meanwhile(tmp_path: Path, held: bool) -> None:
    async def test(local: LocalApi) -> None:
        await local.client.create("namespaces", {"metadata": {"name": "a"}})

        async def remove() -> None:
            going = await local.client.delete("namespaces", "a")
            if not held:
                going = {**going, "spec": {"finalizers": []}}
                await local.client.update("namespaces", going, subresource="finalize")

        local.api.core.plugins = (_Meanwhile(remove), NamespaceStays(local.store))
        with pytest.raises(ApiError) as refused:
            await local.client.create("configmaps", {"metadata": {"name": "m"}}, "a")
        assert refused.value.code == (403 if held else 404)
        assert not local.store.list("configmaps")

    run(tmp_path, test)


def test_nothing_is_left_of_a_kind_whose_definition_went_meanwhile(tmp_path: Path) -> None:
    name = "shadows.example.com"

    async def test(local: LocalApi) -> None:
        await local.client.create(CRDS, shadow(name))
        local.api.core.plugins = (_Meanwhile(lambda: local.client.delete(CRDS, name)),)
        body = {"apiVersion": "example.com/v1", "kind": "Shadow", "metadata": {"name": "s"}}
        with pytest.raises(ApiError) as refused:
            await local.client.create(name, body, "default")
        assert refused.value.code == 404
        assert not local.store.list(name)

    run(tmp_path, test)


def test_the_last_look_at_the_namespace_follows_the_webhooks() -> None:
    caller = WebhookCaller(FakeReader(), None, tuple, random.Random(1))  # type: ignore[arg-type]
    names = [type(p).__name__ for p in builtin_plugins(FakeReader(), ChainOptions(random.Random(1)), caller)]
    assert names.index("NamespaceStays") > names.index("ValidatingWebhooks")


def test_the_log_since_long_ago_is_the_whole_log() -> None:
    options = read_log_options({"sinceSeconds": str(2**63 - 1)}, "p")
    assert options.since_seconds is not None
    assert datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=options.since_seconds)
