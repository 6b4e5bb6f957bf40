"""Admission webhooks against a real HTTPS server on loopback: reviews, patches, and every failure."""

import base64
import json
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh_local.apiserver.admission.webhook_client import WebhookClient
from mesh_local.apiserver.admission.webhooks import (
    MUTATING,
    VALIDATING,
    MutatingWebhooks,
    ValidatingWebhooks,
    WebhookCaller,
)
from mesh_local.apiserver.service_routes import ServiceResolver
from mesh_local.apiserver.types import Admission, User
from mesh_local.kinds import admissionregistration, config, event, namespace, service_account
from mesh_local.kinds.base import Kind, find
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, copy
from tests.support.local_auth import DirectDialer, FakeReader, LoopbackDialer
from tests.support.local_webhook import Asked, Authority, Handler, Reply, Server, serving

KINDS = (*config.KINDS, *event.KINDS, *namespace.KINDS, *service_account.KINDS, *admissionregistration.KINDS)
ADMIN = User("admin", groups=("system:masters", "system:authenticated"), extra={"k": ("v",)})
RULE = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
LIMIT_S = 15


def kind_of(resource: str) -> Kind:
    found = find(KINDS, resource)
    assert found is not None
    return found


CONFIG_MAP = kind_of("configmaps")


def answering(response: Object) -> Handler:
    """A webhook that answers this, with the uid that was asked."""

    async def handle(asked: Asked) -> Reply:
        return review({"uid": asked.review["uid"], **response})

    return handle


def review(response: Object | None, version: str = "v1") -> Reply:
    body: Object = {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}"}
    if response is not None:
        body["response"] = response
    return Reply(body=json.dumps(body).encode())


def constant(reply: Reply) -> Handler:
    async def handle(_asked: Asked) -> Reply:
        return reply

    return handle


def patching(*operations: Object) -> Handler:
    patch = base64.b64encode(json.dumps(operations).encode()).decode()
    return answering({"allowed": True, "patchType": "JSONPatch", "patch": patch})


ALLOW = answering({"allowed": True})
ADD = patching({"op": "add", "path": "/data/patched", "value": "yes"})


