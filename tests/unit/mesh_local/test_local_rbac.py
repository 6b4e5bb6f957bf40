"""RBAC: rules, bindings, reasons, access reviews, and the index."""

from typing import Any

import pytest
import trio

from mesh_local.apiserver.auth.bootstrap import (
    CONTROLLERS,
    SCHEDULER,
    bootstrap_objects,
    controller_user,
    kubelet_user,
)
from mesh_local.apiserver.auth.endpoints import endpoints
from mesh_local.apiserver.auth.rbac import RbacAuthorizer, rule_allows
from mesh_local.apiserver.types import ANONYMOUS, Attributes, Call, Decision, User
from mesh_local.kinds import rbac as rbac_kinds
from mesh_local.kinds import reviews
from mesh_local.kinds.base import Kind
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, name_of
from tests.support.local_auth import (
    Clock,
    FakeReader,
    authenticator,
    binding,
    cluster_role,
    role,
    rule,
)

BOT = User(
    "system:serviceaccount:t9:bot",
    groups=("system:serviceaccounts", "system:serviceaccounts:t9", "system:authenticated"),
)
ALICE = User("alice", groups=("dev", "system:authenticated"))
RESOURCES = {
    "Role": "roles",
    "ClusterRole": "clusterroles",
    "RoleBinding": "rolebindings",
    "ClusterRoleBinding": "clusterrolebindings",
}


def asked(verb: str, resource: str, namespace: str = "", name: str = "", group: str = "") -> Attributes:
    plural, _, sub = resource.partition("/")
    return Attributes(verb, group, "v1", plural, sub, namespace, name)


def bootstrapped() -> FakeReader:
    reader = FakeReader()
    for obj in bootstrap_objects():
        reader.put(f"{RESOURCES[obj['kind']]}.rbac.authorization.k8s.io", obj)
    return reader


def put(reader: FakeReader, kind: str, obj: Object) -> None:
    reader.put(f"{RESOURCES[kind]}.rbac.authorization.k8s.io", obj)


def make(reader: FakeReader) -> RbacAuthorizer:
    return RbacAuthorizer(reader, lambda: reader.version)


@pytest.mark.parametrize(
    ("given", "wanted", "allowed"),
    [
        (rule("get", "", "pods"), asked("get", "pods"), True),
        (rule("get", "", "pods"), asked("list", "pods"), False),
        (rule("get", "", "pods"), asked("get", "pods", group="apps"), False),
        (rule("*", "*", "*"), asked("delete", "deployments/scale", group="apps"), True),
        (rule("get", "", "pods"), asked("get", "pods/log"), False),
        (rule("get", "", "pods/log"), asked("get", "pods/log"), True),
        (rule("get", "", "pods/log"), asked("get", "pods"), False),
        (rule("get", "", "*/log"), asked("get", "pods/log"), True),
        (rule("get", "", "*/scale"), asked("get", "pods/log"), False),
        (rule("get", "", "pods/*"), asked("get", "pods/log"), False),
        (rule("get", "", "pods", "a,b"), asked("get", "pods", name="b"), True),
        (rule("get", "", "pods", "a,b"), asked("get", "pods", name="c"), False),
        (rule("list", "", "pods", "a"), asked("list", "pods"), False),
        (rule("get", "", "pods"), Attributes("get", path="/pods"), False),
    ],
)
def test_rules_on_resources(given: Object, wanted: Attributes, allowed: bool) -> None:
    assert rule_allows(given, wanted) is allowed


@pytest.mark.parametrize(
    ("pattern", "path", "allowed"),
    [
        ("/healthz", "/healthz", True),
        ("/healthz", "/healthz/x", False),
        ("/apis/*", "/apis/apps", True),
        ("/apis/*", "/apis", False),
        ("*", "/anything", True),
    ],
)
def test_rules_on_paths(pattern: str, path: str, allowed: bool) -> None:
    given = {"verbs": ["get"], "nonResourceURLs": [pattern]}
    assert rule_allows(given, Attributes("get", path=path)) is allowed
    assert not rule_allows(given, Attributes("post", path=path))


