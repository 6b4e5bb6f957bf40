"""The control plane's client against the local API server over HTTPS."""

import os
from datetime import UTC, datetime

import pytest
import trio

from mesh_control.kube import secrets
from mesh_control.kube.access import AccessError, from_kubeconfig, in_cluster
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError, from_response
from mesh_control.kube.resources import CONFIG_MAPS, PODS, SECRETS, SERVICES
from mesh_control.kube.reviews import review_token
from mesh_local.apiserver.auth.pki import Pki
from tests.support.control_api import ControlApi, run_api


def config_map(name: str, **data: str) -> dict:
    return {"metadata": {"name": name}, "data": data}


def test_objects(tmp_path):
    async def test(api: ControlApi) -> None:
        async with api.admin() as client:
            made = await client.create(CONFIG_MAPS, config_map("a", x="1"), "default")
            assert (await client.get(CONFIG_MAPS, "a", "default"))["data"] == {"x": "1"}
            made["data"] = {"x": "2"}
            newer = await client.update(CONFIG_MAPS, made)
            with pytest.raises(KubeError) as stale:
                await client.update(CONFIG_MAPS, made)
            assert stale.value.conflict
            await client.patch(CONFIG_MAPS, "a", "default", {"data": {"y": "3"}})
            await client.patch(
                CONFIG_MAPS, "a", "default", [{"op": "remove", "path": "/data/x"}], type="json"
            )
            strategic = await client.patch(
                CONFIG_MAPS, "a", "default", {"data": {"z": "4"}}, type="strategic"
            )
            assert strategic["data"] == {"y": "3", "z": "4"}
            with pytest.raises(KubeError) as twice:
                await client.create(CONFIG_MAPS, config_map("a"), "default")
            assert twice.value.already_exists
            with pytest.raises(KubeError) as other:
                await client.delete(CONFIG_MAPS, "a", "default", uid="nobody")
            assert other.value.conflict
            await client.delete(CONFIG_MAPS, "a", "default", uid=newer["metadata"]["uid"])
            with pytest.raises(KubeError, match='configmaps "a" not found') as gone:
                await client.get(CONFIG_MAPS, "a", "default")
            assert (gone.value.code, gone.value.reason) == (404, "NotFound")

    run_api(tmp_path, test)


