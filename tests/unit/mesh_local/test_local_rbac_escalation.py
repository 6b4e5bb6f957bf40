"""Nobody grants what they do not hold."""

import pytest
import trio

from mesh_local.apiserver.auth.escalation import EscalationCheck
from mesh_local.apiserver.auth.rbac import RbacAuthorizer
from mesh_local.apiserver.types import Admission, User
from mesh_local.kinds import rbac as kinds
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object
from tests.support.local_auth import FakeReader, binding, cluster_role, role, rule

GROUP = "rbac.authorization.k8s.io"
ALICE = User("alice", groups=("dev", "system:authenticated"))
HELD = [rule("get,list", "", "pods"), rule("*", "apps", "*"), rule("get", "", "secrets", "mine")]


def world(*extra: Object) -> FakeReader:
    """Alice holds `HELD` and `extra` in namespace t9."""
    reader = FakeReader()
    reader.put(f"roles.{GROUP}", role("held", [*HELD, *extra]))
    subject = {"kind": "User", "name": "alice"}
    reader.put(f"rolebindings.{GROUP}", binding("b", "Role", "held", [subject], "t9"))
    return reader


def write(reader: FakeReader, obj: Object, *, user: User = ALICE, old: Object | None = None) -> None:
    kind = kinds.ROLE if "rules" in obj else kinds.ROLE_BINDING
    if "aggregationRule" in obj:
        kind = kinds.CLUSTER_ROLE
    operation = "UPDATE" if old else "CREATE"
    request = Admission(operation, kind, obj["metadata"]["name"], "t9", "", obj, old, {}, user)
    check = EscalationCheck(RbacAuthorizer(reader, lambda: reader.version))
    trio.run(check.validate, request)


@pytest.mark.parametrize(
    "granted",
    [
        rule("get", "", "pods"),
        rule("list", "", "pods", "one"),
        rule("*", "apps", "*"),
        rule("delete", "apps", "deployments/scale"),
        rule("get", "", "secrets", "mine"),
    ],
)
def test_what_one_holds_one_may_grant(granted: Object) -> None:
    write(world(), role("r", [granted]))


@pytest.mark.parametrize(
    ("granted", "shown"),
    [
        (rule("get,delete", "", "pods"), '{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}'),
        (rule("*", "", "pods"), '{APIGroups:[""], Resources:["pods"], Verbs:["*"]}'),
        (rule("get", "", "pods/log"), '{APIGroups:[""], Resources:["pods/log"], Verbs:["get"]}'),
        (rule("get", "", "secrets"), '{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}'),
        (
            rule("get,list", "", "secrets", "mine"),
            '{APIGroups:[""], Resources:["secrets"], ResourceNames:["mine"], Verbs:["list"]}',
        ),
        (rule("get,list", "*", "pods"), '{APIGroups:["*"], Resources:["pods"], Verbs:["get" "list"]}'),
    ],
)
def test_more_is_refused(granted: Object, shown: str) -> None:
    with pytest.raises(ApiError) as caught:
        write(world(), role("r", [granted]))
    assert caught.value.code == 403
    assert caught.value.message == (
        'roles.rbac.authorization.k8s.io "r" is forbidden: user "alice" '
        '(groups=["dev" "system:authenticated"]) '
        f"is attempting to grant RBAC permissions not currently held:\n{shown}"
    )


def test_binding_a_role_needs_its_rights() -> None:
    reader = world()
    reader.put(f"clusterroles.{GROUP}", cluster_role("small", [rule("get", "", "pods")]))
    reader.put(f"clusterroles.{GROUP}", cluster_role("big", [rule("*", "*", "*")]))
    subjects = [{"kind": "User", "name": "bob"}]
    write(reader, binding("x", "ClusterRole", "small", subjects, "t9"))
    with pytest.raises(ApiError, match=r'^rolebindings\.rbac\.authorization\.k8s\.io "x" is forbidden'):
        write(reader, binding("x", "ClusterRole", "big", subjects, "t9"))
    with pytest.raises(ApiError, match=r'^clusterroles\.rbac\..* "none" not found') as caught:
        write(reader, binding("x", "ClusterRole", "none", subjects, "t9"))
    assert caught.value.code == 404


def test_bind_and_escalate_allow_it() -> None:
    big = cluster_role("big", [rule("*", "*", "*")])
    reader = world(rule("bind", GROUP, "clusterroles", "big"), rule("escalate", GROUP, "roles"))
    reader.put(f"clusterroles.{GROUP}", big)
    reader.put(f"clusterroles.{GROUP}", cluster_role("big2", [rule("*", "*", "*")]))
    write(reader, binding("x", "ClusterRole", "big", [], "t9"))
    write(reader, role("r", [rule("*", "*", "*")]))
    with pytest.raises(ApiError, match="is forbidden"):
        write(reader, binding("x", "ClusterRole", "big2", [], "t9"))


def test_masters_and_the_garbage_collector_are_free() -> None:
    everything = role("r", [rule("*", "*", "*")])
    write(world(), everything, user=User("root", groups=("system:masters",)))
    owned = {**everything, "metadata": {**everything["metadata"], "ownerReferences": [{"uid": "x"}]}}
    write(world(), everything, old=owned)
    with pytest.raises(ApiError, match="is forbidden"):
        write(world(), everything, old=role("r", []))


def test_an_aggregated_role_takes_every_right() -> None:
    aggregation = {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}
    aggregated = cluster_role("a", [], aggregationRule=aggregation)
    with pytest.raises(ApiError) as caught:
        write(world(), aggregated)
    assert '{APIGroups:["*"], Resources:["*"], Verbs:["*"]}' in caught.value.message
    assert '{NonResourceURLs:["*"], Verbs:["*"]}' in caught.value.message
