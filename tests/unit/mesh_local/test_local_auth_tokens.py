"""ServiceAccount tokens: claims, TokenRequest, TokenReview, and when they stop to be valid."""

import base64
import json
from typing import Any

import jwt
import pytest
import trio

from mesh_local.apiserver.auth.authenticator import CACHE_SIZE
from mesh_local.apiserver.auth.endpoints import endpoints
from mesh_local.apiserver.auth.rbac import RbacAuthorizer
from mesh_local.apiserver.types import ANONYMOUS, Call, User
from mesh_local.kinds import reviews
from mesh_local.kinds.base import Kind
from mesh_local.kinds.service_account import SERVICE_ACCOUNT
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object
from tests.support.local_auth import START, Clock, FakeReader, account, authenticator, pod

ISSUER = "https://kubernetes.default.svc"
EXTRA = "authentication.kubernetes.io/"
NOBODY = User("x")


class World:
    """One ServiceAccount, one Pod, and the endpoints."""

    def __init__(self) -> None:
        self.reader, self.clock = FakeReader(), Clock()
        self.reader.put("serviceaccounts", account())
        self.reader.put("pods", pod())
        self.reader.put("nodes", {"metadata": {"name": "node1", "uid": "u-node"}})
        self.authenticator = authenticator(self.reader, self.clock, issuer=ISSUER)
        authorizer = RbacAuthorizer(self.reader, lambda: self.reader.version)
        self.endpoints = endpoints(self.reader, self.authenticator, authorizer)

    def call(self, kind: Kind, body: Any, name: str = "", namespace: str = "", sub: str = "") -> Object:
        request = Call(NOBODY, kind, name, namespace, sub, "create", body, {})
        endpoint = self.endpoints[kind.resource, sub]

        async def run() -> Object:
            return await endpoint(request)

        return trio.run(run)

    def request(self, name: str = "bot", **spec: Any) -> Object:
        return self.call(SERVICE_ACCOUNT, {"spec": {"expirationSeconds": 3600} | spec}, name, "t9", "token")

    def token(self, **spec: Any) -> str:
        return str(self.request(**spec)["status"]["token"])

    def review(self, token: str, *audiences: str) -> Object:
        spec: Object = {"token": token} | ({"audiences": list(audiences)} if audiences else {})
        answer = self.call(reviews.TOKEN_REVIEW, {"metadata": {}, "spec": spec})
        assert answer["spec"] == spec
        return dict(answer["status"])

    def authenticate(self, token: str | None) -> User:
        return trio.run(self.authenticator.authenticate, token, None)


@pytest.fixture
def world() -> World:
    return World()


BOUND = {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "u-pod"}


def test_token_request_with_a_bound_pod(world: World) -> None:
    answer = world.request(audiences=["my-aud"], expirationSeconds=900, boundObjectRef=BOUND)
    token = answer["status"].pop("token")
    assert answer == {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": "bot",
            "namespace": "t9",
            "uid": "u-bot",
            "creationTimestamp": "2026-01-02T03:04:05Z",
        },
        "spec": {"audiences": ["my-aud"], "expirationSeconds": 900, "boundObjectRef": BOUND},
        "status": {"expirationTimestamp": "2026-01-02T03:19:05Z"},
    }
    claims = jwt.decode(token, options={"verify_signature": False})
    issued = int(START.timestamp())
    jti = claims.pop("jti")
    assert len(jti) == 36
    assert claims == {
        "aud": ["my-aud"],
        "exp": issued + 900,
        "iat": issued,
        "nbf": issued,
        "iss": ISSUER,
        "sub": "system:serviceaccount:t9:bot",
        "kubernetes.io": {
            "namespace": "t9",
            "serviceaccount": {"name": "bot", "uid": "u-bot"},
            "pod": {"name": "p", "uid": "u-pod"},
            "node": {"name": "node1", "uid": "u-node"},
        },
    }
    assert jwt.get_unverified_header(token)["kid"]


def test_token_request_defaults(world: World) -> None:
    answer = world.request()
    assert answer["spec"] == {"audiences": [ISSUER], "expirationSeconds": 3600, "boundObjectRef": None}


@pytest.mark.parametrize(
    ("name", "spec", "code", "message"),
    [
        (
            "bot",
            {"expirationSeconds": 60},
            422,
            'TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 60: '
            "may not specify a duration less than 10 minutes",
        ),
        (
            "bot",
            {"expirationSeconds": 8589934592},
            422,
            'TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: '
            "8589934592: may not specify a duration larger than 2^32 seconds",
        ),
        (
            "bot",
            {"boundObjectRef": {**BOUND, "uid": "other"}},
            409,
            'Operation cannot be fulfilled on Pod "p": the UID in the bound object reference (other) does '
            "not match the UID in record. The object might have been deleted and then recreated",
        ),
        ("bot", {"boundObjectRef": {**BOUND, "name": "absent"}}, 404, 'pods "absent" not found'),
        (
            "bot",
            {"boundObjectRef": {"kind": "ConfigMap", "apiVersion": "v1", "name": "x"}},
            400,
            "cannot bind token to object of type /v1, Kind=ConfigMap",
        ),
        ("nobody", {}, 404, 'serviceaccounts "nobody" not found'),
        (
            "other",
            {"boundObjectRef": BOUND},
            400,
            'cannot bind token for serviceaccount "other" to pod running with different serviceaccount name.',
        ),
    ],
)
def test_token_request_refusals(
    world: World, name: str, spec: dict[str, Any], code: int, message: str
) -> None:
    world.reader.put("serviceaccounts", account("other", uid="u-other"))
    with pytest.raises(ApiError) as caught:
        world.request(name, **spec)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_review_of_a_bound_token(world: World) -> None:
    token = world.token(audiences=["my-aud"], boundObjectRef=BOUND)
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    user = {
        "username": "system:serviceaccount:t9:bot",
        "uid": "u-bot",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:t9", "system:authenticated"],
        "extra": {
            f"{EXTRA}credential-id": [f"JTI={jti}"],
            f"{EXTRA}node-name": ["node1"],
            f"{EXTRA}node-uid": ["u-node"],
            f"{EXTRA}pod-name": ["p"],
            f"{EXTRA}pod-uid": ["u-pod"],
        },
    }
    assert world.review(token, "my-aud") == {"authenticated": True, "user": user, "audiences": ["my-aud"]}
    assert world.review(token, "other", "my-aud")["audiences"] == ["my-aud"]


