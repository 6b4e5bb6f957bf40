"""The two webhook admission plugins: mutating hooks run in order, validating ones together."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from mesh_local.apiserver.admission.webhook_client import CallError, WebhookClient
from mesh_local.apiserver.admission.webhook_match import (
    Hook,
    conditions_met,
    exempt,
    hooks_of,
    selected,
    view_of,
)
from mesh_local.apiserver.admission.webhook_review import (
    Answer,
    BadAnswer,
    converted,
    denial,
    question,
    verified,
)
from mesh_local.apiserver.decode import Body, decode
from mesh_local.apiserver.types import Admission, AdmissionPlugin, Reader
from mesh_local.kinds.base import Kind
from mesh_local.machinery.errors import ApiError, bad_request, internal
from mesh_local.machinery.objects import Object, copy, new_uid
from mesh_local.machinery.patch import JsonPatchError, apply_json_patch

MUTATING = "mutatingwebhookconfigurations.admissionregistration.k8s.io"
VALIDATING = "validatingwebhookconfigurations.admissionregistration.k8s.io"
# How many validating webhooks are called at the same time for one request.
PARALLEL = 16


@dataclass
class WebhookCaller:
    """What both plugins need: which hooks match, and one call with everything around it.

    Args:
        kinds: all kinds that are served now.
        rng: makes the uids of the reviews.
    """

    reader: Reader
    client: WebhookClient
    kinds: Callable[[], Sequence[Kind]]
    rng: random.Random

    def hooks(self, resource: str, request: Admission) -> list[Hook]:
        """The hooks of all configurations of one kind, in the order of calls."""
        return [] if exempt(request) else hooks_of(self.reader.list(resource))

    def view(self, hook: Hook, request: Admission) -> Kind | None:
        """The kind in whose form the hook wants this request; None: it does not."""
        view = view_of(hook, request, self.kinds())
        if view is None or not selected(hook, request, lambda name: self.reader.get("namespaces", name)):
            return None
        if hook.spec.get("matchConditions"):
            body = question(request, view, "")["request"]
            variables = {"object": body["object"], "oldObject": body["oldObject"], "request": body}
            if not conditions_met(hook, request, variables):
                return None
        return view

    async def call(self, hook: Hook, request: Admission, view: Kind, *, mutating: bool) -> Answer | None:
        """The answer, with its warnings passed on; None for a failure that the hook's policy ignores.

        Raises:
            ApiError: a denial, or 500 for a failure.
        """
        if request.dry_run and hook.spec.get("sideEffects") not in ("None", "NoneOnDryRun"):
            raise bad_request(f'admission webhook "{hook.name}" does not support dry run')
        uid = new_uid(self.rng)
        try:
            review = await self.client.call(hook, question(request, view, uid))
            try:
                answer = verified(review, uid, mutating=mutating)
            except BadAnswer as e:
                raise CallError(f"received invalid webhook response: {e}") from None
        except CallError as e:
            if hook.ignores_failure:
                return None
            raise internal(f'failed calling webhook "{hook.name}": {e}') from None
        request.warnings.extend(answer.warnings)
        if not answer.allowed:
            raise denial(hook.name, answer.status)
        return answer


class MutatingWebhooks:
    """An `AdmissionPlugin`. Hooks see what the ones before them changed.

    Args:
        builtin: the mutating plugins before this one; they run again once after a hook changed the object,
            and so do hooks with reinvocationPolicy IfNeeded whose output was changed after they ran.
    """

    def __init__(self, caller: WebhookCaller, builtin: Sequence[AdmissionPlugin] = ()) -> None:
        self._caller = caller
        self._builtin = tuple(builtin)

    async def mutate(self, request: Admission) -> None:
        """Call every matching hook. Raises ApiError for a denial or a failure."""
        hooks = self._caller.hooks(MUTATING, request)
        called: list[int] = []
        again: set[int] = set()
        changed = False
        for i, hook in enumerate(hooks):
            ran, changed_now = await self._run(hook, request)
            if changed_now:
                changed = True
                again.update(called)
            if ran and hook.spec.get("reinvocationPolicy") == "IfNeeded":
                called.append(i)
        if not changed:
            return
        before = copy(request.object)
        for plugin in self._builtin:
            await plugin.mutate(request)
        if request.object != before:
            again.update(called)
        for i in sorted(again):
            await self._run(hooks[i], request)

    async def validate(self, request: Admission) -> None:
        """Nothing: this plugin only changes objects."""

    async def _run(self, hook: Hook, request: Admission) -> tuple[bool, bool]:
        """Call one hook: whether it was called, and whether it changed the object."""
        view = self._caller.view(hook, request)
        if view is None:
            return False, False
        answer = await self._caller.call(hook, request, view, mutating=True)
        if answer is None or not answer.patch or request.object is None:
            return True, False
        patched = _patched(request, request.object, view, answer.patch)
        changed = patched != request.object
        request.object = patched
        return True, changed


def _patched(request: Admission, obj: Object, view: Kind, patch: bytes) -> Object:
    """The object after a patch against the form that the hook saw. Raises ApiError 500."""
    main = not request.subresource
    seen = converted(obj, request.kind, view) if main else obj
    try:
        result = apply_json_patch(seen, msgspec.json.decode(patch, type=list[Any]))
    except (msgspec.DecodeError, RecursionError) as e:
        raise internal(f"webhook returned a patch that cannot be decoded: {e}") from None
    except JsonPatchError as e:
        raise internal(str(e)) from None
    if not isinstance(result, dict) or not isinstance(result.get("metadata", {}), dict):
        raise internal("the patched object is not an API object")
    if not main:
        return result
    if (result.get("kind"), result.get("apiVersion")) != (view.kind, view.api_version):
        raise internal("a patch may not change kind or apiVersion")
    try:
        # The hooks that come next rely on the types.
        back, _ = decode(request.kind, Body(converted(result, view, request.kind)), "Ignore")
    except ApiError as e:
        raise internal(e.message) from None
    request.kind.default(back)
    return back


class ValidatingWebhooks:
    """An `AdmissionPlugin`. All matching hooks are called together; the first refusal in order counts."""

    def __init__(self, caller: WebhookCaller) -> None:
        self._caller = caller

    async def mutate(self, request: Admission) -> None:
        """Nothing: this plugin only refuses."""

    async def validate(self, request: Admission) -> None:
        """Call every matching hook. Raises ApiError for a denial or a failure."""
        hooks = self._caller.hooks(VALIDATING, request)
        wanted = [(h, v) for h in hooks if (v := self._caller.view(h, request)) is not None]
        refusals: dict[int, ApiError] = {}
        limit = trio.CapacityLimiter(PARALLEL)

        async def ask(place: int, hook: Hook, view: Kind) -> None:
            async with limit:
                try:
                    await self._caller.call(hook, request, view, mutating=False)
                except ApiError as e:
                    refusals[place] = e

        async with trio.open_nursery() as nursery:
            for place, (hook, view) in enumerate(wanted):
                nursery.start_soon(ask, place, hook, view)
        if refusals:
            raise refusals[min(refusals)]