def test_reasons_name_the_binding() -> None:
    reader = FakeReader()
    put(reader, "Role", role("reader", [rule("get,list", "", "pods")]))
    put(reader, "ClusterRole", cluster_role("nodes", [rule("list", "", "nodes")]))
    subject = {"kind": "ServiceAccount", "name": "bot", "namespace": "t9"}
    put(reader, "RoleBinding", binding("rb", "Role", "reader", [subject], "t9"))
    put(
        reader,
        "ClusterRoleBinding",
        binding("crb", "ClusterRole", "nodes", [{"kind": "Group", "name": "dev"}]),
    )
    put(
        reader, "RoleBinding", binding("u", "ClusterRole", "nodes", [{"kind": "User", "name": "alice"}], "t9")
    )
    authorizer = make(reader)
    text = 'RBAC: allowed by RoleBinding "rb/t9" of Role "reader" to ServiceAccount "bot/t9"'
    assert authorizer.authorize(BOT, asked("list", "pods", "t9")) == Decision(True, text)
    assert authorizer.authorize(BOT, asked("list", "pods", "other")) == Decision(False)
    assert authorizer.authorize(BOT, asked("list", "pods")) == Decision(False)
    text = 'RBAC: allowed by ClusterRoleBinding "crb" of ClusterRole "nodes" to Group "dev"'
    assert authorizer.authorize(ALICE, asked("list", "nodes")) == Decision(True, text)
    # A RoleBinding to a ClusterRole gives nothing at cluster scope.
    carol = User("alice")
    assert authorizer.authorize(carol, asked("list", "nodes")) == Decision(False)
    assert authorizer.authorize(carol, asked("list", "nodes", "t9")).allowed


def test_a_service_account_without_namespace_is_of_the_bindings_namespace() -> None:
    reader = FakeReader()
    put(reader, "Role", role("reader", [rule("get", "", "pods")]))
    put(
        reader,
        "RoleBinding",
        binding("rb", "Role", "reader", [{"kind": "ServiceAccount", "name": "bot"}], "t9"),
    )
    decision = make(reader).authorize(BOT, asked("get", "pods", "t9"))
    assert decision.reason.endswith('to ServiceAccount "bot/t9"')


def test_missing_roles_are_the_reason_of_a_refusal() -> None:
    reader = FakeReader()
    user = {"kind": "User", "name": "alice"}
    put(reader, "RoleBinding", binding("rb", "Role", "gone", [user], "t9"))
    authorizer = make(reader)
    text = 'RBAC: role.rbac.authorization.k8s.io "gone" not found'
    assert authorizer.authorize(ALICE, asked("get", "pods", "t9")) == Decision(False, text)
    put(reader, "RoleBinding", binding("rc", "ClusterRole", "gone2", [user], "t9"))
    text = (
        'RBAC: [role.rbac.authorization.k8s.io "gone" not found, '
        'clusterrole.rbac.authorization.k8s.io "gone2" not found]'
    )
    assert authorizer.authorize(ALICE, asked("get", "pods", "t9")) == Decision(False, text)


def test_masters_may_do_everything() -> None:
    root = User("root", groups=("system:masters",))
    assert make(FakeReader()).authorize(root, asked("delete", "nodes")) == Decision(True)


def test_the_index_follows_every_change() -> None:
    reader = FakeReader()
    authorizer = make(reader)
    wanted = asked("get", "pods", "t9")
    user = {"kind": "User", "name": "alice"}
    assert not authorizer.authorize(ALICE, wanted).allowed
    put(reader, "Role", role("r", [rule("get", "", "pods")]))
    put(reader, "RoleBinding", binding("rb", "Role", "r", [user], "t9"))
    assert authorizer.authorize(ALICE, wanted).allowed
    put(reader, "Role", role("r", [rule("list", "", "pods")]))
    assert not authorizer.authorize(ALICE, wanted).allowed
    put(reader, "Role", role("r", [rule("get", "", "pods")]))
    assert authorizer.authorize(ALICE, wanted).allowed
    reader.drop("rolebindings.rbac.authorization.k8s.io", "rb", "t9")
    assert not authorizer.authorize(ALICE, wanted).allowed


def test_the_index_is_made_once_per_change() -> None:
    reader = bootstrapped()
    authorizer = make(reader)
    authorizer.authorize(ALICE, asked("get", "pods", "t9"))
    index = authorizer._index
    reader.put("pods", {"metadata": {"name": "x", "namespace": "t9"}})
    authorizer.authorize(ALICE, asked("get", "pods", "t9"))
    assert authorizer._index is index


