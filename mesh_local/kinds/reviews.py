"""authentication.k8s.io/v1 and authorization.k8s.io/v1: questions that are answered and never stored."""

from mesh_local.kinds.base import Kind

AUTHENTICATION = "authentication.k8s.io"
AUTHORIZATION = "authorization.k8s.io"
DEFAULT_TOKEN_SECONDS = 3600


def _review(kind: str, group: str, package: str, namespaced: bool = False) -> Kind:
    return Kind(
        kind=kind,
        plural=f"{kind.lower()}s",
        singular=kind.lower(),
        group=group,
        namespaced=namespaced,
        verbs=("create",),
        spec_fields=(),
        definition=f"io.k8s.api.{package}.v1.{kind}",
    )


SELF_SUBJECT_REVIEW = _review("SelfSubjectReview", AUTHENTICATION, "authentication")
TOKEN_REVIEW = _review("TokenReview", AUTHENTICATION, "authentication")
LOCAL_SUBJECT_ACCESS_REVIEW = _review(
    "LocalSubjectAccessReview", AUTHORIZATION, "authorization", namespaced=True
)
SELF_SUBJECT_ACCESS_REVIEW = _review("SelfSubjectAccessReview", AUTHORIZATION, "authorization")
SELF_SUBJECT_RULES_REVIEW = _review("SelfSubjectRulesReview", AUTHORIZATION, "authorization")
SUBJECT_ACCESS_REVIEW = _review("SubjectAccessReview", AUTHORIZATION, "authorization")

KINDS = (
    SELF_SUBJECT_REVIEW,
    TOKEN_REVIEW,
    LOCAL_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_RULES_REVIEW,
    SUBJECT_ACCESS_REVIEW,
)
