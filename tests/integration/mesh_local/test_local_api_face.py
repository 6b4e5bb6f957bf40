"""The HTTP face in process: discovery, health, formats, refusals, callers, logs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from mesh_local.apiserver.types import Attributes, Decision, LogOptions, User
from mesh_local.machinery import errors
from mesh_local.machinery.objects import copy
from tests.support.local_api import ADMIN, local_api
from tests.support.local_http import Browser

V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
MAPS = "/api/v1/namespaces/ns/configmaps"
BOT = User("system:serviceaccount:ns:bot", groups=("system:serviceaccounts",))


class MastersOnly:
    """Allows administrators everything, and everybody to read /version."""

    def __init__(self) -> None:
        self.asked: list[Attributes] = []

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        self.asked.append(attributes)
        return Decision("system:masters" in user.groups or attributes.path.startswith("/version"))


def run(directory, test, **options):
    async def main():
        async with local_api(directory, **options) as local:
            with trio.fail_after(20):
                await test(Browser(local.api, users={"bot": BOT}), local)

    trio.run(main)


def test_aggregated_discovery_is_revalidated_by_its_etag(tmp_path):
    async def test(http, local):
        answer = await http("GET", "/apis", accept=V2)
        assert (answer.status, answer.header("content-type"), answer.header("vary")) == (200, V2, "Accept")
        groups = {g["metadata"]["name"]: g["versions"][0] for g in answer.json["items"]}
        assert next(iter(groups)) == "apps"
        deployments = next(r for r in groups["apps"]["resources"] if r["resource"] == "deployments")
        assert deployments["responseKind"] == {"group": "", "version": "", "kind": "Deployment"}
        assert [s["subresource"] for s in deployments["subresources"]] == ["scale", "status"]
        again = await http("GET", "/apis", accept=V2, headers={"if-none-match": answer.header("etag")})
        assert (again.status, again.body) == (304, b"")
        core = (await http("GET", "/api", accept=V2)).json["items"]
        assert [v["version"] for v in core[0]["versions"]] == ["v1"]

    run(tmp_path, test)


def test_legacy_discovery_is_there_for_other_clients(tmp_path):
    async def test(http, local):
        assert (await http("GET", "/api/")).json["versions"] == ["v1"]
        groups = (await http("GET", "/apis")).json
        assert (groups["kind"], groups["groups"][0]["name"]) == ("APIGroupList", "apps")
        assert (await http("GET", "/apis/apps")).json["preferredVersion"]["groupVersion"] == "apps/v1"
        resources = (await http("GET", "/api/v1/")).json["resources"]
        maps = next(r for r in resources if r["name"] == "configmaps")
        assert (maps["shortNames"], maps["storageVersionHash"]) == (["cm"], "qFsyl6wFWjQ=")
        assert {"pods/log", "pods/status", "serviceaccounts/token"} <= {r["name"] for r in resources}

    run(tmp_path, test)


def test_openapi_documents_are_listed_and_revalidated(tmp_path):
    async def test(http, local):
        index = await http("GET", "/openapi/v3")
        url = index.json["paths"]["apis/apps/v1"]["serverRelativeURL"]
        document = await http("GET", url)
        assert "/apis/apps/v1/namespaces/{namespace}/deployments" in document.json["paths"]
        assert document.header("cache-control") == "public, immutable"
        again = await http("GET", "/openapi/v3", headers={"if-none-match": index.header("etag")})
        assert again.status == 304
        assert (await http("GET", "/openapi/v3/apis/nope/v1")).status == 404

    run(tmp_path, test)


def test_version_says_that_this_is_not_kubernetes_itself(tmp_path):
    async def test(http, local):
        version = (await http("GET", "/version/")).json
        assert (version["major"], version["minor"]) == ("1", "36")
        assert version["gitVersion"].endswith("+triomesh")

    run(tmp_path, test)


def test_health_is_plain_text(tmp_path):
    async def test(http, local):
        for path in ("/healthz", "/livez", "/readyz", "/readyz/ping"):
            answer = await http("GET", path)
            assert (answer.status, answer.body) == (200, b"ok")
            assert answer.header("content-type") == "text/plain; charset=utf-8"
        assert (await http("GET", "/readyz?verbose")).body == b"[+]ping ok\nreadyz check passed\n"
        assert (await http("GET", "/readyz/other")).status == 404

    run(tmp_path, test)


MISSING = "the server could not find the requested resource"
NOT_ALLOWED = "the server does not allow this method on the requested resource"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nopes", 404),
        ("GET", "/api/v1/namespaces/default/nopes/x", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", f"{MAPS}/a/status", 404),
        ("GET", "/api/v1/namespaces/default/pods/p/status/x", 404),
        ("PUT", "/api/v1/namespaces", 405),
        ("POST", f"{MAPS}/a", 405),
        ("POST", "/api/v1/configmaps", 405),
        ("DELETE", "/api/v1/configmaps", 405),
        ("OPTIONS", "/api/v1/namespaces", 405),
        ("POST", "/version", 405),
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", 405),
    ],
)
def test_what_the_server_does_not_have_is_404_or_405(tmp_path, method, path, status):
    async def test(http, local):
        answer = await http(method, path, {})
        assert (answer.status, answer.json["details"]) == (status, {})
        assert answer.json["message"] == (MISSING if status == 404 else NOT_ALLOWED)

    run(tmp_path, test)


@pytest.mark.parametrize(
    "path", ["/nothing", "/apis/nope.example.com/v1", "/apis/nope.example.com/v1/things"]
)
def test_an_unknown_path_is_a_plain_page(tmp_path, path):
    async def test(http, local):
        answer = await http("GET", path)
        assert (answer.status, answer.body) == (404, b"404 page not found\n")
        assert answer.header("x-content-type-options") == "nosniff"

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("accept", "status", "media"),
    [
        ("*/*", 200, "application/json"),
        ("application/vnd.kubernetes.protobuf,application/json", 200, "application/json"),
        ("application/json;q=0.1, application/yaml", 200, "application/yaml"),
        ("", 200, "application/json"),
        ("text/html", 406, "application/json"),
        ("application/vnd.kubernetes.protobuf", 406, "application/json"),
        ("application/json;as=Chart;v=v1;g=meta.k8s.io", 406, "application/json"),
        ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", 200, "application/json"),
    ],
)
def test_the_client_gets_a_form_that_it_accepts(tmp_path, accept, status, media):
    async def test(http, local):
        answer = await http("GET", "/api/v1/namespaces", accept=accept)
        assert (answer.status, answer.header("content-type")) == (status, media)
        if status == 406:
            assert answer.json["reason"] == "NotAcceptable"

    run(tmp_path, test)


def test_pretty_is_indented(tmp_path):
    async def test(http, local):
        assert b'{\n  "kind": "NamespaceList"' in (await http("GET", "/api/v1/namespaces?pretty=true")).body

    run(tmp_path, test)


def test_a_body_beyond_the_limit_is_413(tmp_path):
    async def test(http, local):
        body = b'{"metadata": {"name": "a"}, "data": {"k": "' + b"x" * (3 * 1024 * 1024) + b'"}}'
        answer = await http("POST", MAPS, body)
        assert (answer.status, answer.json["reason"]) == (413, "RequestEntityTooLarge")

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("method", "path", "what", "wanted"),
    [
        (
            "GET",
            "/api/v1/namespaces/ns/secrets",
            "secrets",
            'list resource "secrets" in API group "" in the namespace "ns"',
        ),
        ("GET", "/api/v1/nodes/n", 'nodes "n"', 'get resource "nodes" in API group "" at the cluster scope'),
        (
            "GET",
            "/api/v1/namespaces/ns/pods/p/log",
            'pods "p"',
            'get resource "pods/log" in API group "" in the namespace "ns"',
        ),
        (
            "DELETE",
            "/api/v1/namespaces/ns/pods",
            "pods",
            'deletecollection resource "pods" in API group "" in the namespace "ns"',
        ),
        (
            "GET",
            "/api/v1/namespaces/ns/services?watch=true",
            "services",
            'watch resource "services" in API group "" in the namespace "ns"',
        ),
        (
            "GET",
            "/apis/example.com/v1/widgets",
            "widgets.example.com",
            'list resource "widgets" in API group "example.com" at the cluster scope',
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/ns/deployments/web/scale",
            'deployments.apps "web"',
            'patch resource "deployments/scale" in API group "apps" in the namespace "ns"',
        ),
    ],
)
def test_who_may_not_is_told_so_before_anything_else(tmp_path, method, path, what, wanted):
    async def test(_http, local):
        http = Browser(local.api, token="bot", users={"bot": BOT})
        answer = await http(method, path, b"{not read", type="text/plain", accept="text/html")
        assert answer.status == 403
        assert answer.json["message"] == f'{what} is forbidden: User "{BOT.name}" cannot {wanted}'
        assert answer.header("x-content-type-options") == "nosniff"

    run(tmp_path, test, authorizer=MastersOnly())


def test_a_plain_path_can_be_forbidden_too(tmp_path):
    async def test(_http, local):
        answer = await Browser(local.api, token="bot", users={"bot": BOT})("GET", "/metrics")
        assert (answer.status, answer.json["details"]) == (403, {})
        assert answer.json["message"] == f'forbidden: User "{BOT.name}" cannot get path "/metrics"'

    run(tmp_path, test, authorizer=MastersOnly())


def test_a_bad_token_is_401_and_no_token_is_anonymous(tmp_path):
    async def test(_http, local):
        bad = await Browser(local.api, token="garbage")("GET", "/version")
        assert (bad.status, bad.json["message"]) == (401, "Unauthorized")
        nobody = Browser(local.api)
        refused = await nobody("GET", "/api/v1/namespaces", headers={"authorization": ""})
        assert 'User "system:anonymous" cannot list' in refused.json["message"]
        assert (await nobody("GET", "/version", headers={"authorization": "Basic YTpi"})).status == 200

    run(tmp_path, test, authorizer=MastersOnly())


def test_a_namespace_counts_as_being_in_itself_and_a_selected_name_as_named(tmp_path):
    authorizer = MastersOnly()

    async def test(http, local):
        await http("GET", "/api/v1/namespaces/blue")
        assert (authorizer.asked[-1].namespace, authorizer.asked[-1].name) == ("blue", "blue")
        await http("GET", f"{MAPS}?fieldSelector=metadata.name%3Done")
        assert (authorizer.asked[-1].verb, authorizer.asked[-1].name) == ("list", "one")

    run(tmp_path, test, authorizer=authorizer)


def test_an_administrator_can_speak_as_somebody_else_but_a_bot_cannot(tmp_path):
    authorizer = MastersOnly()

    async def test(http, local):
        as_alice = {"impersonate-user": "alice", "impersonate-group": "devs"}
        answer = await http("GET", "/api/v1/namespaces/ns/pods", headers=as_alice)
        assert (answer.status, 'User "alice" cannot list' in answer.json["message"]) == (403, True)
        asked = [(a.verb, a.resource, a.name) for a in authorizer.asked]
        assert asked[:2] == [("impersonate", "users", "alice"), ("impersonate", "groups", "devs")]
        bot = Browser(local.api, token="bot", users={"bot": BOT})
        refused = await bot("GET", "/version", headers={"impersonate-user": "admin"})
        assert refused.json["message"] == (
            'users "admin" is forbidden: User "system:serviceaccount:ns:bot" cannot impersonate '
            'resource "users" '
            'in API group "" at the cluster scope'
        )
        assert (await http("GET", "/version", headers={"impersonate-group": "devs"})).status == 400

    run(tmp_path, test, authorizer=authorizer)


def test_a_defect_of_ours_is_a_500_without_a_traceback(tmp_path, caplog):
    class Broken:
        async def mutate(self, request):
            raise ZeroDivisionError("the plugin is broken")

        async def validate(self, request): ...

    async def test(http, local):
        answer = await http("POST", MAPS, {"metadata": {"name": "a"}})
        assert (answer.status, answer.json["reason"]) == (500, "InternalError")
        assert b"broken" not in answer.body

    run(tmp_path, test, plugins=[Broken()])
    assert "the plugin is broken" in caplog.text


class Logs:
    """A kubelet whose containers say two words."""

    def __init__(self) -> None:
        self.options: list[LogOptions] = []

    @asynccontextmanager
    async def open_log(self, pod, options: LogOptions) -> AsyncIterator[AsyncIterator[bytes]]:
        self.options.append(options)
        if options.previous:
            raise errors.bad_request('previous terminated container "a" in pod "p" not found')

        async def chunks():
            yield b"hello "
            yield b"world\n"

        yield chunks()


async def pod_on_node(http, *containers: str) -> str:
    pods = "/api/v1/namespaces/ns/pods"
    spec = {"containers": [{"name": name, "image": "i"} for name in containers]}
    await http("POST", pods, {"metadata": {"name": "p"}, "spec": spec})
    return f"{pods}/p"


def test_logs_stream_from_the_kubelet(tmp_path):
    source = Logs()

    async def test(http, local):
        pod = await pod_on_node(http, "a", "b")
        assert (await http("GET", f"{pod}/log?container=a")).status == 204
        await http("POST", f"{pod}/binding", {"target": {"name": "node1"}})
        answer = await http("GET", f"{pod}/log?container=a&tailLines=1&timestamps=true&follow=false")
        assert (answer.body, answer.header("content-type")) == (b"hello world\n", "text/plain")
        assert source.options == [LogOptions("a", timestamps=True, tail_lines=1)]
        unclear = await http("GET", f"{pod}/log")
        assert (unclear.status, unclear.json["message"]) == (
            400,
            "a container name must be specified for pod p, choose one of: [a b]",
        )
        assert (await http("GET", f"{pod}/log?container=x")).json[
            "message"
        ] == "container x is not valid for pod p"
        early = await http("GET", f"{pod}/log?container=a&previous=true")
        assert (early.status, early.json["reason"]) == (400, "BadRequest")

    run(tmp_path, test, log_source=source)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("stream=Stderr", "stream: Forbidden: may not be specified"),
        ("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0"),
        ("sinceSeconds=0", "sinceSeconds: Invalid value: 0: must be greater than 0"),
    ],
)
def test_wrong_log_options_are_refused(tmp_path, query, message):
    async def test(http, local):
        pod = await pod_on_node(http, "a")
        answer = await http("GET", f"{pod}/log?{query}")
        assert (answer.status, answer.json["message"]) == (422, f'PodLogOptions "p" is invalid: {message}')

    run(tmp_path, test, log_source=Logs())


def test_every_answer_about_a_deprecated_kind_says_so(tmp_path):
    text = '299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"'
    path = "/api/v1/namespaces/ns/endpoints"

    async def test(http, local):
        await local.client.create("namespaces", {"metadata": {"name": "ns"}})
        assert (await http("POST", path, {"metadata": {"name": "e"}})).header("warning") == text
        for asked in (path, f"{path}/e", f"{path}?watch=true&timeoutSeconds=1"):
            answer = await http("GET", asked)
            assert (answer.status, answer.header("warning")) == (200, text)
        answer = await http("GET", f"{path}/absent")
        assert (answer.status, answer.header("warning")) == (404, text)
        assert (await http("GET", "/api/v1/namespaces/ns/services")).header("warning") is None

    run(tmp_path, test)


class Seen:
    """An admission plugin that changes the audience of tokens."""

    def __init__(self):
        self.objects = []

    async def mutate(self, request):
        if request.subresource == "token":
            assert (request.operation, request.kind.kind, request.name) == ("CREATE", "ServiceAccount", "bot")
            self.objects.append(copy(request.object))
            request.object["spec"]["audiences"] = ["changed"]
            request.warnings.append("careful")

    async def validate(self, request):
        if request.object and request.object["metadata"].get("namespace") == "closed":
            raise errors.forbidden("serviceaccounts", "", request.name, "closed")


def test_a_token_request_is_admitted(tmp_path):
    seen, calls = Seen(), []

    async def token(call):
        calls.append(call)
        return {"status": {"token": "t"}}

    async def test(http, local):
        local.api.register("serviceaccounts", "token", token)
        answer = await http("POST", "/api/v1/namespaces/ns/serviceaccounts/bot/token", {"spec": {}})
        assert (answer.status, answer.header("warning")) == (201, '299 - "careful"')
        assert seen.objects == [
            {
                "kind": "TokenRequest",
                "apiVersion": "authentication.k8s.io/v1",
                "metadata": {"namespace": "ns"},
                "spec": {"audiences": None, "expirationSeconds": 3600, "boundObjectRef": None},
                "status": {"token": "", "expirationTimestamp": None},
            }
        ]
        assert calls[0].body["spec"]["audiences"] == ["changed"]
        answer = await http("POST", "/api/v1/namespaces/closed/serviceaccounts/bot/token", {"spec": {}})
        assert (answer.status, len(calls)) == (403, 1)

    run(tmp_path, test, plugins=[seen])


def test_endpoints_of_others_get_decoded_calls_and_http_endpoints_the_connection(tmp_path):
    calls = []

    async def token(call):
        calls.append(call)
        return {"status": {"token": "t"}}

    async def proxy(scope, receive, send, call):
        if call.name == "bad":
            raise errors.bad_request("no")
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": f"{call.verb} {call.user.name}".encode()})

    async def test(http, local):
        local.api.register("serviceaccounts", "token", token)
        http.app.register("services", "proxy", proxy)
        answer = await http(
            "POST", "/api/v1/namespaces/ns/serviceaccounts/bot/token", {"spec": {"audiences": ["x"]}}
        )
        assert (answer.status, answer.json["kind"], answer.json["status"]) == (
            201,
            "TokenRequest",
            {"token": "t"},
        )
        assert (calls[0].user, calls[0].name, calls[0].body["spec"]["audiences"]) == (ADMIN, "bot", ["x"])
        proxied = await http("PUT", "/api/v1/namespaces/ns/services/web:80/proxy/a/b?c=d")
        assert (proxied.status, proxied.body) == (299, b"update admin")
        assert (await http("GET", "/api/v1/namespaces/ns/services/bad/proxy/")).status == 400

    run(tmp_path, test)