class World:
    """Namespaces, configurations and the two plugins."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.reader = FakeReader()
        self.node = LoopbackDialer()
        for name, labels in (("t10", {"hook": "on"}), ("demo", {})):
            labels["kubernetes.io/metadata.name"] = name
            self.reader.put("namespaces", {"metadata": {"name": name, "labels": labels}})
        client = WebhookClient(ServiceResolver(self.reader, self.node, random.Random(3)), DirectDialer())
        self.caller = WebhookCaller(self.reader, client, lambda: KINDS, random.Random(5))

    def hook(self, port: int, path: str = "/hook", **fields: Any) -> Object:
        """One webhook on this server, complete as the API server stores it."""
        kind = fields.pop("of", admissionregistration.MUTATING)
        given: Object = {
            "name": "h0.example.com",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"url": f"https://127.0.0.1:{port}{path}", "caBundle": self.authority.bundle},
            "rules": [copy(RULE)],
            "namespaceSelector": {"matchLabels": {"hook": "on"}},
            **fields,
        }
        obj: Object = {"webhooks": [given]}
        kind.default(obj)
        assert kind.validate(obj) == []
        return given

    def configure(self, *hooks: Object, resource: str = MUTATING) -> None:
        self.reader.put(resource, {"metadata": {"name": "c"}, "webhooks": list(hooks)})

    async def mutate(self, request: Admission, *builtin: Any) -> Admission:
        with trio.fail_after(LIMIT_S):
            await MutatingWebhooks(self.caller, builtin).mutate(request)
        return request

    async def validate(self, request: Admission) -> Admission:
        with trio.fail_after(LIMIT_S):
            await ValidatingWebhooks(self.caller).validate(request)
        return request


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Authority(tmp_path / "hook-pki"))


def config_map(name: str = "c1", **metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "t10", **metadata},
        "data": {"a": "1"},
    }


def creation(obj: Object | None = None, kind: Kind = CONFIG_MAP, **fields: Any) -> Admission:
    obj = config_map() if obj is None else obj
    options = {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}
    given: dict[str, Any] = {
        "operation": "CREATE",
        "kind": kind,
        "name": obj["metadata"].get("name", ""),
        "namespace": obj["metadata"].get("namespace", ""),
        "subresource": "",
        "object": obj,
        "old": None,
        "options": options,
        "user": ADMIN,
        **fields,
    }
    return Admission(**given)


def with_server(
    world: World, handler: Handler, test: Callable[[Server], Awaitable[None]], *sans: str
) -> None:
    async def run() -> None:
        async with serving(handler, world.authority.tls(*(sans or ("127.0.0.1",)))) as server:
            await test(server)

    trio.run(run)


def asked_of(world: World, handler: Handler, request: Admission, **fields: Any) -> list[Asked]:
    """What a mutating webhook was asked for a request."""
    found: list[Asked] = []

    async def test(server: Server) -> None:
        world.configure(world.hook(server.port, **fields))
        await world.mutate(request)
        found.extend(server.asked)

    with_server(world, handler, test)
    return found


def failure_of(world: World, handler: Handler, *, validating: bool = False, **fields: Any) -> ApiError:
    """The error that a webhook leads to, for a creation."""
    found: list[ApiError] = []

    async def test(server: Server) -> None:
        of = admissionregistration.VALIDATING if validating else admissionregistration.MUTATING
        hook = world.hook(server.port, of=of, **fields)
        world.configure(hook, resource=VALIDATING if validating else MUTATING)
        with pytest.raises(ApiError) as caught:
            await (world.validate if validating else world.mutate)(creation())
        found.append(caught.value)

    with_server(world, handler, test)
    return found[0]


# The review


def test_the_review_of_a_creation(world: World) -> None:
    request = creation()
    (asked,) = asked_of(world, ADD, request, path="/patch")
    assert (asked.method, asked.target) == ("POST", "/patch?timeout=10s")
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["user-agent"] == "kube-apiserver-admission"
    body = json.loads(asked.body)
    uid = body["request"].pop("uid")
    gvk = {"group": "", "version": "v1", "kind": "ConfigMap"}
    gvr = {"group": "", "version": "v1", "resource": "configmaps"}
    assert len(uid) == 36
    assert body == {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "kind": gvk,
            "resource": gvr,
            "requestKind": gvk,
            "requestResource": gvr,
            "name": "c1",
            "namespace": "t10",
            "operation": "CREATE",
            "userInfo": {
                "username": "admin",
                "groups": ["system:masters", "system:authenticated"],
                "extra": {"k": ["v"]},
            },
            "object": config_map(),
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    }
    assert request.object is not None
    assert request.object["data"] == {"a": "1", "patched": "yes"}


def test_a_generated_name_is_not_there_yet(world: World) -> None:
    obj = config_map()
    obj["metadata"] = {"generateName": "c-", "namespace": "t10"}
    (asked,) = asked_of(world, ALLOW, creation(obj))
    assert "name" not in asked.review
    assert asked.review["namespace"] == "t10"


def test_updates_and_deletions(world: World) -> None:
    every = [{**RULE, "operations": ["UPDATE", "DELETE"]}]
    old, new = config_map(), {**config_map(), "data": {}}
    (asked,) = asked_of(world, ALLOW, creation(new, operation="UPDATE", old=old), rules=every)
    assert (asked.review["object"], asked.review["oldObject"]) == (new, old)
    deletion = creation(operation="DELETE", old=old)
    deletion.object = None
    (asked,) = asked_of(world, ALLOW, deletion, rules=every)
    assert (asked.review["object"], asked.review["oldObject"]) == (None, old)
    assert asked_of(world, ALLOW, creation(), rules=every) == []


def test_a_subresource_has_its_own_kind(world: World) -> None:
    body = {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"namespace": "t10"},
        "spec": {},
    }
    request = creation(body, kind_of("serviceaccounts"), subresource="token", name="s")
    rules = [{**RULE, "resources": ["serviceaccounts/token"]}]
    (asked,) = asked_of(world, ALLOW, request, rules=rules)
    token = {"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"}
    accounts = {"group": "", "version": "v1", "resource": "serviceaccounts"}
    shown = {k: v for k, v in asked.review.items() if k.startswith(("kind", "res", "sub", "request"))}
    assert shown == {
        "kind": token,
        "resource": accounts,
        "subResource": "token",
        "requestKind": token,
        "requestResource": accounts,
        "requestSubResource": "token",
    }
    assert asked.review["object"] == body
    rules = [{**RULE, "resources": ["serviceaccounts"]}]
    assert asked_of(world, ALLOW, request, rules=rules) == []


def test_equivalent_kinds_are_converted(world: World) -> None:
    obj: Object = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "t10"},
        "involvedObject": {"kind": "Pod", "name": "x", "namespace": "t10"},
        "reason": "R",
        "message": "m",
        "type": "Normal",
    }
    rules = [{**RULE, "apiGroups": ["events.k8s.io"], "resources": ["events"]}]
    request = creation(obj, kind_of("events"))
    (asked,) = asked_of(
        world, patching({"op": "replace", "path": "/note", "value": "n"}), request, rules=rules
    )
    assert asked.review["kind"] == {"group": "events.k8s.io", "version": "v1", "kind": "Event"}
    assert asked.review["resource"]["group"] == "events.k8s.io"
    assert asked.review["requestKind"] == {"group": "", "version": "v1", "kind": "Event"}
    assert asked.review["object"]["apiVersion"] == "events.k8s.io/v1"
    assert asked.review["object"]["regarding"] == obj["involvedObject"]
    assert request.object is not None
    assert (request.object["apiVersion"], request.object["message"]) == ("v1", "n")
    exact = creation(copy(obj), kind_of("events"))
    assert asked_of(world, ALLOW, exact, rules=rules, matchPolicy="Exact") == []


def test_configurations_of_webhooks_are_exempt(world: World) -> None:
    obj: Object = {"metadata": {"name": "x"}, "webhooks": []}
    rules = [{**RULE, "apiGroups": ["*"], "resources": ["*"]}]
    assert asked_of(world, ALLOW, creation(obj, admissionregistration.MUTATING), rules=rules) == []


# Selection


def test_object_selector_matches_the_new_or_the_old(world: World) -> None:
    selector = {"matchLabels": {"sel": "yes"}}
    rules = [{**RULE, "operations": ["CREATE", "UPDATE"]}]
    labelled, bare = config_map(labels={"sel": "yes"}), config_map()
    found = {
        name: len(asked_of(world, ALLOW, request, rules=rules, objectSelector=selector))
        for name, request in (
            ("bare", creation(copy(bare))),
            ("new", creation(copy(labelled))),
            ("old", creation(copy(bare), operation="UPDATE", old=labelled)),
        )
    }
    assert found == {"bare": 0, "new": 1, "old": 1}


def test_namespace_selector(world: World) -> None:
    elsewhere = config_map()
    elsewhere["metadata"]["namespace"] = "demo"
    assert asked_of(world, ALLOW, creation(elsewhere)) == []
    selector = {
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["demo"]}]
    }
    assert len(asked_of(world, ALLOW, creation(elsewhere), namespaceSelector=selector)) == 1


def test_namespace_selector_on_a_namespace_reads_its_own_labels(world: World) -> None:
    rules = [{**RULE, "resources": ["namespaces"]}]
    obj: Object = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "new", "labels": {"hook": "on"}},
    }
    (asked,) = asked_of(world, ALLOW, creation(obj, kind_of("namespaces")), rules=rules)
    assert (asked.review["name"], asked.review["namespace"]) == ("new", "new")
    obj = {**obj, "metadata": {"name": "new"}}
    assert asked_of(world, ALLOW, creation(obj, kind_of("namespaces")), rules=rules) == []


@pytest.mark.parametrize(
    ("expression", "called"),
    [
        ("object.metadata.name.startsWith('c')", 1),
        ("object.metadata.name.startsWith('yes')", 0),
        ("request.operation == 'CREATE' && oldObject == null", 1),
        ("!('system:masters' in request.userInfo.groups)", 0),
        ("has(object.metadata.labels) && 'x' in object.metadata.labels", 0),
    ],
)
def test_match_conditions(world: World, expression: str, called: int) -> None:
    conditions = [{"name": "n", "expression": expression}]
    assert len(asked_of(world, ALLOW, creation(), matchConditions=conditions)) == called


def test_match_conditions_that_cannot_be_evaluated(world: World) -> None:
    conditions = [{"name": "n", "expression": "object.spec.x == 1"}]
    error = failure_of(world, ALLOW, matchConditions=conditions)
    assert error.code == 403
    assert "expression 'object.spec.x == 1' resulted in error: no such key: spec" in error.message
    ignored = creation()
    assert asked_of(world, ALLOW, ignored, matchConditions=conditions, failurePolicy="Ignore") == []
    # One that is false decides, whatever else is wrong.
    conditions.append({"name": "f", "expression": "false"})
    assert asked_of(world, ALLOW, creation(), matchConditions=conditions) == []


def test_dry_run_is_refused_by_hooks_with_side_effects(world: World) -> None:
    (asked,) = asked_of(world, ALLOW, creation(dry_run=True), sideEffects="NoneOnDryRun")
    assert asked.review["dryRun"] is True
    hook = world.hook(1)
    hook["sideEffects"] = "Some"  # stored by an older version
    world.configure(hook)
    with pytest.raises(
        ApiError, match=r'^admission webhook "h0\.example\.com" does not support dry run$'
    ) as e:
        trio.run(world.mutate, creation(dry_run=True))
    assert e.value.code == 400


# Answers


def test_warnings_are_passed_on(world: World) -> None:
    request = creation()
    asked_of(world, answering({"allowed": True, "warnings": ["first", "second"]}), request)
    assert request.warnings == ["first", "second"]
    request = creation()
    asked_of(world, answering({"allowed": True, "warnings": ["x" * 5000] * 100}), request)
    assert request.warnings == ["x" * 256] * 16


@pytest.mark.parametrize(
    ("response", "code", "reason", "message"),
    [
        ({}, 400, "", 'admission webhook "h0.example.com" denied the request without explanation'),
        (
            {"status": {"code": 403, "message": "no widgets today"}},
            403,
            "",
            'admission webhook "h0.example.com" denied the request: no widgets today',
        ),
        (
            {"status": {"code": 422, "message": "custom code", "reason": "Invalid", "details": {"x": 1}}},
            422,
            "Invalid",
            'admission webhook "h0.example.com" denied the request: custom code',
        ),
        (
            {"status": {"code": 200, "reason": "Why"}},
            400,
            "Why",
            'admission webhook "h0.example.com" denied the request: Why',
        ),
    ],
)
@pytest.mark.parametrize("validating", [False, True])
def test_denials(
    world: World, validating: bool, response: Object, code: int, reason: str, message: str
) -> None:
    error = failure_of(world, answering({"allowed": False, **response}), validating=validating)
    assert (error.code, error.reason, error.message) == (code, reason, message)
    assert error.status.get("details") == response.get("status", {}).get("details")


def calling(text: str) -> str:
    return f'Internal error occurred: failed calling webhook "h0.example.com": {text}'


INVALID = "received invalid webhook response: "
NO_JSON = (
    "failed to call webhook: couldn't get version/kind; json parse error: json: cannot unmarshal string into "
    'Go value of type struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string '
    '"json:\\"kind,omitempty\\"" }'
)


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (
            answering({"allowed": True, "patch": "W10="}),
            INVALID + "webhook returned response.patch but not response.patchType",
        ),
        (
            answering({"allowed": True, "patchType": "JSONPatch"}),
            INVALID + "webhook returned response.patchType but not response.patch",
        ),
        (
            constant(review({"uid": "wrong", "allowed": True})),
            INVALID + 'expected response.uid="{uid}", got "wrong"',
        ),
        (constant(review({"allowed": True})), INVALID + 'expected response.uid="{uid}", got ""'),
        (constant(review(None)), INVALID + "webhook response was absent"),
        (
            constant(review({"allowed": True}, "v1beta1")),
            "failed to call webhook: converting (v1beta1.AdmissionReview) to (v1.AdmissionReview): "
            "unknown conversion",
        ),
        (
            constant(Reply(500, b"boom", "text/plain")),
            'failed to call webhook: an error on the server ("boom") has prevented the request from '
            "succeeding",
        ),
        (
            constant(Reply(404, b"x", "text/plain")),
            "failed to call webhook: the server could not find the requested resource",
        ),
        (constant(Reply(body=b'"<html>"')), NO_JSON),
    ],
)
def test_answers_that_are_none(world: World, handler: Handler, text: str) -> None:
    uids: list[str] = []

    async def noting(asked: Asked) -> Reply:
        uids.append(asked.review["uid"])
        return await handler(asked)

    error = failure_of(world, noting)
    assert error.code == 500
    assert error.reason == "InternalError"
    assert error.message == calling(text.replace("{uid}", uids[0]))


def test_answers_of_the_wrong_shape(world: World) -> None:
    for handler in (
        constant(Reply(body=b"<html>")),
        constant(Reply(body=b"")),
        constant(Reply(body=b"[" * 100_000)),
        answering({"allowed": "yes"}),
        answering({"allowed": True, "warnings": "one"}),
        answering({"allowed": True, "patchType": "JSONPatch", "patch": "%%%"}),
        answering({"allowed": True, "patchType": "Merge", "patch": "e30="}),
        constant(Reply(body=b" " * (3 * 1024 * 1024 + 1))),
    ):
        error = failure_of(world, handler)
        assert error.message.startswith(calling(""))


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (
            {"op": "replace", "path": "/spec/absent/x", "value": 1},
            "replace operation does not apply: doc is missing path: /spec/absent/x: missing value",
        ),
        (
            {"op": "add", "path": "/spec/zzz", "value": 1},
            'add operation does not apply: doc is missing path: "/spec/zzz": missing value',
        ),
        ({"op": "test", "path": "/data/a", "value": "2"}, "testing value /data/a failed: test failed"),
        ({"op": "replace", "path": "/kind", "value": "Pod"}, "a patch may not change kind or apiVersion"),
        ({"op": "replace", "path": "", "value": 1}, "the patched object is not an API object"),
    ],
)
def test_patches_that_do_not_apply_fail_whatever_the_policy(
    world: World, operation: Object, text: str
) -> None:
    for policy in ("Fail", "Ignore"):
        error = failure_of(world, patching(operation), failurePolicy=policy)
        assert (error.code, error.message) == (500, f"Internal error occurred: {text}")


def test_a_patch_that_nests_too_deep(world: World) -> None:
    deep = base64.b64encode(b"[" * 100_000).decode()
    error = failure_of(world, answering({"allowed": True, "patchType": "JSONPatch", "patch": deep}))
    assert error.code == 500
    assert "cannot be decoded" in error.message


# Calls that fail


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def refused(world: World, hook: Object, request: Admission | None = None) -> ApiError:
    world.configure(hook)
    with pytest.raises(ApiError) as caught:
        trio.run(world.mutate, request or creation())
    assert caught.value.code == 500
    return caught.value


def test_connection_refused(world: World) -> None:
    port = closed_port()
    error = refused(world, world.hook(port, "/allow"))
    url = f"https://127.0.0.1:{port}/allow?timeout=10s"
    assert error.message == calling(
        f'failed to call webhook: Post "{url}": dial tcp 127.0.0.1:{port}: connect: connection refused'
    )
    world.configure(world.hook(port, failurePolicy="Ignore"))
    trio.run(world.mutate, creation())


def test_timeout(world: World) -> None:
    async def slow(_asked: Asked) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    error = failure_of(world, slow, timeoutSeconds=1)
    assert error.message.endswith('/hook?timeout=1s": context deadline exceeded')
    assert asked_of(world, slow, creation(), timeoutSeconds=1, failurePolicy="Ignore") != []


def other_bundle(tmp_path: Path) -> str:
    return Authority(tmp_path / "other-pki").bundle


@pytest.mark.parametrize("bundle", ["other", ""])
def test_unknown_authority(world: World, tmp_path: Path, bundle: str) -> None:
    ca = other_bundle(tmp_path) if bundle else ""

    async def test(server: Server) -> None:
        url = f"https://127.0.0.1:{server.port}/allow"
        client = {"url": url} | ({"caBundle": ca} if ca else {})
        world.configure(world.hook(server.port, clientConfig=client))
        with pytest.raises(ApiError) as caught:
            await world.mutate(creation())
        assert caught.value.message == calling(
            f'failed to call webhook: Post "{url}?timeout=10s": tls: failed to verify certificate: x509: '
            "certificate signed by unknown authority"
        )
        assert server.asked == []

    with_server(world, ALLOW, test)


@pytest.mark.parametrize(
    ("sans", "text"),
    [
        (("localhost",), "cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"),
        (("127.0.0.2", "::1"), "certificate is valid for 127.0.0.2, ::1, not 127.0.0.1"),
    ],
)
def test_wrong_name(world: World, sans: tuple[str, ...], text: str) -> None:
    async def test(server: Server) -> None:
        world.configure(world.hook(server.port))
        with pytest.raises(ApiError) as caught:
            await world.mutate(creation())
        assert caught.value.message.endswith(f": tls: failed to verify certificate: x509: {text}")

    with_server(world, ALLOW, test, *sans)


def test_expired_certificate(world: World) -> None:
    authority = world.authority
    authority.pki._now = authority.pki._now.replace(year=authority.pki._now.year - 2)

    async def test(server: Server) -> None:
        world.configure(world.hook(server.port))
        with pytest.raises(ApiError) as caught:
            await world.mutate(creation())
        assert "x509: certificate has expired or is not yet valid: current time" in caught.value.message

    with_server(world, ALLOW, test)


def test_an_unusable_ca_bundle(world: World) -> None:
    hook = world.hook(1, clientConfig={"url": "https://127.0.0.1:1/x", "caBundle": "AAAA"})
    assert refused(world, hook).message == calling(
        "could not get REST client: unable to load root certificates: unable to parse bytes as PEM block"
    )


def test_no_tls_and_no_http(world: World) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async def silent(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async def run(handler: Any) -> str:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, handler, 0)
            world.configure(world.hook(listeners[0].socket.getsockname()[1]))
            with pytest.raises(ApiError) as caught:
                await world.mutate(creation())
            nursery.cancel_scope.cancel()
        return caught.value.message

    assert trio.run(run, plain).endswith(": tls: first record does not look like a TLS handshake")
    assert trio.run(run, silent).endswith((": EOF", "read: connection reset by peer"))


@pytest.mark.parametrize("host", ["no-such-host.invalid", f"{'a' * 70}.invalid", ".invalid", "a..invalid"])
def test_unknown_host(world: World, host: str) -> None:
    hook = world.hook(1, clientConfig={"url": f"https://{host}/x"})
    assert refused(world, hook).message.endswith(f": dial tcp: lookup {host}: no such host")
    world.configure({**hook, "failurePolicy": "Ignore"})
    trio.run(world.mutate, creation())


def test_every_address_of_a_host_is_tried(world: World) -> None:
    async def test(server: Server) -> None:
        # localhost is ::1 as well on most machines; the server listens on 127.0.0.1 only.
        client = {"url": f"https://localhost:{server.port}/x", "caBundle": world.authority.bundle}
        world.configure(world.hook(0, clientConfig=client))
        await world.mutate(creation())
        assert server.asked[0].headers["host"] == f"localhost:{server.port}"

    with_server(world, ALLOW, test, "localhost")


# Services


def service(port: int, name: str = "hooks") -> tuple[Object, Object]:
    metadata = {"name": name, "namespace": "t10"}
    ports = [{"name": "https", "port": 443, "targetPort": 8443}, {"name": "m", "port": 9090}]
    spec = {"type": "ClusterIP", "ports": ports}
    endpoints = [
        {"addresses": ["10.1.0.9"], "conditions": {"ready": False}},
        {"addresses": ["10.1.0.5"], "conditions": {"ready": True}},
    ]
    labels = {"kubernetes.io/service-name": name}
    return (
        {"metadata": metadata, "spec": spec},
        {
            "metadata": {"name": f"{name}-x", "namespace": "t10", "labels": labels},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        },
    )


def service_config(world: World, **fields: Any) -> Object:
    reference = {"namespace": "t10", "name": "hooks", "path": "/x", **fields}
    return {"service": reference, "caBundle": world.authority.bundle}


def test_a_service_is_reached_through_its_ready_endpoints(world: World) -> None:
    async def test(server: Server) -> None:
        service_object, endpoints = service(server.port)
        world.reader.put("services", service_object)
        world.reader.put("endpointslices.discovery.k8s.io", endpoints)
        world.configure(world.hook(0, clientConfig=service_config(world)))
        await world.mutate(creation())
        assert world.node.asked == [("10.1.0.5", server.port)]
        assert server.asked[0].target == "/x?timeout=10s"
        assert server.asked[0].headers["host"] == "hooks.t10.svc:443"

    with_server(world, ALLOW, test, "hooks.t10.svc")


def test_a_service_needs_its_own_name_in_the_certificate(world: World) -> None:
    async def test(server: Server) -> None:
        service_object, endpoints = service(server.port)
        world.reader.put("services", service_object)
        world.reader.put("endpointslices.discovery.k8s.io", endpoints)
        world.configure(world.hook(0, clientConfig=service_config(world)))
        with pytest.raises(ApiError) as caught:
            await world.mutate(creation())
        assert caught.value.message == calling(
            'failed to call webhook: Post "https://hooks.t10.svc:443/x?timeout=10s": tls: failed to verify '
            "certificate: x509: certificate is valid for hooks.other.svc, not hooks.t10.svc"
        )

    with_server(world, ALLOW, test, "hooks.other.svc")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "absent"}, 'Post "https://absent.t10.svc:443/x?timeout=10s": service "absent" not found'),
        (
            {"port": 444},
            'Post "https://hooks.t10.svc:444/x?timeout=10s": no service port 444 found for service "hooks"',
        ),
        (
            {"port": 9090},
            'Post "https://hooks.t10.svc:9090/x?timeout=10s": no endpoints available for service "hooks"',
        ),
    ],
)
def test_services_that_lead_nowhere(world: World, fields: Object, text: str) -> None:
    service_object, endpoints = service(1)
    world.reader.put("services", service_object)
    world.reader.put("endpointslices.discovery.k8s.io", endpoints)
    error = refused(world, world.hook(0, clientConfig=service_config(world, **fields)))
    assert error.message == calling(f"failed to call webhook: {text}")


# Order


def labelling(asked: Asked) -> list[Object]:
    """/first counts its calls in a label, /second sets one."""
    labels = asked.review["object"]["metadata"].get("labels")
    name = asked.target[1:].partition("?")[0]
    if labels is None:
        return [{"op": "add", "path": "/metadata/labels", "value": {name: "1"}}]
    return [{"op": "add", "path": f"/metadata/labels/{name}", "value": str(int(labels.get(name, "0")) + 1)}]


async def count(asked: Asked) -> Reply:
    return await patching(*labelling(asked))(asked)


@pytest.mark.parametrize(("policy", "first"), [("IfNeeded", "2"), ("Never", "1")])
def test_reinvocation(world: World, policy: str, first: str) -> None:
    async def test(server: Server) -> None:
        one = world.hook(server.port, "/first", name="a.example.com", reinvocationPolicy=policy)
        two = world.hook(server.port, "/second", name="b.example.com")
        world.configure(one, two)
        request = await world.mutate(creation())
        assert request.object is not None
        assert request.object["metadata"]["labels"] == {"first": first, "second": "1"}
        uids = [a.review["uid"] for a in server.asked]
        assert len(set(uids)) == len(uids)

    with_server(world, count, test)


class Defaulter:
    """A built-in plugin that fills in what is missing."""

    def __init__(self) -> None:
        self.runs = 0

    async def mutate(self, request: Admission) -> None:
        self.runs += 1
        assert request.object is not None
        request.object["data"].setdefault("late", request.object["data"].get("patched", ""))

    async def validate(self, request: Admission) -> None: ...


@pytest.mark.parametrize(("handler", "runs", "calls"), [(ADD, 1, 2), (ALLOW, 0, 1)])
def test_builtin_plugins_run_again_after_a_change(
    world: World, handler: Handler, runs: int, calls: int
) -> None:
    plugin = Defaulter()

    async def test(server: Server) -> None:
        world.configure(world.hook(server.port, reinvocationPolicy="IfNeeded"))
        request = await world.mutate(creation(), plugin)
        assert plugin.runs == runs
        assert len(server.asked) == calls
        assert request.object is not None
        assert request.object["data"].get("late") == ("yes" if runs else None)

    with_server(world, handler, test)


def test_configurations_are_called_by_name(world: World) -> None:
    async def test(server: Server) -> None:
        for name in ("b", "a"):
            hook = world.hook(server.port, f"/{name}")
            world.reader.put(MUTATING, {"metadata": {"name": name}, "webhooks": [hook]})
        await world.mutate(creation())
        assert [a.target[:2] for a in server.asked] == ["/a", "/b"]

    with_server(world, ALLOW, test)


# Validating


def test_validating_webhooks_may_not_patch(world: World) -> None:
    error = failure_of(world, ADD, validating=True)
    assert error.message == calling(INVALID + "validating webhook may not return response.patch")


def test_validating_webhooks_are_called_together(world: World) -> None:
    both = trio.Event()
    waiting: list[str] = []

    async def meet(asked: Asked) -> Reply:
        waiting.append(asked.target)
        if len(waiting) == 2:
            both.set()
        await both.wait()
        path = asked.target[1:].partition("?")[0]
        status = {"code": 403, "message": path}
        return await answering({"allowed": False, "status": status, "warnings": [path]})(asked)

    async def test(server: Server) -> None:
        of = admissionregistration.VALIDATING
        hooks = [world.hook(server.port, f"/{n}", name=f"{n}.example.com", of=of) for n in ("a", "b")]
        world.configure(*hooks, resource=VALIDATING)
        request = creation()
        with pytest.raises(ApiError) as caught:
            await world.validate(request)
        assert caught.value.message == 'admission webhook "a.example.com" denied the request: a'
        assert sorted(request.warnings) == ["a", "b"]

    with_server(world, meet, test)


def test_a_cancelled_call_leaves_no_connection(world: World) -> None:
    gone = trio.Event()

    async def hang(stream: trio.SocketStream) -> None:
        while await stream.receive_some(65536):
            pass
        gone.set()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, hang, 0)
            world.configure(world.hook(listeners[0].socket.getsockname()[1]))
            with trio.move_on_after(0.2) as scope:
                await world.mutate(creation())
            assert scope.cancelled_caught
            with trio.fail_after(LIMIT_S):
                await gone.wait()
            nursery.cancel_scope.cancel()

    trio.run(run)
