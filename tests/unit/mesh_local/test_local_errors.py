"""Status objects as recorded on Kubernetes 1.36."""

import pytest

from mesh_local.machinery import errors
from mesh_local.machinery.errors import FieldError, go_quote, go_value


def test_invalid_names_every_cause_and_each_text_once() -> None:
    one = errors.required("spec.ports[0].name")
    two = errors.invalid_value("spec.size", 0, "must be greater than 0")
    error = errors.invalid("Service", "", "x2", [one, two, one])
    assert error.message == (
        'Service "x2" is invalid: [spec.ports[0].name: Required value, spec.size: Invalid value: 0: must be '
        "greater than 0]"
    )
    assert error.status["details"] == {
        "name": "x2",
        "kind": "Service",
        "causes": [
            {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.ports[0].name"},
            {
                "reason": "FieldValueInvalid",
                "message": "Invalid value: 0: must be greater than 0",
                "field": "spec.size",
            },
            {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.ports[0].name"},
        ],
    }
    assert errors.invalid("A", "b", "c", [one, one]).message == (
        'A.b "c" is invalid: spec.ports[0].name: Required value'
    )


def test_a_review_without_a_name_has_no_kind_in_its_details() -> None:
    error = errors.invalid("", "authorization.k8s.io", "", [errors.required("spec.user")])
    assert error.message.startswith('.authorization.k8s.io "" is invalid: ')
    assert set(error.status["details"]) == {"group", "causes"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.duplicate("f", "a"), 'f: Duplicate value: "a"'),
        (errors.not_found_value("f", "v"), 'f: Not found: "v"'),
        (errors.forbidden_field("f", "no"), "f: Forbidden: no"),
        (errors.too_long_value("f", 20), "f: Too long: may not be more than 20 bytes"),
        (errors.too_many("f", 3, 2), "f: Too many: 3: must have at most 2 items"),
        (
            errors.not_supported("f", "http", ["SCTP", "TCP"]),
            'f: Unsupported value: "http": supported values: "SCTP", "TCP"',
        ),
        (
            errors.invalid_value("f", {"matchLabels": {"app": "other"}}, "field is immutable"),
            'f: Invalid value: {"matchLabels":{"app":"other"}}: field is immutable',
        ),
        (errors.invalid_value("f", None, "x"), "f: Invalid value: null: x"),
        (errors.invalid_value("f", errors.OMIT, "slow widgets"), "f: Invalid value: slow widgets"),
        (FieldError("InternalError", "f", "oops"), "f: Internal error: oops"),
    ],
)
def test_field_errors(error: FieldError, text: str) -> None:
    assert str(error) == text


def test_values_as_go_prints_them() -> None:
    assert go_quote('a"b\\\n\x01é\u200b') == r'"a\"b\\\n\x01é\u200b"'
    assert go_value("<a>") == '"<a>"'
    assert go_value({"b": "<&>", "a": [True, 1.5]}) == r'{"a":[true,1.5],"b":"\u003c\u0026\u003e"}'


@pytest.mark.parametrize(
    ("error", "code", "reason", "message"),
    [
        (
            errors.too_large("limit is 3145728"),
            413,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 3145728",
        ),
        (
            errors.forbidden("", "", "", 'User "u" cannot get path "/metrics"'),
            403,
            "Forbidden",
            'forbidden: User "u" cannot get path "/metrics"',
        ),
        (errors.unreasoned("boom"), 500, "", "boom"),
    ],
)
def test_plain_failures(error: errors.ApiError, code: int, reason: str, message: str) -> None:
    assert (error.code, error.reason, error.message) == (code, reason, message)
    assert ("reason" in error.status) == bool(reason)


def test_a_terminating_namespace() -> None:
    error = errors.namespace_terminating("configmaps", "", "late", "t7")
    assert error.message == (
        'configmaps "late" is forbidden: unable to create new content in namespace t7 because it is being '
        "terminated"
    )
    assert error.status["details"]["causes"] == [
        {
            "reason": "NamespaceTerminating",
            "message": "namespace t7 is being terminated",
            "field": "metadata.namespace",
        }
    ]
