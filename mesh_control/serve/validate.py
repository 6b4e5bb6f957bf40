"""The validating webhook: policies are read before they are stored, and refused with what is wrong.

Its configuration lets everything pass (failurePolicy Ignore) until it was seen to refuse; see `Proof`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
import trio

from certs.events import OnEvent, ignore_event
from injector.decision import Object
from injector.review import MAX_TEXT, ReviewError
from mesh_api.policy import KINDS, read_policy
from mesh_api.policy_values import Problem
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import VALIDATING_WEBHOOKS, Resource

PATH = "/validate"
CONFIGURATION = "triomesh-validator"
TRAFFIC_POLICIES = Resource("triomesh.dev", "v1alpha1", "trafficpolicies", "TrafficPolicy")
_REVIEW = ("admission.k8s.io/v1", "AdmissionReview")


class _Message(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Unknown members are skipped: Kubernetes adds some with time."""


class _Kind(_Message, frozen=True):
    group: str
    version: str
    kind: str


class _Request(_Message, frozen=True):
    uid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    kind: _Kind
    operation: Literal["CREATE", "UPDATE"]
    object: Object
    name: str = ""
    namespace: str = ""


class _Review(_Message, frozen=True):
    api_version: str
    kind: str
    request: _Request


class _Cause(_Message, frozen=True):
    reason: str
    message: str
    field: str


class _Details(_Message, frozen=True):
    group: str
    kind: str
    name: str
    causes: tuple[_Cause, ...]


class _Status(_Message, frozen=True):
    code: int
    reason: str
    message: str
    details: _Details


class _Response(_Message, frozen=True):
    uid: str
    allowed: bool | None = None
    status: _Status | None = None


class _Answer(_Message, frozen=True):
    api_version: str
    kind: str
    response: _Response


_decoder = msgspec.json.Decoder(_Review)


class Validator:
    """Answers reviews.

    Attributes:
        decisions: by kind (`other` for what is no policy) and result, `allowed` or `denied`.
    """

    def __init__(self) -> None:
        self.decisions: Counter[tuple[str, str]] = Counter()

    def answer(self, body: bytes) -> bytes:
        """The answer to a review. Raises ReviewError for what is none."""
        try:
            review = _decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise ReviewError(f"not a review of a policy: {exc}") from None
        if (review.api_version, review.kind) != _REVIEW:
            raise ReviewError(f"expected {_REVIEW[1]} of {_REVIEW[0]}, got {review.kind[:64]!r}")
        request = review.request
        problems = _problems(request)
        # Everybody in the cluster can ask, about whatever they please.
        kind = request.kind.kind if request.kind.kind in KINDS else "other"
        self.decisions[kind, "denied" if problems else "allowed"] += 1
        response = _denied(request, problems) if problems else _Response(request.uid, allowed=True)
        return msgspec.json.encode(_Answer(*_REVIEW, response))


def _problems(request: _Request) -> Sequence[Problem]:
    metadata = request.object.get("metadata")
    meta = dict(metadata) if isinstance(metadata, Mapping) else {}
    if meta.get("deletionTimestamp"):
        return ()  # only its finalizers are taken away; that must work for what an older version has let in
    named = {**meta, "name": meta.get("name") or request.name, "namespace": request.namespace}
    found = read_policy(request.kind.kind, {**request.object, "metadata": named})
    return found if isinstance(found, list) else ()


def _denied(request: _Request, problems: Sequence[Problem]) -> _Response:
    causes = tuple(_Cause("FieldValueInvalid", _cut(one.expected), _cut(one.path)) for one in problems)
    message = _cut("; ".join(map(str, problems)))
    details = _Details(request.kind.group, request.kind.kind, request.name, causes)
    return _Response(request.uid, False, _Status(422, "Invalid", message, details))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


# -- from Ignore to Fail ------------------------------------------------------------------------------------

PROBE: Mapping[str, object] = {
    "metadata": {"name": "triomesh-validator-probe"},
    "spec": {"target": {"service": "none"}, "routes": [{"to": [{"weight": 0}]}]},
}
"""Legal for the schema, and refused by `read_policy`. It is only ever created as a dry run."""
_PROVES = "expected weights with a sum above 0"


class Proof:
    """Has the webhook refuse a bad policy, and then makes its configuration fail closed.

    Only one replica runs this. Notes: `validator.proved`; `validator.failed` (error).

    Attributes:
        proved: whether the configuration was seen with Fail.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        rng: random.Random,
        on_note: OnEvent = ignore_event,
        *,
        retry_s: float = 2.0,
        check_s: float = 30.0,
    ) -> None:
        self.proved = False
        self._client = client
        self._namespace = namespace
        self._rng = rng
        self._on_note = on_note
        self._retry_s = retry_s
        self._check_s = check_s

    async def run(self) -> None:
        """Prove until it is so, then see now and then whether it was installed anew; until cancelled."""
        told = before = ""
        while True:
            error = ""
            try:
                error = await self._step()
            except KubeError as exc:
                error = exc.message
            self.proved = not error
            # The first attempt comes before the API server has seen the certificate: no news.
            if error and error == before and error != told:
                self._on_note("validator.failed", {"error": error})
                told = error
            before = error
            wait = self._retry_s if error else self._check_s
            await trio.sleep(wait * self._rng.uniform(0.8, 1.0))

    async def _step(self) -> str:
        """Bring the configuration to Fail; what stands in the way."""
        found = await self._client.get(VALIDATING_WEBHOOKS, CONFIGURATION)
        webhooks = found.get("webhooks") or []
        open_ones = [i for i, one in enumerate(webhooks) if one.get("failurePolicy") == "Ignore"]
        if not open_ones:
            return ""
        if wrong := await self._probe():
            return wrong
        patch: list[dict[str, object]] = []
        for index in open_ones:  # the test makes sure that the list was not reordered meanwhile
            patch += [
                {"op": "test", "path": f"/webhooks/{index}/name", "value": webhooks[index]["name"]},
                {"op": "replace", "path": f"/webhooks/{index}/failurePolicy", "value": "Fail"},
            ]
        await self._client.patch(VALIDATING_WEBHOOKS, CONFIGURATION, "", patch, type="json")
        self._on_note("validator.proved", {"name": CONFIGURATION})
        return ""

    async def _probe(self) -> str:
        try:
            await self._client.create(TRAFFIC_POLICIES, dict(PROBE), self._namespace, dry_run=True)
        except KubeError as exc:
            return "" if _PROVES in exc.message else exc.message
        return "a bad policy was not refused: the API server does not reach the webhook yet"
