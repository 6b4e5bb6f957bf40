"""One admission review: from the API server's bytes to ours (admission.k8s.io/v1). Pure.

The review does not hold the namespace's labels, so that there are two steps: `parse`, then, with the
namespace, `answer`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from injector.decision import Inject, Namespace, Object, Reason, Refuse, Skip
from injector.patch import decide
from injector.values import Values

MAX_BYTES = 3 * 1024 * 1024
"""What the API server itself takes of one object."""
MAX_TEXT = 1024
"""Of a message or a warning: the API server bounds all warnings together to 4096 characters."""
_API_VERSION = "admission.k8s.io/v1"
_KIND = "AdmissionReview"


class ReviewError(ValueError):
    """Bytes that are no review of the creation of a pod; the message says what was expected."""


class _Message(msgspec.Struct, frozen=True, rename="camel"):
    """Unknown members are skipped: Kubernetes adds some with time."""


class _Kind(_Message, frozen=True):
    group: str
    version: str
    kind: str


class _Owner(_Message, frozen=True):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None


class _Metadata(_Message, frozen=True):
    name: str = ""
    generate_name: str = ""
    owner_references: tuple[_Owner, ...] | None = None


class _Meta(_Message, frozen=True):
    metadata: _Metadata = _Metadata()


class _Request(_Message, frozen=True):
    uid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    kind: _Kind
    namespace: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    operation: Literal["CREATE"]
    object: Object
    sub_resource: Literal[""] = ""
    name: str = ""
    dry_run: bool | None = None


class _Review(_Message, frozen=True):
    api_version: str
    kind: str
    request: _Request


class _Status(msgspec.Struct, frozen=True):
    code: int
    reason: str
    message: str


class _Response(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    uid: str
    allowed: bool | None = None
    patch_type: str = ""
    patch: str = ""
    status: _Status | None = None
    warnings: tuple[str, ...] = ()
    audit_annotations: dict[str, str] = {}


class _Answer(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    response: _Response


@dataclass(frozen=True, slots=True)
class Involved:
    """Whom an Event is about: the pod's controller, else the pod."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Request:
    """A pod that is about to be created."""

    uid: str
    namespace: str
    pod: Object
    dry_run: bool
    involved: Involved


Result = Literal["injected", "unchanged", "skipped", "refused"]
"""`unchanged`: asked again (reinvocation), or injected by hand, and nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided: for counters (`result`, `reason`) and an Event."""

    namespace: str
    involved: Involved
    result: Result
    reason: Reason
    message: str
    dry_run: bool

    @property
    def newsworthy(self) -> bool:
        """Whether it deserves an Event: a dry run has no effect, and what is unchanged was told before."""
        return not self.dry_run and self.result != "unchanged"


_decoder = msgspec.json.Decoder(_Review)


def parse(body: bytes) -> Request:
    """Read a review. Raises ReviewError."""
    try:
        review = _decoder.decode(body)
        request = review.request
        meta = msgspec.convert(request.object, _Meta).metadata
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as exc:
        raise ReviewError(f"not a review of the creation of a pod: {exc}") from None
    if (review.api_version, review.kind) != (_API_VERSION, _KIND):
        raise ReviewError(
            f"expected {_KIND} of {_API_VERSION}, got {review.kind[:64]!r} of {review.api_version[:64]!r}"
        )
    if request.kind != _Kind("", "v1", "Pod"):
        raise ReviewError(f"expected a Pod of v1, got {request.kind.kind[:64]!r}")
    return Request(
        request.uid, request.namespace, request.object, bool(request.dry_run), _involved(meta, request.name)
    )


def _involved(meta: _Metadata, name: str) -> Involved:
    for owner in meta.owner_references or ():
        if owner.controller:
            return Involved(owner.api_version, owner.kind, owner.name, owner.uid)
    return Involved("v1", "Pod", meta.name or name or meta.generate_name, "")


def answer(request: Request, namespace: Namespace, values: Values) -> tuple[bytes, Decided]:
    """The answer, and what it decides."""
    decision = decide(request.pod, namespace, values)
    audit: dict[str, str] = {}
    result: Result
    match decision:
        case Inject(patch=patch, warnings=warnings):
            result = "injected" if patch else "unchanged"
            reason, message = Reason.INJECTED, f"sidecar of version {values.version}"
            encoded = base64.b64encode(msgspec.json.encode(patch)).decode() if patch else ""
            audit["decision"] = str(reason)
            response = _Response(
                request.uid,
                allowed=True,
                patch_type="JSONPatch" if encoded else "",
                patch=encoded,
                warnings=tuple(_cut(text, 256) for text in warnings[:10]),
                audit_annotations=audit,
            )
        case Skip(reason=reason, message=message):
            result, audit["decision"] = "skipped", str(reason)
            response = _Response(request.uid, allowed=True, audit_annotations=audit)
        case Refuse(reason=reason, message=message):
            result, audit["decision"] = "refused", str(reason)
            status = _Status(400, "BadRequest", _cut(f"{reason}: {message}", MAX_TEXT))
            response = _Response(request.uid, allowed=False, status=status, audit_annotations=audit)
    body = msgspec.json.encode(_Answer(_API_VERSION, _KIND, response))
    told = _cut(message, MAX_TEXT)
    return body, Decided(request.namespace, request.involved, result, reason, told, request.dry_run)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
