"""AdmissionReview (admission.k8s.io/v1): the question put to a webhook, and its answer. Pure."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mesh_local.apiserver.admission.webhook_match import namespace_in
from mesh_local.apiserver.auth.users import user_info
from mesh_local.apiserver.types import Admission
from mesh_local.kinds.base import Kind
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object

API_VERSION = "admission.k8s.io/v1"
KIND = "AdmissionReview"
_GO_TYPES = {str: "string", int: "number", float: "number", bool: "bool", list: "array"}
_GO_FIELDS = (
    '{ APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }'
)
JSON_PATCH = "JSONPatch"
# apiserver's bounds for Warning headers, in characters.
WARNINGS_TOTAL = 4096
WARNING_LENGTH = 256


class BadAnswer(Exception):
    """An answer that is not a valid AdmissionReview; the text says why, as Kubernetes words it."""


class _Response(msgspec.Struct):
    uid: str = ""
    allowed: bool = False
    status: dict[str, Any] | None = None
    patch: str | None = None
    patchType: str | None = None
    warnings: list[str] | None = None
    auditAnnotations: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A valid answer. `patch` is '' for none."""

    allowed: bool
    status: Object | None
    patch: bytes
    warnings: tuple[str, ...]


def converted(obj: Object, source: Kind, target: Kind) -> Object:
    """An object of one kind in the form of another that is stored together with it."""
    if source is not target:
        obj = target.from_stored(source.to_stored(obj))
    return {"kind": target.kind, "apiVersion": target.api_version} | obj


def question(request: Admission, view: Kind, uid: str) -> Object:
    """The review of a request, in the form of the kind that the webhook's rule names."""
    asked = request.kind
    kind, resource = _group_kind(view, request.subresource), _group_resource(view)
    body: Object = {"uid": uid, "kind": kind, "resource": resource}
    if request.subresource:
        body["subResource"] = request.subresource
    body["requestKind"] = _group_kind(asked, request.subresource)
    body["requestResource"] = _group_resource(asked)
    if request.subresource:
        body["requestSubResource"] = request.subresource
    if request.name:
        body["name"] = request.name
    if namespace := namespace_in(request):
        body["namespace"] = namespace
    body["operation"] = request.operation
    body["userInfo"] = user_info(request.user)
    body["object"] = _shown(request.object, request, view)
    body["oldObject"] = _shown(request.old, request, view)
    body["dryRun"] = request.dry_run
    body["options"] = request.options
    return {"kind": KIND, "apiVersion": API_VERSION, "request": body}


def _shown(obj: Object | None, request: Admission, view: Kind) -> Object | None:
    """With the kind first; the object of a subresource may be of another kind and carries its own."""
    if obj is None or request.subresource:
        return obj
    return converted(obj, request.kind, view)


def _group_kind(kind: Kind, subresource: str) -> Object:
    found = kind.subresource(subresource) if subresource else None
    if found is None:
        return {"group": kind.group, "version": kind.version, "kind": kind.kind}
    if found.version:
        return {"group": found.group, "version": found.version, "kind": found.kind}
    return {"group": kind.group, "version": kind.version, "kind": found.kind}


def _group_resource(kind: Kind) -> Object:
    return {"group": kind.group, "version": kind.version, "resource": kind.plural}


def decoded(body: bytes) -> Object:
    """The AdmissionReview that a body holds. Raises BadAnswer."""
    try:
        review = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as e:
        text = "unexpected end of JSON input" if not body else str(e)
        raise BadAnswer(f"couldn't get version/kind; json parse error: {text}") from None
    if not isinstance(review, dict | None):
        what = f"cannot unmarshal {_GO_TYPES[type(review)]} into Go value of type struct {_GO_FIELDS}"
        raise BadAnswer(f"couldn't get version/kind; json parse error: json: {what}")
    review = review or {}
    # What is missing is taken from the type that is expected.
    kind, version = review.get("kind") or KIND, review.get("apiVersion") or API_VERSION
    if (kind, version) == (KIND, "admission.k8s.io/v1beta1"):
        raise BadAnswer("converting (v1beta1.AdmissionReview) to (v1.AdmissionReview): unknown conversion")
    if (kind, version) != (KIND, API_VERSION):
        raise BadAnswer(f'no kind "{kind}" is registered for version "{version}" in scheme')
    return review | {"kind": review.get("kind") or "", "apiVersion": review.get("apiVersion") or ""}


def verified(review: Object, uid: str, *, mutating: bool) -> Answer:
    """The answer of a review that `decoded` read. Raises BadAnswer."""
    response = review.get("response")
    if response is None:
        raise BadAnswer("webhook response was absent")
    try:
        answer = msgspec.convert(response, _Response)
        patch = base64.b64decode(answer.patch or "", validate=True)
    except msgspec.ValidationError as e:
        raise BadAnswer(f"response: {e}") from None
    except binascii.Error as e:
        raise BadAnswer(f"response.patch: illegal base64 data: {e}") from None
    if answer.uid != uid:
        raise BadAnswer(f'expected response.uid="{uid}", got "{answer.uid}"')
    if (review["apiVersion"], review["kind"]) != (API_VERSION, KIND):
        group, _, version = review["apiVersion"].rpartition("/")
        got = f"{group}/{version}, Kind={review['kind']}"
        raise BadAnswer(f"expected webhook response of {API_VERSION}, Kind={KIND}, got {got}")
    _check_patch(answer, patch, mutating=mutating)
    return Answer(answer.allowed, answer.status, patch, _bounded(answer.warnings or ()))


def _bounded(warnings: Sequence[str]) -> tuple[str, ...]:
    """Warnings become headers: where all are too much, long ones are cut and the last ones dropped."""
    if sum(map(len, warnings)) <= WARNINGS_TOTAL:
        return tuple(warnings)
    found: list[str] = []
    left = WARNINGS_TOTAL
    for text in warnings:
        cut = text[:WARNING_LENGTH]
        left -= len(cut)
        if left < 0:
            break
        found.append(cut)
    return tuple(found)


def _check_patch(answer: _Response, patch: bytes, *, mutating: bool) -> None:
    if not mutating:
        if patch:
            raise BadAnswer("validating webhook may not return response.patch")
        if answer.patchType is not None:
            raise BadAnswer("validating webhook may not return response.patchType")
        return
    if patch and answer.patchType is None:
        raise BadAnswer("webhook returned response.patch but not response.patchType")
    if not patch and answer.patchType is not None:
        raise BadAnswer("webhook returned response.patchType but not response.patch")
    if answer.patchType == "":
        raise BadAnswer('webhook returned invalid response.patchType of ""')
    if answer.patchType not in (None, JSON_PATCH):
        raise BadAnswer(f'unsupported patch type "{answer.patchType}"')


def denial(hook: str, given: Object | None) -> ApiError:
    """The error for a request that a webhook denied; its status code is at least 400."""
    given = given or {}
    denied = f'admission webhook "{hook}" denied the request'
    why = given.get("message") or given.get("reason")
    code = given.get("code")
    status: Object = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"{denied}: {why}" if why else f"{denied} without explanation",
    }
    if given.get("reason"):
        status["reason"] = given["reason"]
    if given.get("details"):
        status["details"] = given["details"]
    status["code"] = code if isinstance(code, int) and 400 <= code <= 599 else 400
    return ApiError(status)