def test_an_aggregated_role_has_the_rules_that_it_selects() -> None:
    reader = FakeReader()
    aggregation = {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}
    put(reader, "ClusterRole", cluster_role("all", [], aggregationRule=aggregation))
    labelled = {"labels": {"to": "all"}}
    put(reader, "ClusterRole", cluster_role("part", [rule("get", "x.io", "things")], metadata=labelled))
    subjects = [{"kind": "User", "name": "alice"}]
    put(reader, "ClusterRoleBinding", binding("b", "ClusterRole", "all", subjects))
    authorizer = make(reader)
    assert authorizer.authorize(ALICE, asked("get", "things", group="x.io")).allowed
    put(reader, "ClusterRole", cluster_role("part", [rule("get", "x.io", "things")]))
    assert not authorizer.authorize(ALICE, asked("get", "things", group="x.io")).allowed


# What a new cluster allows


def test_bootstrap_objects_are_valid() -> None:
    kinds = {k.kind: k for k in rbac_kinds.KINDS}
    objects = bootstrap_objects()
    assert len({(o["kind"], name_of(o)) for o in objects}) == len(objects)
    for obj in objects:
        kind = kinds[obj["kind"]]
        before = {**obj}
        kind.default(obj)
        assert obj == before
        assert kind.validate(obj) == []
        assert kind.name_rule is not None
        assert kind.name_rule(name_of(obj), False) == []
        assert obj["metadata"]["labels"] == {"kubernetes.io/bootstrapping": "rbac-defaults"}


@pytest.mark.parametrize(
    ("user", "wanted", "allowed"),
    [
        (ANONYMOUS, Attributes("get", path="/version"), True),
        (ANONYMOUS, Attributes("get", path="/api"), False),
        (ANONYMOUS, asked("list", "namespaces"), False),
        (ALICE, Attributes("get", path="/openapi/v3"), True),
        (ALICE, Attributes("get", path="/metrics"), False),
        (ALICE, asked("create", "selfsubjectreviews", group="authentication.k8s.io"), True),
        (ALICE, asked("list", "pods", "t9"), False),
        (BOT, asked("create", "tokenreviews", group="authentication.k8s.io"), False),
        (kubelet_user("n1"), asked("update", "pods/status", "t9"), True),
        (kubelet_user("n1"), asked("create", "serviceaccounts/token", "t9"), True),
        (kubelet_user("n1"), asked("delete", "namespaces"), False),
        (SCHEDULER, asked("create", "pods/binding", "t9"), True),
        (SCHEDULER, asked("create", "pods", "t9"), False),
        (controller_user("replicaset-controller"), asked("create", "pods", "t9"), True),
        (controller_user("replicaset-controller"), asked("get", "secrets", "t9"), False),
        (controller_user("deployment-controller"), asked("create", "pods", "t9"), False),
        (controller_user("generic-garbage-collector"), asked("delete", "widgets", "t9", group="x.io"), True),
        (controller_user("namespace-controller"), asked("update", "namespaces/finalize"), True),
    ],
)
def test_what_a_new_cluster_allows(user: User, wanted: Attributes, allowed: bool) -> None:
    assert make(bootstrapped()).authorize(user, wanted).allowed is allowed


def test_every_controller_may_do_something() -> None:
    authorizer = make(bootstrapped())
    basic = len(authorizer.rules_for(controller_user("no-such-controller"), "t9"))
    for name in CONTROLLERS:
        assert len(authorizer.rules_for(controller_user(name), "t9")) > basic


@pytest.mark.parametrize(
    ("cluster_role_name", "wanted", "allowed"),
    [
        ("view", asked("get", "pods/log", "t9"), True),
        ("view", asked("get", "secrets", "t9"), False),
        ("view", asked("create", "pods", "t9"), False),
        ("edit", asked("create", "pods", "t9"), True),
        ("edit", asked("create", "roles", "t9", group="rbac.authorization.k8s.io"), False),
        ("admin", asked("create", "roles", "t9", group="rbac.authorization.k8s.io"), True),
        ("admin", asked("delete", "namespaces", "t9"), False),
    ],
)
def test_user_facing_roles(cluster_role_name: str, wanted: Attributes, allowed: bool) -> None:
    reader = bootstrapped()
    subjects = [{"kind": "User", "name": "alice"}]
    put(reader, "RoleBinding", binding("rb", "ClusterRole", cluster_role_name, subjects, "t9"))
    assert make(reader).authorize(ALICE, wanted).allowed is allowed


# Access reviews


