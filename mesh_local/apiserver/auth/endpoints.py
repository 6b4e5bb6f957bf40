"""TokenRequest, TokenReview, SelfSubjectReview and the access reviews: answered, never stored."""

from collections.abc import Sequence
from typing import Any

from mesh_local.apiserver.auth.authenticator import ClusterAuthenticator
from mesh_local.apiserver.auth.rbac import RbacAuthorizer
from mesh_local.apiserver.auth.tokens import Bound, TokenError
from mesh_local.apiserver.auth.users import user_info
from mesh_local.apiserver.types import Attributes, Call, Endpoint, Reader, User
from mesh_local.kinds.reviews import AUTHENTICATION, AUTHORIZATION
from mesh_local.machinery.errors import (
    ApiError,
    FieldError,
    bad_request,
    conflict,
    invalid,
    invalid_value,
    not_found,
)
from mesh_local.machinery.objects import Object, dig, rfc3339, uid_of

MIN_TOKEN_SECONDS = 600
MAX_TOKEN_SECONDS = 1 << 32
# The kinds that a token can be bound to, and where they are stored.
BINDABLE = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}


def endpoints(
    reader: Reader, authenticator: ClusterAuthenticator, authorizer: RbacAuthorizer
) -> dict[tuple[str, str], Endpoint]:
    """The endpoints by (resource, subresource)."""
    access = _AccessReviews(authorizer)
    return {
        ("serviceaccounts", "token"): _TokenRequests(reader, authenticator),
        (f"tokenreviews.{AUTHENTICATION}", ""): _TokenReviews(authenticator),
        (f"selfsubjectreviews.{AUTHENTICATION}", ""): _SelfSubjectReviews(authenticator),
        (f"subjectaccessreviews.{AUTHORIZATION}", ""): access.subject,
        (f"localsubjectaccessreviews.{AUTHORIZATION}", ""): access.local,
        (f"selfsubjectaccessreviews.{AUTHORIZATION}", ""): access.own,
        (f"selfsubjectrulesreviews.{AUTHORIZATION}", ""): access.rules,
    }


class _TokenRequests:
    """serviceaccounts/token."""

    def __init__(self, reader: Reader, authenticator: ClusterAuthenticator) -> None:
        self._reader = reader
        self._tokens = authenticator.tokens

    async def __call__(self, call: Call) -> Object:
        account = self._reader.get("serviceaccounts", call.name, call.namespace)
        if account is None:
            raise not_found("serviceaccounts", "", call.name)
        body = call.body or {}
        given = dig(body, "metadata", "name", default=call.name)
        if given != call.name:
            text = f"the name of the object ({given}) does not match the name on the URL ({call.name})"
            raise bad_request(text)
        spec = body.get("spec") or {}
        seconds = spec["expirationSeconds"]
        _check_lifetime(seconds)
        ref = spec.get("boundObjectRef")
        bound = self._bound(ref, call.name, call.namespace) if ref else None
        audiences = spec.get("audiences") or [self._tokens.issuer]
        token, expires = self._tokens.issue(account, audiences, seconds, bound)
        return {
            "kind": "TokenRequest",
            "apiVersion": f"{AUTHENTICATION}/v1",
            "metadata": {
                "name": call.name,
                "namespace": call.namespace,
                "uid": uid_of(account),
                "creationTimestamp": rfc3339(self._tokens.now()),
            },
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": ref},
            "status": {"token": token, "expirationTimestamp": rfc3339(expires)},
        }

    def _bound(self, ref: Object, account: str, namespace: str) -> Bound:
        """The object that a boundObjectRef names, which must be there."""
        group, _, version = (ref.get("apiVersion") or "").rpartition("/")
        kind, name = ref.get("kind") or "", ref.get("name") or ""
        resource = BINDABLE.get(kind)
        if group or resource is None:
            raise bad_request(f"cannot bind token to object of type {group}/{version}, Kind={kind}")
        found = self._reader.get(resource, name, "" if kind == "Node" else namespace)
        if found is None:
            raise not_found(resource, "", name)
        node = None
        if kind == "Pod":
            if dig(found, "spec", "serviceAccountName", default="") != account:
                raise bad_request(
                    f'cannot bind token for serviceaccount "{account}" to pod running with different '
                    "serviceaccount name."
                )
            node = self._node_of(found)
        uid = ref.get("uid") or ""
        if uid and uid != uid_of(found):
            detail = (
                f"the UID in the bound object reference ({uid}) does not match the UID in record. "
                "The object might have been deleted and then recreated"
            )
            raise conflict(kind, group, name, detail)
        return Bound(kind.lower(), name, uid_of(found), node)

    def _node_of(self, pod: Object) -> tuple[str, str] | None:
        name = dig(pod, "spec", "nodeName", default="")
        if not name:
            return None
        node = self._reader.get("nodes", name)
        return name, uid_of(node) if node else ""


def _check_lifetime(seconds: int) -> None:
    field = "spec.expirationSeconds"
    if seconds < MIN_TOKEN_SECONDS:
        wrong = invalid_value(field, seconds, "may not specify a duration less than 10 minutes")
    elif seconds > MAX_TOKEN_SECONDS:
        wrong = invalid_value(field, seconds, "may not specify a duration larger than 2^32 seconds")
    else:
        return
    raise invalid("TokenRequest", AUTHENTICATION, "", [wrong])


