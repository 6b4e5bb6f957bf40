"""The kinds of RBAC and of webhook configurations: defaults, validation and rows of Kubernetes 1.36."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mesh_local.kinds import admissionregistration as hooks
from mesh_local.kinds import rbac, reviews
from mesh_local.kinds.base import Kind
from mesh_local.machinery.objects import Object, copy

NOW = datetime(2026, 1, 2, 0, 0, 30, tzinfo=UTC)
GROUP = "rbac.authorization.k8s.io"
HOOK: Object = {
    "name": "h0.example.com",
    "admissionReviewVersions": ["v1"],
    "sideEffects": "None",
    "clientConfig": {"url": "https://127.0.0.1:9443/x"},
    "rules": [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    ],
    "namespaceSelector": {"matchLabels": {"hook": "on"}},
}


def configuration(**fields: Any) -> Object:
    """One webhook with these fields; None leaves one out."""
    hook = {k: v for k, v in {**copy(HOOK), **fields}.items() if v is not None}
    obj: Object = {"metadata": {"name": "inv"}, "webhooks": [hook]}
    hooks.MUTATING.default(obj)
    return obj


def errors(kind: Kind, obj: Object) -> list[str]:
    return [str(e) for e in kind.validate(obj)]


def test_webhook_defaults() -> None:
    service = {"service": {"namespace": "n", "name": "s"}}
    (hook,) = configuration(clientConfig=service)["webhooks"]
    assert hook["failurePolicy"] == "Fail"
    assert hook["matchPolicy"] == "Equivalent"
    assert hook["objectSelector"] == {}
    assert hook["timeoutSeconds"] == 10
    assert hook["reinvocationPolicy"] == "Never"
    assert hook["rules"][0]["scope"] == "*"
    assert hook["clientConfig"]["service"]["port"] == 443
    validating = {"webhooks": [copy(HOOK)]}
    hooks.VALIDATING.default(validating)
    assert "reinvocationPolicy" not in validating["webhooks"][0]


W = "webhooks[0]."
RULE = HOOK["rules"][0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"clientConfig": {"url": "http://127.0.0.1:1/x"}},
            "clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; "
            "desired format: https://host[/path]",
        ),
        (
            {"clientConfig": {}},
            "clientConfig: Required value: exactly one of url or service is required",
        ),
        (
            {"timeoutSeconds": 31},
            "timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        ),
        (
            {"sideEffects": "Some"},
            'sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun"',
        ),
        (
            {"name": "nodots"},
            'name: Invalid value: "nodots": should be a domain with at least three segments separated by '
            "dots",
        ),
        (
            {"admissionReviewVersions": None},
            "admissionReviewVersions: Required value: must specify one of v1, v1beta1",
        ),
        ({"sideEffects": None}, "sideEffects: Required value: must specify one of None, NoneOnDryRun"),
        (
            {"admissionReviewVersions": ["v2"]},
            'admissionReviewVersions: Invalid value: ["v2"]: must include at least one of v1, v1beta1',
        ),
        (
            {"failurePolicy": "Maybe"},
            'failurePolicy: Unsupported value: "Maybe": supported values: "Fail", "Ignore"',
        ),
        ({"rules": [{**RULE, "resources": []}]}, "rules[0].resources: Required value"),
        (
            {"rules": [{**RULE, "resources": ["*", "pods"]}]},
            'rules[0].resources: Invalid value: ["*","pods"]: if \'*\' is present, must not specify other '
            "resources without subresources",
        ),
        (
            {"rules": [{**RULE, "resources": ["pods/*", "pods/log"]}]},
            "rules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify "
            "pods/log",
        ),
        (
            {"rules": [{**RULE, "operations": ["*", "CREATE"]}]},
            'rules[0].operations: Invalid value: ["*","CREATE"]: if \'*\' is present, must not specify '
            "other operations",
        ),
        (
            {"rules": [{**RULE, "scope": "World"}]},
            'rules[0].scope: Unsupported value: "World": supported values: "*", "Cluster", "Namespaced"',
        ),
        (
            {"clientConfig": {"service": {"name": "s", "namespace": "n", "path": "x//y"}}},
            "clientConfig.service.path: Invalid value: \"x//y\": must start with a '/'",
        ),
        (
            {"clientConfig": {"service": {"name": "s"}}},
            "clientConfig.service.namespace: Required value: service namespace is required",
        ),
        (
            {"clientConfig": {"url": "https://u:p@h/x?q=1"}},
            'clientConfig.url: Invalid value: "u:p": user information is not permitted in the URL',
        ),
        (
            {"matchConditions": [{"name": "n", "expression": " "}]},
            "matchConditions[0].expression: Required value",
        ),
    ],
)
def test_webhook_validation(fields: Object, text: str) -> None:
    assert errors(hooks.MUTATING, configuration(**fields))[0] == W + text
    assert hooks.MUTATING.validate_update(configuration(**fields), configuration())
    assert errors(hooks.VALIDATING, configuration(**fields))[0] == W + text


def test_an_unusable_ca_bundle_and_valid_conditions_are_accepted() -> None:
    client = {"url": "https://127.0.0.1:1/x", "caBundle": "AAAA"}
    conditions = [{"name": "a/b", "expression": "object.metadata.name == 'x'"}]
    assert errors(hooks.MUTATING, configuration(clientConfig=client, matchConditions=conditions)) == []
    (text,) = errors(hooks.MUTATING, configuration(matchConditions=[{"name": "n", "expression": "a +"}]))
    assert text.startswith(
        'webhooks[0].matchConditions[0].expression: Invalid value: "a +": compilation failed'
    )


def test_names_of_webhooks_are_unique() -> None:
    obj = configuration()
    obj["webhooks"] *= 2
    assert errors(hooks.MUTATING, obj) == ['webhooks[1].name: Duplicate value: "h0.example.com"']


def test_webhook_row() -> None:
    obj = configuration() | {"metadata": {"name": "c", "creationTimestamp": "2026-01-02T00:00:00Z"}}
    assert hooks.MUTATING.row(obj, NOW) == ["c", 1, "30s"]
    assert [c.name for c in hooks.MUTATING.columns] == ["Name", "Webhooks", "Age"]
    assert hooks.MUTATING.spec_fields == ("webhooks",)


def role_binding(**fields: Any) -> Object:
    obj: Object = {
        "metadata": {"name": "b", "creationTimestamp": "2026-01-02T00:00:00Z"},
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [
            {"kind": "User", "name": "a"},
            {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
        ],
        **fields,
    }
    rbac.ROLE_BINDING.default(obj)
    return obj


def test_binding_defaults_and_row() -> None:
    obj = role_binding()
    assert obj["roleRef"]["apiGroup"] == GROUP
    assert obj["subjects"][0]["apiGroup"] == GROUP
    assert "apiGroup" not in obj["subjects"][1]
    assert errors(rbac.ROLE_BINDING, obj) == []
    assert rbac.ROLE_BINDING.row(obj, NOW) == ["b", "Role/r", "30s", "a", "", "n/s"]
    assert len(rbac.ROLE_BINDING.columns) == 6


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        (
            {"roleRef": {"kind": "Pod", "name": "r"}},
            ['roleRef.kind: Unsupported value: "Pod": supported values: "Role", "ClusterRole"'],
        ),
        (
            {"roleRef": {"kind": "Role", "name": "a/b"}},
            ["roleRef.name: Invalid value: \"a/b\": may not contain '/'"],
        ),
        (
            {"subjects": [{"kind": "Robot", "name": "x"}]},
            [
                'subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", '
                '"Group"'
            ],
        ),
        ({"subjects": [{"kind": "User"}]}, ["subjects[0].name: Required value"]),
    ],
)
def test_binding_validation(fields: Object, texts: list[str]) -> None:
    assert errors(rbac.ROLE_BINDING, role_binding(**fields)) == texts


def test_cluster_bindings_name_cluster_roles_and_namespaces() -> None:
    obj = role_binding(subjects=[{"kind": "ServiceAccount", "name": "s"}])
    assert errors(rbac.CLUSTER_ROLE_BINDING, obj) == [
        'roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole"',
        "subjects[0].namespace: Required value",
    ]


def test_role_ref_is_immutable() -> None:
    other = role_binding(roleRef={"kind": "Role", "name": "other"})
    (error,) = rbac.ROLE_BINDING.validate_update(other, role_binding())
    shown = f'{{"APIGroup":"{GROUP}","Kind":"Role","Name":"other"}}'
    assert str(error) == f"roleRef: Invalid value: {shown}: cannot change roleRef"
    assert rbac.ROLE_BINDING.validate_update(role_binding(subjects=[]), role_binding()) == []


@pytest.mark.parametrize(
    ("rule", "texts"),
    [
        (
            {"verbs": [], "apiGroups": [], "resources": []},
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
            ],
        ),
        (
            {"verbs": ["get"], "nonResourceURLs": ["/x"]},
            [
                'rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to '
                "non-resource URLs"
            ],
        ),
        ({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}, []),
    ],
)
def test_role_validation(rule: Object, texts: list[str]) -> None:
    assert errors(rbac.ROLE, {"metadata": {"name": "r"}, "rules": [rule]}) == texts


def test_cluster_role_validation() -> None:
    both = {"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"]}
    obj = {"metadata": {"name": "r"}, "rules": [both], "aggregationRule": {}}
    assert errors(rbac.CLUSTER_ROLE, obj) == [
        'rules[0].nonResourceURLs: Invalid value: ["/x"]: rules cannot apply to both regular resources and '
        "non-resource URLs",
        "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if "
        "aggregationRule is non-nil",
    ]


def test_reviews_can_only_be_created() -> None:
    assert {k.verbs for k in reviews.KINDS} == {("create",)}
    assert [k.kind for k in reviews.KINDS if k.namespaced] == ["LocalSubjectAccessReview"]
