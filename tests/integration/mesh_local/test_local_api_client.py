"""The in-process client: the same rules as over HTTPS."""

import pytest
import trio

from mesh_local.apiserver.client import LocalClient
from mesh_local.apiserver.types import Decision, User
from mesh_local.machinery.errors import ApiError
from tests.support.local_api import local_api

POD = {"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


class ReadOnly:
    """The controller may read ConfigMaps in one namespace; the administrator may do everything."""

    def authorize(self, user, attributes):
        read = attributes.verb in ("get", "list", "watch") and attributes.namespace == "ns"
        return Decision(user.name == "admin" or read)


def run(directory, test, **options):
    async def main():
        async with local_api(directory, **options) as local:
            with trio.fail_after(10):
                await test(local.client, local)

    trio.run(main)


async def refusal(call) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await call
    return caught.value


def test_objects_carry_their_kind_everywhere(tmp_path):
    async def test(client, local):
        made = await client.create("pods", POD)
        listed = await client.list("pods", "ns")
        async with client.watch("pods", "ns") as events:
            event = await anext(aiter(events))
        for obj in (made, await client.get("pods", "p", "ns"), listed.items[0], event.object):
            assert (obj["kind"], obj["apiVersion"]) == ("Pod", "v1")
        assert listed.resource_version == str(local.store.version)

    run(tmp_path, test)


def test_a_component_cannot_do_what_its_user_may_not(tmp_path):
    async def test(client, local):
        await client.create("configmaps", {"metadata": {"name": "a", "namespace": "ns"}})
        controller = LocalClient(local.api, User("system:controller"))
        assert (await controller.get("configmaps", "a", "ns"))["metadata"]["name"] == "a"
        for call in (
            controller.delete("configmaps", "a", "ns"),
            controller.patch("configmaps", "a", "ns", {}),
            controller.list("configmaps"),
            controller.update("configmaps", {"metadata": {"name": "a", "namespace": "ns"}}),
        ):
            assert (await refusal(call)).code == 403
        with pytest.raises(ApiError, match="cannot watch"):
            async with controller.watch("configmaps"):
                pass

    run(tmp_path, test, authorizer=ReadOnly())


def test_unknown_fields_resources_and_subresources_are_refused(tmp_path):
    async def test(client, local):
        typo = {"metadata": {"name": "a", "namespace": "ns"}, "dataa": {}}
        assert 'unknown field "dataa"' in (await refusal(client.create("configmaps", typo))).message
        assert (await refusal(client.get("nopes", "a"))).code == 404
        assert (await refusal(client.update("configmaps", typo, subresource="status"))).code == 404
        assert (await refusal(client.get("tokenreviews.authentication.k8s.io", "a"))).code == 405

    run(tmp_path, test)


def test_the_object_given_stays_the_callers(tmp_path):
    async def test(client, local):
        mine = {"metadata": {"name": "a", "namespace": "ns"}, "data": {"k": "v"}}
        await client.create("configmaps", mine)
        assert mine == {"metadata": {"name": "a", "namespace": "ns"}, "data": {"k": "v"}}
        mine["data"]["k"] = "changed"
        assert (await client.get("configmaps", "a", "ns"))["data"] == {"k": "v"}

    run(tmp_path, test)


def test_the_kubelets_last_delete_shows_the_end_of_the_grace_before_the_pod_is_gone(tmp_path):
    async def test(client, local):
        await client.create("pods", POD)
        binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}
        await client.create("pods", binding, "ns", subresource="binding")
        marked = await client.delete("pods", "p", "ns", grace_s=9)
        assert marked["metadata"]["deletionGracePeriodSeconds"] == 9
        version = marked["metadata"]["resourceVersion"]
        async with client.watch("pods", "ns", resource_version=version) as events:
            await client.delete("pods", "p", "ns", grace_s=0, uid=marked["metadata"]["uid"])
            seen = [await anext(aiter(events)) for _ in range(2)]
        assert [e.type for e in seen] == ["MODIFIED", "DELETED"]
        assert [e.object["metadata"]["deletionGracePeriodSeconds"] for e in seen] == [0, 0]
        wrong = await refusal(client.delete("pods", "p", "ns", uid="other"))
        assert wrong.code == 404

    run(tmp_path, test)


def test_finalize_releases_a_namespace(tmp_path):
    async def test(client, local):
        await client.create("namespaces", {"metadata": {"name": "n"}})
        marked = await client.delete("namespaces", "n")
        await client.update("namespaces", {**marked, "spec": {"finalizers": []}}, subresource="finalize")
        assert (await refusal(client.get("namespaces", "n"))).code == 404

    run(tmp_path, test)