class _TokenReviews:
    """tokenreviews: 201 also for a token that is not valid."""

    def __init__(self, authenticator: ClusterAuthenticator) -> None:
        self._authenticator = authenticator

    async def __call__(self, call: Call) -> Object:
        spec = dig(call.body, "spec", default={})
        token = spec.get("token") or ""
        if not token:
            raise bad_request("token is required for TokenReview in authentication")
        try:
            verified = self._authenticator.review(token, spec.get("audiences") or ())
        except TokenError as e:
            error = f"[invalid bearer token, {e}]" if str(e) else "invalid bearer token"
            return _answer(call, {"user": {}, "error": error})
        return _answer(
            call,
            {"authenticated": True, "user": user_info(verified.user), "audiences": list(verified.audiences)},
        )


class _SelfSubjectReviews:
    """selfsubjectreviews: who am I."""

    def __init__(self, authenticator: ClusterAuthenticator) -> None:
        self._now = authenticator.tokens.now

    async def __call__(self, call: Call) -> Object:
        return {
            "kind": "SelfSubjectReview",
            "apiVersion": f"{AUTHENTICATION}/v1",
            "metadata": {"creationTimestamp": rfc3339(self._now())},
            "status": {"userInfo": user_info(call.user)},
        }


class _AccessReviews:
    """The four reviews of authorization.k8s.io."""

    def __init__(self, authorizer: RbacAuthorizer) -> None:
        self._authorizer = authorizer

    async def subject(self, call: Call) -> Object:
        """SubjectAccessReview."""
        spec = dig(call.body, "spec", default={})
        _refuse([*_attribute_errors(spec), *_user_errors(spec)])
        return self._review(call, _user(spec))

    async def local(self, call: Call) -> Object:
        """LocalSubjectAccessReview: about its own namespace only."""
        spec = dig(call.body, "spec", default={})
        found = [*_attribute_errors(spec), *_user_errors(spec)]
        namespace = dig(spec, "resourceAttributes", "namespace", default="")
        if spec.get("resourceAttributes") is not None and namespace != call.namespace:
            field = "spec.resourceAttributes.namespace"
            found.append(invalid_value(field, namespace, "must match metadata.namespace"))
        if spec.get("nonResourceAttributes") is not None:
            value = spec["nonResourceAttributes"]
            text = "disallowed on this kind of request"
            found.append(invalid_value("spec.nonResourceAttributes", value, text))
        _refuse(found)
        return self._review(call, _user(spec))

    async def own(self, call: Call) -> Object:
        """SelfSubjectAccessReview."""
        _refuse(_attribute_errors(dig(call.body, "spec", default={})))
        return self._review(call, call.user)

    async def rules(self, call: Call) -> Object:
        """SelfSubjectRulesReview."""
        namespace = dig(call.body, "spec", "namespace", default="")
        if not namespace:
            raise bad_request("no namespace on request")
        resources, urls = [], []
        for rule in self._authorizer.rules_for(call.user, namespace):
            if rule.get("nonResourceURLs"):
                urls.append(_picked(rule, "verbs", "nonResourceURLs"))
            else:
                resources.append(_picked(rule, "verbs", "apiGroups", "resources", "resourceNames"))
        answer = _answer(call, {"resourceRules": resources, "nonResourceRules": urls, "incomplete": False})
        return answer | {"spec": {}}

    def _review(self, call: Call, user: User) -> Object:
        decision = self._authorizer.authorize(user, _attributes(dig(call.body, "spec", default={})))
        status: Object = {"allowed": decision.allowed}
        if decision.reason:
            status["reason"] = decision.reason
        return _answer(call, status)


def _answer(call: Call, status: Object) -> Object:
    """The review that was asked, with its status; empty fields of the question are left out."""
    body = call.body or {}
    metadata = _without_empty(body.get("metadata") or {})
    if call.namespace:
        metadata["namespace"] = call.namespace
    return {
        "kind": call.kind.kind,
        "apiVersion": call.kind.api_version,
        "metadata": metadata,
        "spec": _without_empty(body.get("spec") or {}),
        "status": status,
    }


def _without_empty(value: Any) -> Any:
    """JSON data without empty values, as Go's omitempty writes it."""
    if isinstance(value, dict):
        shown = {k: _without_empty(v) for k, v in value.items()}
        return {k: v for k, v in shown.items() if v not in ("", None, [], {})}
    return value


def _picked(rule: Object, *keys: str) -> Object:
    return {key: rule[key] for key in keys if rule.get(key)}


def _user(spec: Object) -> User:
    extra = {key: tuple(values or ()) for key, values in (spec.get("extra") or {}).items()}
    return User(spec.get("user") or "", spec.get("uid") or "", tuple(spec.get("groups") or ()), extra)


def _attributes(spec: Object) -> Attributes:
    urls = spec.get("nonResourceAttributes")
    if urls is not None:
        return Attributes(urls.get("verb") or "", path=urls.get("path") or "")
    asked = spec.get("resourceAttributes") or {}
    keys = ("verb", "group", "version", "resource", "subresource", "namespace", "name")
    return Attributes(*(asked.get(key) or "" for key in keys))


def _attribute_errors(spec: Object) -> list[FieldError]:
    resource, urls = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if resource is not None and urls is not None:
        text = "cannot be specified in combination with resourceAttributes"
        return [invalid_value("spec.nonResourceAttributes", urls, text)]
    if resource is None and urls is None:
        text = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        return [invalid_value("spec.resourceAttributes", None, text)]
    return []


def _user_errors(spec: Object) -> list[FieldError]:
    if spec.get("user") or spec.get("groups"):
        return []
    return [invalid_value("spec.user", "", "at least one of user or group must be specified")]


def _refuse(found: Sequence[FieldError]) -> None:
    """Raise the 422 of a review, which names no kind."""
    if not found:
        return
    error: ApiError = invalid("", AUTHORIZATION, "", found)
    error.status["details"].pop("kind", None)
    raise error