class Reviews:
    def __init__(self) -> None:
        reader = bootstrapped()
        put(reader, "Role", role("reader", [rule("get,list,watch", "", "pods,configmaps")]))
        subject = {"kind": "ServiceAccount", "name": "bot", "namespace": "t9"}
        put(reader, "RoleBinding", binding("rb", "Role", "reader", [subject], "t9"))
        self.endpoints = endpoints(reader, authenticator(reader, Clock()), make(reader))

    def __call__(self, kind: Kind, spec: Object, user: User = ALICE, namespace: str = "") -> Object:
        endpoint = self.endpoints[kind.resource, ""]
        body = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {}, "spec": spec}
        call = Call(user, kind, "", namespace, "", "create", body, {})

        async def run() -> Object:
            return await endpoint(call)

        return trio.run(run)


PODS = {"namespace": "t9", "verb": "list", "resource": "pods", "group": ""}
BY_ROLE = 'RBAC: allowed by RoleBinding "rb/t9" of Role "reader" to ServiceAccount "bot/t9"'


def test_subject_access_review() -> None:
    spec = {"user": BOT.name, "groups": [], "resourceAttributes": PODS}
    assert Reviews()(reviews.SUBJECT_ACCESS_REVIEW, spec) == {
        "kind": "SubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": {
            "resourceAttributes": {"namespace": "t9", "verb": "list", "resource": "pods"},
            "user": BOT.name,
        },
        "status": {"allowed": True, "reason": BY_ROLE},
    }


def test_denied_and_non_resource_reviews() -> None:
    ask = Reviews()
    spec: Object = {"user": "alice", "resourceAttributes": {"verb": "list", "resource": "nodes"}}
    assert ask(reviews.SUBJECT_ACCESS_REVIEW, spec)["status"] == {"allowed": False}
    spec = {
        "user": "x",
        "nonResourceAttributes": {"path": "/healthz", "verb": "get"},
        "groups": ["system:authenticated"],
    }
    reason = (
        'RBAC: allowed by ClusterRoleBinding "system:discovery" of ClusterRole "system:discovery" '
        'to Group "system:authenticated"'
    )
    assert ask(reviews.SUBJECT_ACCESS_REVIEW, spec)["status"] == {"allowed": True, "reason": reason}


def test_own_access_review() -> None:
    ask = Reviews()
    spec = {"resourceAttributes": {"namespace": "t9", "verb": "create", "resource": "pods"}}
    assert ask(reviews.SELF_SUBJECT_ACCESS_REVIEW, spec, BOT)["status"] == {"allowed": False}
    root = User("admin", groups=("system:masters",))
    assert ask(reviews.SELF_SUBJECT_ACCESS_REVIEW, spec, root)["status"] == {"allowed": True}


def test_local_access_review() -> None:
    ask = Reviews()
    spec = {"user": BOT.name, "resourceAttributes": {**PODS, "verb": "get"}}
    answer = ask(reviews.LOCAL_SUBJECT_ACCESS_REVIEW, spec, namespace="t9")
    assert answer["metadata"] == {"namespace": "t9"}
    assert answer["status"] == {"allowed": True, "reason": BY_ROLE}
    with pytest.raises(ApiError, match=r"must match metadata\.namespace"):
        ask(reviews.LOCAL_SUBJECT_ACCESS_REVIEW, spec, namespace="other")


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        (
            {"resourceAttributes": {"verb": "get", "resource": "pods"}},
            "spec.user",
            'Invalid value: "": at least one of user or group must be specified',
        ),
        (
            {"user": "x"},
            "spec.resourceAttributes",
            "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes "
            "must be specified",
        ),
    ],
)
def test_reviews_that_are_not_valid(spec: Any, field: str, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        Reviews()(reviews.SUBJECT_ACCESS_REVIEW, spec)
    assert caught.value.code == 422
    assert caught.value.message == f'.authorization.k8s.io "" is invalid: {field}: {text}'
    cause = {"reason": "FieldValueInvalid", "message": text, "field": field}
    assert caught.value.status["details"] == {"group": "authorization.k8s.io", "causes": [cause]}


def test_rules_review() -> None:
    answer = Reviews()(reviews.SELF_SUBJECT_RULES_REVIEW, {"namespace": "t9"}, BOT)
    assert answer["spec"] == {}
    status = answer["status"]
    assert status["incomplete"] is False
    assert status["resourceRules"] == [
        {
            "verbs": ["create"],
            "apiGroups": ["authorization.k8s.io"],
            "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
        },
        {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
        {"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["pods", "configmaps"]},
    ]
    healthy = {
        "verbs": ["get"],
        "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"],
    }
    assert healthy in status["nonResourceRules"]
    with pytest.raises(ApiError, match="no namespace on request"):
        Reviews()(reviews.SELF_SUBJECT_RULES_REVIEW, {}, BOT)