def test_review_of_a_foreign_audience(world: World) -> None:
    token = world.token(audiences=["my-aud"])
    text = '[invalid bearer token, token audiences ["my-aud"] is invalid for the target audiences ["{}"]]'
    assert world.review(token, "other") == {"user": {}, "error": text.format("other")}
    assert world.review(token) == {"user": {}, "error": text.format(ISSUER)}


def test_review_of_what_is_no_token_of_ours(world: World) -> None:
    assert world.review("garbage") == {"user": {}, "error": "invalid bearer token"}
    foreign = jwt.encode({"iss": "https://elsewhere"}, "k" * 32, "HS256")
    assert world.review(foreign) == {"user": {}, "error": "invalid bearer token"}
    assert world.review("a" * 20_000) == {"user": {}, "error": "invalid bearer token"}
    with pytest.raises(ApiError, match="token is required for TokenReview in authentication") as caught:
        world.review("")
    assert caught.value.code == 400


def part(token: str, index: int) -> Any:
    text = token.split(".")[index]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_forged_tokens(world: World) -> None:
    token = world.token()
    header, claims, signature = token.split(".")
    forged = part(token, 1) | {"sub": "system:serviceaccount:kube-system:root"}
    unsigned = encoded({"alg": "none"}) + "." + encoded(forged) + "."
    symmetric = jwt.encode(part(token, 1), "k" * 32, "HS256")
    other = World().token()
    text = "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]"
    for bad in (f"{header}.{encoded(forged)}.{signature}", unsigned, symmetric, other):
        assert world.review(bad) == {"user": {}, "error": text}
        with pytest.raises(ApiError) as caught:
            world.authenticate(bad)
        assert caught.value.status["message"] == "Unauthorized"
    assert claims


def test_bearer_tokens(world: World) -> None:
    assert world.authenticate(None) is ANONYMOUS
    assert world.authenticate(world.token()).name == "system:serviceaccount:t9:bot"
    for bad in ("", "bad.token.here", world.token(audiences=["my-aud"])):
        with pytest.raises(ApiError) as caught:
            world.authenticate(bad)
        assert caught.value.code == 401


def test_a_token_ends(world: World) -> None:
    token = world.token(expirationSeconds=600)
    world.clock.advance(595)
    assert world.review(token)["authenticated"]
    world.clock.advance(5)
    expired = "[invalid bearer token, service account token has expired]"
    assert world.review(token) == {"user": {}, "error": expired}


def test_the_cache_outlives_the_pod_by_ten_seconds_only(world: World) -> None:
    token = world.token(boundObjectRef=BOUND)
    assert world.review(token)["authenticated"]
    world.reader.drop("pods", "p", "t9")
    world.clock.advance(9)
    assert world.review(token)["authenticated"]
    world.clock.advance(1)
    gone = "[invalid bearer token, service account token has been invalidated]"
    assert world.review(token) == {"user": {}, "error": gone}


@pytest.mark.parametrize("change", ["recreated", "deleting"])
def test_a_pod_that_is_another_now(world: World, change: str) -> None:
    token = world.token(boundObjectRef=BOUND)
    other = pod(uid="u-other" if change == "recreated" else "u-pod")
    if change == "deleting":
        other["metadata"]["deletionTimestamp"] = "2026-01-02T03:03:04Z"
    world.reader.put("pods", other)
    assert "service account token has been invalidated" in world.review(token)["error"]


def test_a_service_account_that_is_gone_or_another(world: World) -> None:
    token = world.token()
    world.reader.put("serviceaccounts", account(uid="u-new"))
    text = "[invalid bearer token, service account UID (u-new) does not match claim (u-bot)]"
    assert world.review(token) == {"user": {}, "error": text}
    world.reader.drop("serviceaccounts", "bot", "t9")
    text = '[invalid bearer token, serviceaccounts "bot" not found]'
    assert world.review(token) == {"user": {}, "error": text}


def test_tokens_bound_to_secrets_and_nodes(world: World) -> None:
    world.reader.put("secrets", {"metadata": {"name": "s", "namespace": "t9", "uid": "u-s"}})
    for kind, name, resource, namespace in (("Secret", "s", "secrets", "t9"), ("Node", "node1", "nodes", "")):
        token = world.token(boundObjectRef={"kind": kind, "apiVersion": "v1", "name": name})
        assert world.review(token)["authenticated"]
        world.reader.drop(resource, name, namespace)
        world.clock.advance(10)
        assert "has been invalidated" in world.review(token)["error"]


def test_the_cache_is_bounded(world: World) -> None:
    token = world.token(audiences=["a"])
    for number in range(CACHE_SIZE + 50):
        assert world.authenticator.review(token, ("a", str(number)))
    assert len(world.authenticator._cache) == CACHE_SIZE


def test_self_subject_review(world: World) -> None:
    answer = world.call(reviews.SELF_SUBJECT_REVIEW, {"metadata": {}})
    assert answer == {
        "kind": "SelfSubjectReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": "2026-01-02T03:04:05Z"},
        "status": {"userInfo": {"username": "x"}},
    }