def test_status_subresource_and_dry_run(tmp_path):
    async def test(api: ControlApi) -> None:
        async with api.admin() as client:
            ports = {"ports": [{"port": 80}]}
            await client.create(
                SERVICES, {"metadata": {"name": "dry"}, "spec": ports}, "default", dry_run=True
            )
            await client.create(SERVICES, {"metadata": {"name": "s"}, "spec": ports}, "default")
            assert [one["metadata"]["name"] for one in await client.list(SERVICES, "default")] == ["s"]
            status = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
            changed = await client.patch(SERVICES, "s", "default", status, subresource="status")
            assert changed["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.1"

    run_api(tmp_path, test)


def test_a_list_comes_in_pages(tmp_path):
    async def test(api: ControlApi) -> None:
        for number in range(7):
            await api.local.client.create("configmaps", config_map(f"m{number}"), "default")
        async with api.admin() as client:
            first = await client.list_page(CONFIG_MAPS, "default", limit=3)
            assert b'"continue":' in first
            assert b"m3" not in first
            assert len(await client.list(CONFIG_MAPS, "default")) == 7
            with pytest.raises(KubeError) as bad:
                await client.list_page(CONFIG_MAPS, "default", token="nonsense")
            assert bad.value.code == 400

    run_api(tmp_path, test)


def test_connections_are_used_again(tmp_path):
    async def test(api: ControlApi) -> None:
        async with api.admin() as client:
            for _ in range(5):
                await client.list(PODS)
            assert api.server is not None
            assert api.server.connections == 1

    run_api(tmp_path, test)


def test_a_cancelled_request_leaves_the_client_usable(tmp_path):
    async def test(api: ControlApi) -> None:
        async with api.admin() as client:
            for _ in range(20):
                with trio.move_on_after(0.001):
                    await client.create(CONFIG_MAPS, {"metadata": {"generateName": "c-"}}, "default")
            assert await client.list(PODS) == []

    run_api(tmp_path, test)


def test_permission_refused_names_verb_and_resource(tmp_path):
    async def test(api: ControlApi) -> None:
        await api.account("bot", "default")
        token = await api.token("bot", "default", audience=api.api_audience)
        async with api.user(token) as client:
            with pytest.raises(KubeError) as refused:
                await client.list(PODS)
        error = refused.value
        assert (error.code, error.reason) == (403, "Forbidden")
        assert error.message == (
            'pods is forbidden: User "system:serviceaccount:default:bot" cannot list resource "pods" '
            'in API group "" at the cluster scope'
        )

    run_api(tmp_path, test)


def test_a_rotated_token_file_is_followed(tmp_path):
    async def test(api: ControlApi) -> None:
        await api.account("bot", "default")
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
        await api.allow("bot", "default", rules)
        path = tmp_path / "token"
        path.write_text(await api.token("bot", "default", audience=api.api_audience, seconds=600))
        async with api.pod_client(path) as client:
            assert await client.list(PODS) == []
            api.ahead_s = 1200.0
            with pytest.raises(KubeError) as expired:
                await client.list(PODS)
            assert (expired.value.code, expired.value.reason) == (401, "Unauthorized")
            path.write_text(await api.token("bot", "default", audience=api.api_audience, seconds=600) + "\n")
            assert await client.list(PODS) == []
            path.unlink()
            api.ahead_s = 2400.0
            with pytest.raises(KubeError, match="token"):
                await client.list(PODS)

    run_api(tmp_path, test)


def test_an_absent_server_is_an_error_with_its_cause(tmp_path):
    async def test(api: ControlApi) -> None:
        async with api.admin() as client:
            await client.list(PODS)
            await api.stop()
            with pytest.raises(KubeError, match=r"GET https://127.0.0.1:\d+/api/v1/pods: .*refused") as away:
                await client.list(PODS)
            assert (away.value.code, away.value.reason) == (0, "Unreachable")
            await api.start()
            assert await client.list(PODS) == []

    run_api(tmp_path, test)


def test_a_server_of_another_ca_is_refused(tmp_path):
    async def test(api: ControlApi) -> None:
        other = Pki(tmp_path / "other", datetime.now(UTC))
        token = tmp_path / "token"
        token.write_text("secret")
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
        async with Client(in_cluster(str(token), str(other.ca_path), environ)) as client:
            with pytest.raises(KubeError, match="certificate verify failed"):
                await client.list(PODS)

    run_api(tmp_path, test)


def test_no_answer_in_time(tmp_path):
    async def test(api: ControlApi) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        text = api.kubeconfig.read_text().replace(f":{api.port}", f":{port}")
        path = tmp_path / "silent"
        path.write_text(text)
        async with Client(from_kubeconfig(str(path)), deadline_s=0.1) as client:
            with pytest.raises(KubeError, match="no answer within") as late:
                await client.list(PODS)
            assert late.value.reason == "Timeout"
        await listeners[0].aclose()

    run_api(tmp_path, test)


def test_an_answer_above_its_limit(tmp_path):
    async def test(api: ControlApi) -> None:
        await api.local.client.create("configmaps", config_map("big", x="y" * 300_000), "default")
        async with api.admin() as client:
            with pytest.raises(KubeError, match="at most 1000 bytes"):
                await client.request("GET", "/api/v1/configmaps", limit=1000)
            assert len(await client.list(CONFIG_MAPS)) == 1

    run_api(tmp_path, test)


def test_three_replicas_make_one_secret(tmp_path):
    async def test(api: ControlApi) -> None:
        got: list[secrets.Secret] = []

        async def replica(number: int) -> None:
            async with api.admin() as client:

                def make() -> dict[str, bytes]:
                    return {"key": b"%d" % number}

                got.append(await secrets.create_once(client, "default", "ca", make, {"a": "b"}))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(replica, number)
        assert len(got) == 3
        assert len({one.data["key"] for one in got}) == 1
        async with api.admin() as client:
            changed = await secrets.update(client, got[0], {"key": b"new"})
            assert changed.version != got[0].version
            with pytest.raises(KubeError) as second:
                await secrets.update(client, got[1], {"key": b"other"})
            assert second.value.conflict
            assert (await secrets.read(client, "default", "ca")).data == {"key": b"new"}
            whole = await client.get(SECRETS, "ca", "default")
            assert (whole["type"], whole["metadata"]["labels"]) == ("Opaque", {"a": "b"})
            await secrets.update(client, changed, {"other": b"1"})
            assert (await secrets.read(client, "default", "ca")).data == {"other": b"1"}

    run_api(tmp_path, test)


def test_token_review(tmp_path):
    async def test(api: ControlApi) -> None:
        await api.account("web", "default")
        pod = await api.pod("web-1", "default", "web")
        token = await api.token("web", "default", "web-1")
        async with api.admin() as client:
            found = await review_token(client, token, "triomesh-ca")
            assert found.username == "system:serviceaccount:default:web"
            assert (found.pod_name, found.pod_uid) == ("web-1", pod["metadata"]["uid"])
            assert found.audiences == ("triomesh-ca",)
            other = await review_token(client, token, "elsewhere")
            assert other.username == ""
            assert "is invalid for the target audiences" in other.error

    run_api(tmp_path, test)


def test_configuration_errors_say_what_is_missing(tmp_path):
    with pytest.raises(AccessError, match="Service host/port is not set"):
        in_cluster(environ={})
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    with pytest.raises(AccessError, match="token file does not exist"):
        in_cluster(str(tmp_path / "none"), environ=environ)
    with pytest.raises(AccessError, match="kubeconfig"):
        from_kubeconfig(str(tmp_path / "none"))
    (tmp_path / "bad").write_text("a: [")
    with pytest.raises(AccessError, match="kubeconfig"):
        from_kubeconfig(str(tmp_path / "bad"))
    assert os.listdir(tmp_path) == ["bad"]


def test_answers_that_are_no_status():
    error = from_response(503, b"upstream gone", "7")
    assert (error.code, error.message) == (503, "HTTP 503 Service Unavailable: upstream gone")
    assert error.retry_after_s == 7
    assert from_response(599, b"").message == "HTTP 599 an unknown status"
    status = b'{"message":"m","reason":"TooManyRequests","code":429,"details":{"retryAfterSeconds":2}}'
    assert from_response(429, status).retry_after_s == 2
